"""Two contestants in turn, in one run, so that a machine that slows down slows both."""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from bench.training.environment import peer_python
from bench.training.workload import BATCH

PEER = Path(__file__).with_name("peer.py")


@dataclass
class Contestant:
    """Processes that train together: one, or several that average their gradients."""

    name: str
    commands: list[list[str]]
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    loss: float = float("nan")

    def start(self) -> None:
        """Start the processes and wait until their models are built."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        size = len(self.commands)
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(size)}
        group |= {"LOCAL_WORLD_SIZE": str(size)}
        self.processes = [
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank, command in enumerate(self.commands)
        ]
        self._answers()

    def take(self, steps: int, *, counted: bool) -> None:
        """Train `steps` steps; the time is from the request to the last process's answer."""
        begin = time.perf_counter()
        for process in self.processes:
            _pipe(process.stdin).write(f"{steps}\n")
            _pipe(process.stdin).flush()
        answers = self._answers()
        if counted:
            self.seconds.append((time.perf_counter() - begin) / steps)
            self.cpu_seconds.append(sum(answer["cpu_seconds"] for answer in answers) / steps)
            self.loss = sum(answer["loss"] for answer in answers) / len(answers)

    def stop(self) -> None:
        """Close their input, which ends them."""
        for process in self.processes:
            _pipe(process.stdin).close()
        for process in self.processes:
            process.wait(60)

    def _answers(self) -> list[dict[str, Any]]:
        lines = [_pipe(process.stdout).readline() for process in self.processes]
        if not all(lines):
            raise SystemExit(f"{self.name} ended; its message stands above.")
        return [json.loads(line) for line in lines]


def ours(
    precision: str, words: str, *, processes: int = 1, threads: int, compiled: bool = False
) -> Contestant:
    """Polyweft's step in `processes` of `threads` each."""
    command = [sys.executable, "-m", "bench.training.ours", "--precision", precision, "--words", words]
    command += ["--threads", str(threads)] + (["--compile"] if compiled else [])
    name = f"ours{', compiled' if compiled else ''}, {processes} x {threads} threads"
    return Contestant(name, [command] * processes)


def loading(*, threads: int) -> Contestant:
    """Polyweft's loading alone, for no model."""
    command = [sys.executable, "-m", "bench.training.loading", "--threads", str(threads)]
    return Contestant(f"loading, 1 x {threads} threads", [command])


def peer(precision: str, words: str, *, threads: int) -> Contestant:
    """open_clip's step."""
    command = [str(peer_python()), str(PEER), "--precision", precision, "--words", words]
    return Contestant(f"open_clip 3.3.0, 1 x {threads} threads", [[*command, "--threads", str(threads)]])


def race(first: Contestant, second: Contestant, *, pairs: int, steps: int) -> dict[str, Any]:
    """Steps of both in turn, after two not counted; how many times as fast the first is, and the range."""
    sides = (first, second)
    for side in sides:
        side.start()
        side.take(2, counted=False)
    for number in range(pairs):
        for side in sides if number % 2 == 0 else reversed(sides):
            side.take(steps, counted=True)
    for side in sides:
        side.stop()
    wall = sorted(b / a for a, b in zip(first.seconds, second.seconds, strict=True))
    cpu = sorted(b / a for a, b in zip(first.cpu_seconds, second.cpu_seconds, strict=True))
    return {
        "sides": [side.name for side in sides],
        "samples_per_second": [round(BATCH / statistics.median(side.seconds), 1) for side in sides],
        "loss": [round(side.loss, 4) for side in sides],
        "ratio": round(statistics.median(wall), 3),
        "range": [round(wall[0], 3), round(wall[-1], 3)],
        "cpu_ratio": round(statistics.median(cpu), 3),
        "cpu_range": [round(cpu[0], 3), round(cpu[-1], 3)],
        "pairs": pairs,
    }


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe
