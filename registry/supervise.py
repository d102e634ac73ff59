"""Run a server for one parent, and end it, its stubs and its shared memory when it or the parent ends.

    python supervise.py PARENT_PID SHM_PREFIX PATIENCE_SECONDS PROGRAM [ARGUMENT ...]

A program of its own, with the standard library alone: it starts in 30 ms, and cleans up also after a
`kill -9` of the parent, from which no code in the parent could. It leads the process group of all it starts.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
POLL_SECONDS = 0.2
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - Triton's stubs talk through it


def main(parent: int, prefix: str, patience: float, command: list[str]) -> int:
    """Run `command` until it ends, the parent is gone or SIGTERM comes; give its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wake = {signal.SIGTERM, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, wake)
    own = os.getpid()

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, wake)
        # Should this program itself be killed, the server goes with it; its stubs watch the server.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != own:
            os._exit(1)

    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=prepare)
    while server.poll() is None and os.getppid() == parent:
        got = signal.sigtimedwait(wake, POLL_SECONDS)
        if got is not None and got.si_signo == signal.SIGTERM:
            break
    code = _stop(server, patience)
    for left in SHARED_MEMORY.glob(f"{prefix}*"):
        left.unlink(missing_ok=True)
    return code


def _stop(server: subprocess.Popen[bytes], patience: float) -> int:
    """SIGTERM and, after `patience` seconds, SIGKILL; then the stubs, which are in this process's group."""
    if server.poll() is None:
        server.terminate()
        try:
            server.wait(patience)
        except subprocess.TimeoutExpired:
            server.kill()
    code = server.wait()
    for sent in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + 1.0
        while (others := _group()) and time.monotonic() < deadline:
            for pid in others:
                _signal(pid, sent)
            time.sleep(0.05)
    return code


def _group() -> list[int]:
    """Pids of the other live members of this process's group."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        fields = status[status.rindex(")") + 2 :].split()
        pid = int(folder.name)
        if fields[0] not in "ZX" and int(fields[2]) == os.getpgrp() and pid != os.getpid():
            found.append(pid)
    return found


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), sys.argv[4:]))
