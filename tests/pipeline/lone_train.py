"""A folder in which `python -m stages.train` runs by itself, on the smallest data, and what it left there."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import toy
from ruamel.yaml import YAML

from tests import small

COMMAND = ("-m", "stages.train", "--prepared", "prepared", "--out", "out")
OUTPUTS = ("model.safetensors", "curves.csv", "validation.csv", "config.json")


def make(folder: Path, **train: Any) -> Path:
    """Prepare the data and write params.yaml; `train` changes keys of that section."""
    folder.mkdir()
    small.prepare(folder / "prepared", train=48)
    common = {"processes": 2, "epochs": 30, "batch_size": 16, "checkpoint_steps": 3}
    settings = small.train_params(**{**common, "early_stopping_epochs": 99, **train})
    sections = {
        "runtime": {"seed": 3, "threads": 2},
        "model": small.DUAL_TOWER,
        "train": settings.model_dump(),
    }
    with (folder / "params.yaml").open("w", encoding="utf-8") as handle:
        YAML().dump(json.loads(json.dumps(sections)), handle)
    return folder


def change(folder: Path, settings: dict[str, Any]) -> None:
    """Set keys of params.yaml, such as `train.lr`, to values that nobody has checked."""
    path = folder / "params.yaml"
    content = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    for key, value in settings.items():
        *sections, last = key.split(".")
        section = content
        for name in sections:
            section = section[name]
        section[last] = value
    with path.open("w", encoding="utf-8") as handle:
        YAML().dump(content, handle)


def start(folder: Path) -> subprocess.Popen[str]:
    """Start the stage; what it says is in `<folder>/output`."""
    return toy.python(folder, *COMMAND)


def finish(folder: Path) -> dict[str, Any]:
    """Run the stage to its end; its summary."""
    process = start(folder)
    code = process.wait(timeout=300)
    assert code == 0, f"it ended with {code}:\n{(folder / 'output').read_text()[-6000:]}"
    summary: dict[str, Any] = json.loads((folder / ".polyweft" / "summary" / "train.json").read_text())
    return summary


def outputs(folder: Path) -> dict[str, bytes]:
    """The bytes of everything that training leaves for the next stage."""
    return {name: (folder / "out" / name).read_bytes() for name in OUTPUTS}


def steps(folder: Path) -> list[int]:
    """The steps of which a checkpoint stands."""
    return sorted(int(p.name.removeprefix("step-")) for p in folder.glob(".polyweft/checkpoints/*/step-*"))


def wait_for_step(folder: Path, step: int) -> None:
    """Wait until a checkpoint of `step` or a later one stands."""
    assert toy.wait_until(lambda: (steps(folder) or [0])[-1] >= step, 120), (folder / "output").read_text()


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The training processes below the stage."""
    return [p for p in psutil.Process(process.pid).children(recursive=True) if _runs(p, "training.worker")]


def agents(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The torchrun agents below the stage."""
    return [p for p in psutil.Process(process.pid).children(recursive=True) if _runs(p, "training.launch")]


def wait_for_end(processes: Iterator[psutil.Process] | list[psutil.Process]) -> None:
    """Hold that none of `processes` outlives what was killed."""
    alive = psutil.wait_procs(list(processes), timeout=20)[1]
    assert not alive, [process.cmdline() for process in alive]
    time.sleep(0.05)


def _runs(process: psutil.Process, module: str) -> bool:
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    # An agent's own command line names the module of its workers too.
    named = [word for word in words if word.startswith("polyweft.")]
    return bool(named) and named[0] == f"polyweft.{module}"
