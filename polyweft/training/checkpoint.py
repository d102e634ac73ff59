"""Checkpoints that a killed run resumes from: safetensors and JSON, written whole or not at all.

They live outside the stage's output folder, which DVC empties before each run, in a folder keyed by what
determines the result (see `key`). A checkpoint is a folder `step-<n>`: `tensors.safetensors` and
`state.json`, which holds the tensors' SHA-256. It is written aside and renamed, so a folder that stands is
complete; one that is damaged later is told by the hash and passed over.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from polyweft.io import write_bytes, write_json


def save(
    folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any], *, keep: int = 2
) -> None:
    """Write checkpoint `step` below `folder` and remove all but the last `keep`."""
    from safetensors.torch import save as serialise

    aside, place = folder / f".step-{step:09d}", folder / f"step-{step:09d}"
    shutil.rmtree(aside, ignore_errors=True)
    content = serialise({name: tensor.detach().contiguous() for name, tensor in tensors.items()})
    write_bytes(aside / "tensors.safetensors", content)
    write_json(aside / "state.json", {**state, "step": step, "sha256": hashlib.sha256(content).hexdigest()})
    shutil.rmtree(place, ignore_errors=True)
    aside.rename(place)
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)


def latest(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], list[str]] | None:
    """The newest whole checkpoint's tensors and state, and a warning for each damaged one before it.

    None where there is no whole checkpoint.
    """
    from safetensors.torch import load

    warnings: list[str] = []
    for place in sorted(folder.glob("step-*"), reverse=True):
        try:
            content = (place / "tensors.safetensors").read_bytes()
            state = json.loads((place / "state.json").read_text(encoding="utf-8"))
            whole = state["sha256"] == hashlib.sha256(content).hexdigest()
        except (OSError, ValueError, KeyError):
            whole = False
        if whole:
            return load(content), state, warnings
        warnings.append(f"checkpoint {place.name} is damaged; the one before it is used")
    return None
