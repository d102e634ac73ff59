"""Train the model on prepared shards, with torchrun."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polyweft.config import RuntimeParams
from polyweft.errors import TrainingError
from polyweft.hashing import md5_path
from polyweft.io import read_json, write_json
from polyweft.modalities import MODALITIES
from polyweft.models.family import ModelParams
from polyweft.report import Report
from polyweft.spool import SPOOL_VARIABLE
from polyweft.training.launch import launch
from polyweft.training.memory import chosen_micro_batch
from polyweft.training.params import TrainParams
from polyweft.workspace import state_folder, workspace
from stages.entry import enter

# What a checkpoint's bytes depend on besides the settings and the data.
CODE = (
    "polyweft/losses",
    "polyweft/modalities.py",
    "polyweft/models",
    "polyweft/training",
    "polyweft/data/batches.py",
    *(f"{modality.reader.replace('.', '/')}.py" for modality in MODALITIES.values()),
)


def run(
    params: TrainParams, model: ModelParams, runtime: RuntimeParams, *, prepared: Path, out: Path
) -> Report:
    """Train, or go on from the last checkpoint of the same settings, data and code.

    Raises
    ------
    TrainingError
        A worker failed or died; its message is passed on.
    """
    sections = {"train": params.model_dump(), "model": model.model_dump(), "runtime": runtime.model_dump()}
    work = state_folder() / "checkpoints" / _key(sections, prepared)
    out.mkdir(parents=True, exist_ok=True)
    paths = {"prepared": str(prepared.absolute()), "out": str(out.absolute())}
    paths |= {"spool": os.environ[SPOOL_VARIABLE]} if SPOOL_VARIABLE in os.environ else {}
    begin = time.time()
    with _alone_with(work):
        write_json(work / "spec.json", {**sections, **paths})
        code = _launch_until_it_fits(work, params, max(1, runtime.threads // params.processes))
        if code != 0:
            raise TrainingError(_reason(work, code))
        result = read_json(work / "result.json")
        shutil.rmtree(work)
    startup = {"startup_seconds": round(result["ready"] - begin, 2)}
    return Report(facts=result["facts"], run_facts={**result["run_facts"], **startup})


def _key(sections: dict[str, dict[str, Any]], prepared: Path) -> str:
    root = Path(__file__).parent.parent
    named = set(_texts([sections["train"], sections["model"]]))
    models = [md5_path(workspace() / path) for path in sorted(named) if _is_weights(path)]
    parts = [sections, md5_path(prepared), models, *(md5_path(root / path) for path in CODE)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _texts(settings: Any) -> Iterator[str]:
    """Every text in nested settings: those that name weights (a champion, a teacher, towers) among them."""
    if isinstance(settings, str):
        yield settings
    elif isinstance(settings, dict | list):
        for inner in settings.values() if isinstance(settings, dict) else settings:
            yield from _texts(inner)


def _is_weights(path: str) -> bool:
    place = workspace() / path
    inside = (place, place / "config.json", place / "state.json")  # a file, a model's folder, a checkpoint's
    return any(os.path.isfile(file) for file in inside)  # noqa: PTH113  (a text too long for a name is none)


@contextlib.contextmanager
def _alone_with(work: Path) -> Iterator[None]:
    """Wait until no other process trains in `work`: one being stopped may still write a checkpoint."""
    work.parent.mkdir(parents=True, exist_ok=True)
    with work.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _launch_until_it_fits(work: Path, params: TrainParams, threads: int) -> int:
    """Start training, and again as long as its processes ask for a smaller micro-batch; the exit code."""
    while True:
        for left in ("error.json", "result.json", "reading-*.txt"):
            for path in work.glob(left):
                path.unlink()
        before = chosen_micro_batch(work, params.micro_batch)
        code = launch(work / "spec.json", processes=params.processes, agents=params.agents, threads=threads)
        if code == 0 or chosen_micro_batch(work, params.micro_batch) == before:
            return code


def _reason(work: Path, code: int) -> str:
    if (work / "error.json").exists():
        return str(read_json(work / "error.json")["message"])
    logs = sorted(work.glob("agent-*.log"), key=lambda path: path.stat().st_mtime)
    tail = logs[-1].read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
    reading = [path.read_text(encoding="utf-8").strip() for path in sorted(work.glob("reading-*.txt"))]
    samples = ", ".join(sample for sample in reading if sample)
    return "\n".join(
        [
            f"training ended with code {code}: a worker died{f' reading {samples}' if samples else ''}. Run "
            f"`dvc repro` to go on from the last checkpoint; the full log is {logs[-1]}. Its last lines:",
            *tail,
        ]
    )


if __name__ == "__main__":
    enter(run)
