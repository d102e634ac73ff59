"""A stage's MLflow run as a local file of events, written first and sent by another process.

Each run is `.polyweft/spool/<key>.jsonl`: a `start`, then metrics, tags and artifacts, then an `end`. A line
is one append, so that a training worker may write into its stage's file. How far the file was sent stands
beside it (`<key>.sent`), and copies of the artifacts in `<key>/`. Nothing here imports MLflow: a stage pays
milliseconds, and a tracking server that is down costs it nothing. `polyweft.sender` does the sending.

A pipeline run (one `dvc repro`, one flow) is `.polyweft/pipelines/<key>.jsonl`, where the key is the
identity of the process that drives it; see `polyweft.processes.identity`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyweft import processes
from polyweft.errors import DataError
from polyweft.workspace import state_folder, workspace

PIPELINE_VARIABLE = "POLYWEFT_PIPELINE_RUN"
SPOOL_VARIABLE = "POLYWEFT_SPOOL"
_KEY = re.compile(r"\d+-\d+-\w+")


def spool_folder() -> Path:
    """Give the folder of runs that are written or not yet sent."""
    return state_folder() / "spool"


def pipelines_folder() -> Path:
    """Give the folder of pipeline runs that are open."""
    return state_folder() / "pipelines"


def now() -> int:
    """Give the time in milliseconds since 1970, MLflow's unit."""
    return time.time_ns() // 1_000_000


def append(path: Path, event: Mapping[str, Any]) -> None:
    """Append `event` as one line of JSON with one write, which other writers cannot split.

    Raises
    ------
    DataError
        The line could not be written (a full disk).
    """
    line = (json.dumps(event, ensure_ascii=False, default=str) + "\n").encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            if os.write(descriptor, line) != len(line):
                raise OSError("no space left for the whole line")
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DataError(
            f"could not write the tracking spool {path}: {error.strerror or error}. "
            "Free some space, then run the same command again."
        ) from error


def read_events(path: Path, offset: int = 0) -> list[tuple[dict[str, Any], int]]:
    """Read the whole lines from byte `offset` on: each event, and the offset behind it.

    A line that is not JSON (its writer was killed inside it) is passed over.
    """
    try:
        with path.open("rb") as handle:
            handle.seek(offset)
            content = handle.read()
    except FileNotFoundError:
        return []
    events = []
    for line in content.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        offset += len(line)
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict):
                events.append((event, offset))
    return events


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[int | None]:
    """Hold the lock on `path`, which is made if missing: gives its descriptor, or None if another has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield descriptor
    finally:
        os.close(descriptor)


def pipeline_key() -> str | None:
    """Give the key of the pipeline run that this process belongs to; None for a stage run by hand.

    A flow names itself in `POLYWEFT_PIPELINE_RUN`; otherwise it is the nearest DVC process above, which is
    the same through whatever shell DVC started the stage.
    """
    given = os.environ.get(PIPELINE_VARIABLE, "")
    return given if _KEY.fullmatch(given) else processes.dvc_ancestor()


@dataclass(frozen=True)
class Sender:
    """The process that sends the runs of one pipeline run, or of one stage run by hand; see `tracking`."""

    key: str

    @property
    def lock(self) -> Path:
        """The file that the sender holds locked while it lives, and writes its state to."""
        return pipelines_folder() / f"{self.key}.sender"

    def running(self) -> bool:
        """Tell whether a sender for this key lives."""
        if not self.lock.exists():
            return False
        with exclusive(self.lock) as held:
            return held is None

    def state(self) -> str:
        """Give what the sender last said of itself: `starting`, `ready`, or `down: <reason>`."""
        try:
            return self.lock.read_text(encoding="utf-8").strip()
        except OSError:
            return ""

    def start(self) -> None:
        """Start a sender unless one lives; it is nobody's child, so that no stage's end takes it along."""
        if self.running():
            return
        self.lock.parent.mkdir(parents=True, exist_ok=True)
        self.lock.write_text("starting", encoding="utf-8")
        root = str(Path(__file__).resolve().parent.parent)
        environment = {k: v for k, v in os.environ.items() if k not in _NOT_FOR_SENDER}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
        environment["POLYWEFT_WORKSPACE"] = str(workspace())
        command = [sys.executable, "-m", "polyweft.tracking", "--follow", self.key]
        with (state_folder() / "tracking.log").open("ab") as log:
            subprocess.run(
                ["/bin/sh", "-c", '"$@" &', "sh", *command],
                cwd=workspace(),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                check=False,
            )


# MLFLOW_RUN_ID would override the parent; the others mark what a flow or a stage kills at its end.
_NOT_FOR_SENDER = {"MLFLOW_RUN_ID", PIPELINE_VARIABLE, SPOOL_VARIABLE, "COVERAGE_PROCESS_START"}
