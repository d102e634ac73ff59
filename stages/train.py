"""Train the joint model on prepared shards, with torchrun."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from polyweft.config import RuntimeParams
from polyweft.errors import TrainingError
from polyweft.hashing import md5_path
from polyweft.io import read_json, write_json
from polyweft.models.build import ModelParams
from polyweft.processes import guarded
from polyweft.report import Report
from polyweft.training.params import TrainParams
from polyweft.workspace import state_folder
from stages.entry import enter

# What a checkpoint's bytes depend on besides the settings and the data.
CODE = ("polyweft/models", "polyweft/training", "polyweft/data/batches.py", "polyweft/data/decode.py")


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
    work.mkdir(parents=True, exist_ok=True)
    for name in ("error.json", "result.json"):
        (work / name).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    paths = {"prepared": str(prepared.absolute()), "out": str(out.absolute())}
    write_json(work / "spec.json", {**sections, **paths})
    begin = time.time()
    code = _torchrun(work / "spec.json", params.processes, max(1, runtime.threads // params.processes))
    if code != 0:
        raise TrainingError(_reason(work, code))
    result = read_json(work / "result.json")
    shutil.rmtree(work)
    startup = {"startup_seconds": round(result["ready"] - begin, 2)}
    return Report(facts=result["facts"], run_facts={**result["run_facts"], **startup})


def _key(sections: dict[str, dict[str, Any]], prepared: Path) -> str:
    root = Path(__file__).parent.parent
    parts = [sections, md5_path(prepared), *(md5_path(root / path) for path in CODE)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _torchrun(spec: Path, processes: int, threads: int) -> int:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc-per-node={processes}",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=127.0.0.1:0",
        "--local-addr=127.0.0.1",
        "-m",
        "polyweft.training.worker",
        str(spec),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    log = spec.parent / "torchrun.log"
    with log.open("wb") as errors:
        return subprocess.run(guarded(command), env=environment, stderr=errors, check=False).returncode


def _reason(work: Path, code: int) -> str:
    if (work / "error.json").exists():
        return str(read_json(work / "error.json")["message"])
    tail = (work / "torchrun.log").read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
    return "\n".join(
        [
            f"training ended with code {code}: a worker died. Run `dvc repro` to go on from the last "
            f"checkpoint; the full log is {work / 'torchrun.log'}. Its last lines:",
            *tail,
        ]
    )


if __name__ == "__main__":
    enter(run)
