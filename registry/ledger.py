"""The ledger: one line of JSON for each decision of the gate and each move of the champion.

An MLflow alias keeps no history. The ledger does, in `.polyweft/ledger.jsonl` of the main workspace; what
`rollback` needs stands in version tags too, so that it works from another machine (see `versions`).
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

from polyweft.errors import RegistryError
from polyweft.workspace import state_folder


def ledger_file() -> Path:
    """Give the ledger's path; the file may not exist yet."""
    return state_folder() / "ledger.jsonl"


def append(event: str, name: str, **fields: Any) -> dict[str, Any]:
    """Append one entry (`event`: `promote`, `hold`, `rollback`, ...) and give it back.

    The line is written by one call under a lock and synced: a reader and a second writer see it whole.
    A part of a line that a crash left behind is closed first, and passed over by `read`.

    Raises
    ------
    RegistryError
        The file cannot be written.
    """
    entry = {
        "event": event,
        "name": name,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **fields,
    }
    path = ledger_file()
    line = json.dumps(entry, sort_keys=True, ensure_ascii=False).encode("utf-8") + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if handle.tell() > 0:
                handle.seek(-1, os.SEEK_END)
                line = line if handle.read(1) == b"\n" else b"\n" + line
            handle.write(line)
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        raise RegistryError(
            f"could not write the ledger {path}: {error.strerror or error}. Free some space or check the "
            "folder's permissions, then run the same command again."
        ) from error
    return entry


def read(name: str | None = None) -> list[dict[str, Any]]:
    """Give the ledger's entries, oldest first, of one model or of all; a torn line is passed over."""
    try:
        lines = ledger_file().read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    entries = []
    for line in lines:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(entry, dict) and name in (None, entry.get("name")):
            entries.append(entry)
    return entries
