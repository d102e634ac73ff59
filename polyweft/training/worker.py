"""One training process, started by torchrun: `python -m polyweft.training.worker SPEC.json`.

Only the first process writes results, logs and speaks.
"""

from __future__ import annotations

import csv
import faulthandler
import io
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polyweft.config import RuntimeParams, parse_section
from polyweft.data.batches import load_arrays
from polyweft.errors import PolyweftError
from polyweft.io import read_json, write_json, write_text
from polyweft.models.build import build_model, context_of_data, save_trained
from polyweft.models.family import ModelParams
from polyweft.processes import die_with_parent
from polyweft.progress import Bar
from polyweft.stage_run import StageRun
from polyweft.training.allocator import keep_freed_memory
from polyweft.training.distill import DistillationTeacher
from polyweft.training.distributed import World, world
from polyweft.training.init_from import load_into, other_tokens
from polyweft.training.learner import Log, Surroundings
from polyweft.training.loop import Result, fit
from polyweft.training.params import TrainParams
from polyweft.training.profile import profiled
from polyweft.training.system_metrics import sampled
from polyweft.workspace import workspace


def main() -> int:
    """Train as the specification says; an error of ours goes into `error.json` beside it, and exit code 1."""
    die_with_parent()
    keep_freed_memory()
    faulthandler.enable()
    ready = time.time()
    place = Path(sys.argv[1])
    stopping = _note_signals()
    try:
        spec = read_json(place)
        with world() as here:
            _train(spec, here, place.parent, ready, stopping)
    except PolyweftError as error:
        write_json(place.parent / "error.json", {"message": str(error), "rank": os.environ.get("RANK", "0")})
        return 1
    return 0


def _train(spec: dict[str, Any], here: World, work: Path, ready: float, stopping: Callable[[], bool]) -> None:
    params = parse_section(TrainParams, "train", spec["train"], where="params.yaml")
    model_params = parse_section(ModelParams, "model", spec["model"], where="params.yaml")
    runtime = parse_section(RuntimeParams, "runtime", spec["runtime"], where="params.yaml")
    prepared, out = Path(spec["prepared"]), Path(spec["out"])
    torch.set_num_threads(max(1, runtime.threads // params.processes))
    torch.use_deterministic_algorithms(True)
    # Nothing reads memory before it is written; to fill all of it costs time in every step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.manual_seed(runtime.seed)
    context = context_of_data(model_params, prepared)
    model = build_model(model_params, context)
    with _reading(work, here) as reading:
        train, validation = (
            load_arrays(prepared, name, context.readers, reading) for name in ("train", "validation")
        )
    log, trace = _logger(here, spec.get("spool")), workspace() / "reports" / "train-trace.json.gz"
    with (
        Bar("training", shown=here.is_main) as bar,
        sampled(log if here.is_main else None),
        profiled(params.profile_steps, trace, here) as step_done,
    ):
        if params.init_from is not None:
            source = workspace() / params.init_from
            loaded, listed = load_into(model, source), workspace() / "reports" / "init_from.json"
            bar.say(f"{loaded}\n  every name: {listed.relative_to(workspace())}")
            if here.is_main:
                write_json(listed, vars(loaded))
            if warning := other_tokens(source, prepared):
                bar.say(warning)
        around = Surroundings(
            world=here,
            checkpoints=work,
            log=log,
            bar=bar,
            stopping=stopping,
            step_done=step_done,
            teacher=DistillationTeacher.of(params.distill, model_params, here.device),
        )
        result = fit(model, params, context.readers, train, validation, around, seed=runtime.seed)
    if here.is_main:
        parameters = sum(int(np.prod(p.shape)) for p in model.parameters())
        fresh = build_model(model_params, context)  # the trained one may be divided or wrapped
        fresh.load_state_dict(result.weights)
        save_trained(out, fresh, model_params, context)
        for name in ("tokenizer.json", "text.json"):
            if (prepared / name).exists():
                shutil.copyfile(prepared / name, out / name)
        _write_curves(out, result)
        write_json(work / "result.json", _summary(result, parameters, len(train), here, ready))


class _reading:  # noqa: N801  (used as a function)
    """Notes the sample that is being decoded in a file, for the message when decoding kills the process."""

    def __init__(self, work: Path, here: World) -> None:
        self.path = work / f"reading-{here.rank}.txt"

    def __enter__(self) -> Callable[[str], None]:
        self.handle = self.path.open("wb", buffering=0)
        return self.note

    def note(self, sample: str) -> None:
        """Write the id over the one before."""
        self.handle.seek(0)
        self.handle.write(sample.encode().ljust(256)[:256])

    def __exit__(self, *error: object) -> None:
        self.handle.close()
        self.path.unlink(missing_ok=True)


def _note_signals() -> Callable[[], bool]:
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: asked.append(number))
    return lambda: bool(asked)


def _logger(here: World, spool: str | None) -> Log:
    if not here.is_main or not spool:
        return lambda metrics, step: None
    run = StageRun.attach(Path(spool))
    return lambda metrics, step: run.metrics(metrics, step)


def _write_curves(out: Path, result: Result) -> None:
    curve = io.StringIO()
    writer = csv.writer(curve, lineterminator="\n")
    writer.writerow(result.progress.names)
    writer.writerows([[int(row[0]), *row[1:]] for row in result.curve])
    write_text(out / "curves.csv", curve.getvalue())
    names = sorted({name for entry in result.progress.validations for name in entry} - {"epoch"})
    epochs = io.StringIO()
    writer = csv.writer(epochs, lineterminator="\n")
    writer.writerow(["epoch", *names])
    writer.writerows(
        [
            [int(entry["epoch"]), *(entry.get(name, "") for name in names)]
            for entry in result.progress.validations
        ]
    )
    write_text(out / "validation.csv", epochs.getvalue())


def _summary(result: Result, parameters: int, rows: int, here: World, ready: float) -> dict[str, Any]:
    progress = result.progress
    facts: dict[str, Any] = {
        "best_epoch": progress.best_epoch,
        "epochs": len(progress.validations),
        "parameters": parameters,
        "processes": here.size,
        "steps": progress.step,
        "stopped_early": progress.stopped,
        "train_samples": rows,
    }
    if result.curve:
        facts["final_loss"] = result.curve[-1][1]
    if progress.best_epoch:
        chosen = next(v for v in progress.validations if int(v["epoch"]) + 1 == progress.best_epoch)
        facts |= {f"validation_{name}": value for name, value in chosen.items() if name != "epoch"}
    run_facts = {
        "samples_per_second": round(result.samples_per_second, 1),
        "resumed_from_step": result.resumed_from,
    }
    return {"facts": facts, "run_facts": run_facts, "ready": ready}


if __name__ == "__main__":
    sys.exit(main())
