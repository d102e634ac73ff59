"""Say what this machine lacks, before anything is installed. Standard library only.

`python flows/doctor.py` prints a line a check and ends with 1 where one fails; `--quiet` prints failures.
"""

from __future__ import annotations

import platform
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path

DISK_GB = 12
PORTS = {4200: "Prefect", 5000: "MLflow", 8000: "Triton over HTTP", 8001: "Triton over gRPC"}


def _python() -> str | None:
    found = platform.python_version()
    if found.startswith("3.11."):
        return None
    return f"Python {found} runs; 3.11 is needed. Install it, or `make PYTHON=/path/to/python3.11`."


def _venv() -> str | None:
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        return "this Python has no venv or pip. Install them (on Debian: python3.11-venv)."
    return None


def _program(name: str) -> Callable[[], str | None]:
    return lambda: None if shutil.which(name) else f"{name} is not on PATH. Install it."


def _disk() -> str | None:
    free = shutil.disk_usage(Path(__file__).parent).free / 1e9
    return None if free >= DISK_GB else f"{free:.0f} GB of disk are free; {DISK_GB} GB are needed."


def _ports() -> str | None:
    taken = [f"{port} ({name})" for port, name in PORTS.items() if not _free(port)]
    if not taken:
        return None
    return f"ports {', '.join(taken)} are taken. `make run` takes free ones; the servers take --port flags."


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


CHECKS: list[tuple[str, Callable[[], str | None], bool]] = [
    ("Python 3.11", _python, True),
    ("venv and pip", _venv, True),
    ("git", _program("git"), True),
    ("make", _program("make"), True),
    (f"{DISK_GB} GB of disk", _disk, True),
    ("ports of the web pages", _ports, False),
]


def main(arguments: list[str]) -> int:
    """Run the checks; 1 where one that is needed fails."""
    quiet = "--quiet" in arguments
    bad = 0
    for name, check, needed in CHECKS:
        fault = check()
        mark = "ok  " if fault is None else ("FAIL" if needed else "note")
        if not quiet or (fault and needed):
            print(f"{mark}  {name}" + (f": {fault}" if fault else ""))
        bad += bool(fault and needed)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
