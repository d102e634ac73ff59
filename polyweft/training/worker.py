"""One training process, started by torchrun: `python -m polyweft.training.worker SPEC.json`.

Only the first process writes files, logs and speaks.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polyweft.config import RuntimeParams, parse_section
from polyweft.data.batches import load_arrays
from polyweft.data.shards import open_dataset
from polyweft.data.tokenizer_training import load_tokenizer
from polyweft.errors import PolyweftError
from polyweft.io import read_json, write_json, write_text
from polyweft.models.build import ModelParams, build_model, image_spec, save_trained
from polyweft.processes import die_with_parent
from polyweft.progress import Bar
from polyweft.stage_run import StageRun
from polyweft.training.distributed import World, world
from polyweft.training.loop import CURVE, Log, Result, fit
from polyweft.training.params import TrainParams


def main() -> int:
    """Train as the specification says; an error of ours goes into `error.json` beside it, and exit code 1."""
    die_with_parent()
    ready = time.time()
    place = Path(sys.argv[1])
    try:
        spec = read_json(place)
        with world() as here:
            _train(spec, here, place.parent, ready)
    except PolyweftError as error:
        write_json(place.parent / "error.json", {"message": str(error), "rank": os.environ.get("RANK", "0")})
        return 1
    return 0


def _train(spec: dict[str, Any], here: World, work: Path, ready: float) -> None:
    params = parse_section(TrainParams, "train", spec["train"], where="params.yaml")
    model_params = parse_section(ModelParams, "model", spec["model"], where="params.yaml")
    runtime = parse_section(RuntimeParams, "runtime", spec["runtime"], where="params.yaml")
    prepared, out = Path(spec["prepared"]), Path(spec["out"])
    torch.set_num_threads(max(1, runtime.threads // params.processes))
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(runtime.seed)
    tokenizer = load_tokenizer(prepared)
    pixels = image_spec(model_params.image)
    classes = open_dataset(prepared).classes
    text = read_json(prepared / "text.json")
    model = build_model(model_params, classes=len(classes), text=text)
    train, validation = (load_arrays(prepared, name, pixels, tokenizer) for name in ("train", "validation"))
    with Bar("training", shown=here.is_main) as bar:
        result = fit(
            model,
            params,
            pixels,
            train,
            validation,
            here,
            seed=runtime.seed,
            checkpoints=work,
            log=_logger(here),
            bar=bar,
        )
    if here.is_main:
        model.load_state_dict(result.weights)
        save_trained(out, model.cpu(), model_params, classes=classes, text=text)
        for name in ("tokenizer.json", "text.json"):
            if (prepared / name).exists():
                shutil.copyfile(prepared / name, out / name)
        _write_curves(out, result)
        parameters = sum(int(np.prod(p.shape)) for p in model.parameters())
        write_json(work / "result.json", _summary(result, parameters, len(train), here, ready))


def _logger(here: World) -> Log:
    spool = os.environ.get("POLYWEFT_SPOOL")
    if not here.is_main or not spool:
        return lambda metrics, step: None
    run = StageRun.attach(Path(spool))
    return lambda metrics, step: run.metrics(metrics, step)


def _write_curves(out: Path, result: Result) -> None:
    curve = io.StringIO()
    writer = csv.writer(curve, lineterminator="\n")
    writer.writerow(CURVE)
    writer.writerows([[int(row[0]), int(row[1]), *row[2:]] for row in result.progress.curve])
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
        "epochs": len({int(row[1]) for row in progress.curve}),
        "parameters": parameters,
        "processes": here.size,
        "steps": progress.step,
        "stopped_early": progress.stopped,
        "train_samples": rows,
    }
    if progress.curve:
        facts["final_loss"] = progress.curve[-1][2]
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
