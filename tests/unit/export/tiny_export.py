"""A tiny trained model, prepared data for it, and its export: real files, made in a second or two."""

from __future__ import annotations

import functools
import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from polyweft.config import RuntimeParams
from polyweft.data.shards import DATASET_FILE, Sample, write_split
from polyweft.export.acceptance import ExportParams
from polyweft.io import write_json
from polyweft.report import Report

CLASSES = ["circle", "square", "star"]
TEXT = {
    "kind": "hash",
    "max_tokens": 12,
    "pad_id": 0,
    "start_id": 1,
    "end_id": 2,
    "vocabulary_size": 64,
    "lowercase": True,
}
RUNTIME = RuntimeParams(seed=7, threads=1)
PARAMS = ExportParams(
    opset=18,
    batch_sizes=[1, 2, 3],
    text_lengths=[2, 5],
    max_abs_error=1e-4,
    max_metric_difference=0.01,
    metric_split="test",
    metric_rows=8,
    int8=True,
    int8_max_loss=0.5,
    golden_queries=6,
    tensorrt=True,
)


def model_params(tower: str = "vit", sees: str = "both") -> dict[str, Any]:
    return {
        "family": "dual_tower",
        "embedding_size": 8,
        "feature_size": 16,
        "image": {
            "tower": tower,
            "size": 16,
            "resize": "pad",
            "normalization": "clip",
            "background": [255, 255, 255],
            "max_pixels": 1_000_000,
            "cnn": {"channels": [8, 16], "blocks": [1, 1]},
            "vit": {"patch": 8, "width": 16, "layers": 1, "heads": 2, "pool": "class_token"},
        },
        "text": {"width": 16, "layers": 1, "heads": 2, "dropout": 0.1},
        "head": {"sees": sees, "hidden": 16, "dropout": 0.1},
    }


def write_trained(
    folder: Path, *, tower: str = "vit", sees: str = "both", classes: list[str] | None = None
) -> Path:
    """A model with random weights, as `train` leaves one."""
    import torch

    from polyweft.models.build import ModelParams, build_model, save_trained

    names = CLASSES if classes is None else classes
    params = ModelParams.model_validate(model_params(tower, sees))
    torch.manual_seed(0)
    module = build_model(params, classes=len(names), text=TEXT)
    # Larger weights than at the start: else all answers are nearly equal and nothing can be told apart.
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if weight.ndim > 1:
                weight.mul_(4.0 if "tokens" in name or "positions" in name else 2.0)
    save_trained(folder, module, params, classes=names, text=TEXT)
    write_json(folder / "text.json", TEXT)
    return folder


def picture(seed: int, size: tuple[int, int] = (20, 14), form: str = "PNG") -> bytes:
    """An image of noise in the given format."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def sample(number: int, *, image: bool = True, text: bool = True) -> Sample:
    english = {"text": f"a red {CLASSES[number % 3]} number {number}", "language": "en"}
    chinese = {"text": f"一个红色的圆 {number}", "language": "zh"}
    return Sample(
        id=f"row-{number}",
        captions=[english, chinese] if text else [],
        label=CLASSES[number % 3],
        class_index=number % 3,
        target=None,
        group=None,
        leak=False,
        image=picture(number, form="JPEG" if number % 2 else "PNG") if image else None,
        audio=None,
        image_extension="jpg" if number % 2 else "png",
    )


def samples() -> list[Sample]:
    """Eight whole rows, one without image and one without text."""
    return [*(sample(number) for number in range(8)), sample(8, image=False), sample(9, text=False)]


def write_prepared(folder: Path, rows: list[Sample] | None = None) -> Path:
    """Prepared data with a test split alone."""
    rows = samples() if rows is None else rows
    names = write_split(folder, "test", rows, shard_samples=4)
    content = {
        "classes": CLASSES,
        "splits": {"train": 0, "validation": 0, "test": len(rows)},
        "shards": {"train": [], "validation": [], "test": names},
        "modalities": {},
        "languages": ["en", "zh"],
    }
    write_json(folder / DATASET_FILE, content)
    return folder


@dataclass(frozen=True)
class Made:
    """The folders that the stage `export` read and left, and its report."""

    prepared: Path
    trained: Path
    exported: Path
    report: Report


@functools.cache
def made() -> Made:
    """One export of a ViT whose head sees both, made once a test run: PyTorch's exporter takes seconds."""
    from stages.export import run

    root = Path(_keep().name)
    prepared, trained = write_prepared(root / "prepared"), write_trained(root / "trained")
    report = run(PARAMS, RUNTIME, prepared=prepared, trained=trained, out=root / "export")
    return Made(prepared, trained, root / "export", report)


@functools.cache
def _keep() -> tempfile.TemporaryDirectory[str]:
    # Held by the cache until the interpreter ends, which then removes the folder.
    return tempfile.TemporaryDirectory(prefix="polyweft-tiny-export-")
