"""The training curve as a file that only grows, so that a checkpoint need not hold it whole.

Each checkpoint's state keeps a mark: how many bytes of the file belong to it, and their SHA-256. On resuming
the file is cut there; one that does not match makes the checkpoint count as damaged (see `checkpoint`).
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

FILE = "curve.jsonl"


class Curve:
    """Rows of numbers in `folder/curve.jsonl`; only the main process has one."""

    def __init__(self, folder: Path, mark: dict[str, Any] | None) -> None:
        """Open the file, cut to `mark` (from a checkpoint's state); None begins it anew."""
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / FILE
        size = mark["bytes"] if mark else 0
        kept = self.path.read_bytes()[:size] if size else b""
        self._hash, self._size = hashlib.sha256(kept), size
        self._handle = self.path.open("r+b" if self.path.exists() else "w+b")
        self._handle.truncate(size)
        self._handle.seek(size)

    def append(self, row: list[float]) -> None:
        """Add one row; it is on the disk after the next `mark`."""
        line = json.dumps(row).encode() + b"\n"
        self._hash.update(line)
        self._size += len(line)
        self._handle.write(line)

    def mark(self) -> dict[str, Any]:
        """Bring the rows so far to the disk and give what tells them: for a checkpoint's state."""
        self._handle.flush()
        os.fsync(self._handle.fileno())
        return {"bytes": self._size, "sha256": self._hash.hexdigest()}

    def rows(self) -> list[list[float]]:
        """Every row so far, from the file."""
        self._handle.flush()
        return [json.loads(line) for line in self.path.read_bytes()[: self._size].splitlines()]

    def close(self) -> None:
        """Close the file."""
        self._handle.close()


def holds(folder: Path, mark: dict[str, Any]) -> bool:
    """Tell whether the file begins with the rows that `mark` stands for."""
    if not mark["bytes"]:
        return True
    try:
        with (folder / FILE).open("rb") as handle:
            content = handle.read(mark["bytes"])
    except OSError:
        return False
    return bool(len(content) == mark["bytes"] and hashlib.sha256(content).hexdigest() == mark["sha256"])
