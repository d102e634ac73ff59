"""Processes that must not outlive what started them: identities, ancestors, and killing a whole tree.

torchrun's workers, Triton and its stubs, and DVC's own child each live in a session or group of their own, so
that a signal to one group reaches only some of them. Three means are combined here: the kernel's parent-death
signal (for a direct child), a watching thread (for a stage whose DVC is gone), and a kill that walks the tree
and the processes that carry a marker in their environment (for those whose parent died before).

`python -m polyweft.processes --parent PID -- PROGRAM ...` runs a program that dies with process PID.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

POLL_SECONDS = 0.5

_PR_SET_PDEATHSIG = 1
_SHELLS = {"sh", "bash", "dash", "zsh", "fish", "ksh", "ash"}


@lru_cache(maxsize=1)
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")[:8]
    except OSError:
        return "0"


def identity(pid: int) -> str | None:
    """Give what tells process `pid` from every other, also from a later one with its number; None if gone.

    On Linux: pid, start time in clock ticks since boot, and the boot's id. The start time is read raw, since
    one converted to wall-clock time moves when the clock is set. A zombie counts as gone.
    """
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None if Path("/proc/self/stat").exists() else _portable_identity(pid)
    fields = status[status.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else f"{pid}-{fields[19]}-{_boot()}"


def _portable_identity(pid: int) -> str | None:
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return f"{pid}-{int(process.create_time() * 100)}-{_boot()}"
    except psutil.NoSuchProcess:
        return None


def is_alive(key: str) -> bool:
    """Tell whether the process that `identity` named so still runs."""
    pid = key.split("-", 1)[0]
    return pid.isdigit() and identity(int(pid)) == key


def _is_dvc(command: Sequence[str]) -> bool:
    names = [Path(word).name for word in command[:6]]
    if names and names[0] in {"dvc", "dvc.exe"}:
        return True
    if not names or not names[0].startswith("python"):
        return False
    script = next((i for i, word in enumerate(command[1:6], 1) if not word.startswith("-")), None)
    return script is not None and names[script] == "dvc"


def dvc_ancestor() -> str | None:
    """Give the identity of the nearest DVC process above this one; None where none is left, or never was.

    The parent's id would not do: DVC starts a stage through `$SHELL`, which stays in between or not,
    depending on the shell. Under DVC's Python interface no process bears its name; there it is the nearest
    ancestor that is not a shell, if that runs Python: a stage whose DVC died is taken over by init, which
    must not be followed instead. Nor must what started a DVC that is just dying: it is the stage's parent
    until its memory is given back, but has no command line any more.
    """
    import psutil

    nearest: psutil.Process | None = None
    for process in psutil.Process().parents():
        try:
            command = process.cmdline()
        except psutil.AccessDenied:
            continue
        except psutil.NoSuchProcess:
            break
        if not command:
            break
        if _is_dvc(command):
            return identity(process.pid)
        if nearest is None and Path(command[0]).name.lstrip("-") not in _SHELLS:
            nearest = process
    if nearest is None or not started_by_dvc() or not _runs_python(nearest):
        return None
    return identity(nearest.pid)


def started_by_dvc() -> bool:
    """Tell whether DVC started this process, by what DVC leaves in the environment of a stage."""
    return bool(os.environ.get("DVC_STAGE"))


def _runs_python(process: psutil.Process) -> bool:
    import psutil

    try:
        return Path(process.exe()).name.startswith("python")
    except psutil.Error:
        return False


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process (SIGKILL) when its parent dies; on other systems than Linux, nothing.

    With `parent` given, exits at once when the parent is another one already: it died before the call.
    The signal follows the parent's thread that started this process: that thread must live on.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def guarded(command: Sequence[str]) -> list[str]:
    """Give the command line that runs `command` as a child that dies with this process.

    It goes through a small Python (30 ms) that asks for the signal and then becomes `command`: a function
    between fork and exec (`preexec_fn`) can deadlock in a program with threads.
    """
    guard = [sys.executable, "-I", "-S", str(Path(__file__).resolve())]
    return [*guard, "--parent", str(os.getpid()), "--", *command]


def descendants(pid: int) -> list[psutil.Process]:
    """List the processes below `pid`, whatever their session or group."""
    import psutil

    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def marked(name: str, value: str) -> list[psutil.Process]:
    """List the processes, other than this one, whose environment holds `name`=`value`.

    It finds those that were given to init because their parent died first.
    """
    import psutil

    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(name) == value:
                found.append(process)
    return found


def kill_all(processes: Sequence[psutil.Process], *, patience: float = 0.0) -> None:
    """End `processes`: SIGTERM and `patience` seconds (if any), then SIGKILL; waits until they are gone.

    Children of this process are reaped here, so that a `Popen` of one reads 0 as its return code afterwards.
    """
    import psutil

    left = list(processes)
    if patience > 0:
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.terminate()
        left = psutil.wait_procs(left, timeout=patience)[1]
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=10)


def kill_tree(pid: int, *, patience: float = 0.0) -> None:
    """End `pid` and all below it; the list is taken first, since a dead parent hides its children."""
    import psutil

    below = descendants(pid)
    try:
        kill_all([psutil.Process(pid), *below], patience=patience)
    except psutil.NoSuchProcess:
        kill_all(below, patience=patience)


def watch_ancestor(on_loss: Callable[[], None] | None = None) -> threading.Thread | None:
    """Watch, in a thread, the DVC process above this one; when it is gone, end this process and all below.

    DVC that is killed leaves its stage running, and a stage that only died itself would leave its own
    children. Prints one line, calls `on_loss` (quick: it tells the tracking), and exits with code 143: at
    once where DVC was gone before the call. Polls twice a second. Gives None, and watches nothing, where DVC
    did not start this process.
    """
    owner = dvc_ancestor()
    if owner is None and not started_by_dvc():
        return None
    stage = os.environ.get("DVC_STAGE", "stage")
    message = f"{stage}: DVC, which started this stage, is gone; stopping. Run it again."
    return watch(owner or "", message, on_loss)


def watch(owner: str, message: str, on_loss: Callable[[], None] | None = None) -> threading.Thread:
    """Watch the process whose `identity` is `owner` in a thread; see `watch_ancestor` for what follows.

    An empty `owner` names one that is gone.
    """
    thread = threading.Thread(target=_watch, args=(owner, message, on_loss), name="watch", daemon=True)
    thread.start()
    return thread


def _watch(owner: str, message: str, on_loss: Callable[[], None] | None) -> None:
    while is_alive(owner):
        time.sleep(POLL_SECONDS)
    try:
        with contextlib.suppress(OSError):
            sys.stderr.write(message + "\n")
            sys.stderr.flush()
        if on_loss is not None:
            on_loss()
    finally:
        # Nothing is waited for: the main thread would take its children's death for a failure of their own.
        for child in descendants(os.getpid()):
            with contextlib.suppress(Exception):
                child.kill()
        os._exit(143)


def _main(arguments: list[str]) -> None:
    if len(arguments) < 4 or arguments[0] != "--parent" or arguments[2] != "--":
        sys.exit("usage: python -m polyweft.processes --parent PID -- PROGRAM [ARGUMENT ...]")
    die_with_parent(int(arguments[1]))
    program = arguments[3:]
    try:
        os.execvp(program[0], program)  # noqa: S606
    except OSError as error:
        sys.exit(f"{program[0]}: {error.strerror}")


if __name__ == "__main__":
    _main(sys.argv[1:])
