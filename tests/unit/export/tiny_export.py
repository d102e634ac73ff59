"""A tiny trained model, prepared data for it, and its export: real files, made in a second or two."""

from __future__ import annotations

import functools
import io
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from polyweft.config import RuntimeParams
from polyweft.data.shards import DATASET_FILE, Sample, write_split
from polyweft.export.acceptance import ExportParams
from polyweft.io import read_json, write_json
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


ENCODERS: dict[str, dict[str, Any]] = {
    "image": {
        "tower": "vit",
        "size": 16,
        "resize": "pad",
        "normalization": "clip",
        "background": [255, 255, 255],
        "max_pixels": 1_000_000,
        "cnn": {"channels": [8, 16], "blocks": [1, 1]},
        "vit": {"patch": 8, "width": 16, "layers": 1, "heads": 2, "pool": "mean"},
    },
    "text": {
        "tower": "transformer",
        "transformer": {"width": 16, "layers": 1, "heads": 2, "dropout": 0.1},
        "lstm": {"width": 16, "hidden": 8, "layers": 1, "dropout": 0.1},
    },
    "audio": {
        **{"rate": 8000, "seconds": 0.2, "mels": 16, "channels": [8], "blocks": [1]},
    },
    "graph": {"nodes": 4, "names": 8, "attributes": 8, "relations": 4, "width": 16, "layers": 1},
}
"""A small encoder of each modality but video, whose tower is an image's."""


def model_params(modalities: Sequence[str] = ("image", "text"), **changes: Any) -> dict[str, Any]:
    return {
        "family": "tiny",
        "embedding_size": 8,
        "feature_size": 16,
        "encoders": {name: ENCODERS[name] for name in modalities},
        "sees": list(modalities),
        **changes,
    }


def write_trained(
    folder: Path,
    *,
    modalities: Sequence[str] = ("image", "text"),
    classes: list[str] | None = None,
    labels: Sequence[str] = (),
    tower: str = "vit",
    text_tower: str = "transformer",
    **changes: Any,
) -> Path:
    """A model with random weights, as `train` leaves one."""
    import torch

    from polyweft.data.reader import open_readers
    from polyweft.models.build import build_model, save_trained
    from polyweft.models.family import BuildContext, ModelParams
    from tests.unit.export import tiny_family

    assert tiny_family.Params
    given = model_params(modalities, **changes)
    if "image" in modalities:
        given["encoders"]["image"] = {**ENCODERS["image"], "tower": tower}
    if "text" in modalities:
        given["encoders"]["text"] = {**ENCODERS["text"], "tower": text_tower}
    params = ModelParams.model_validate(given)
    text = TEXT if "text" in modalities else {}
    folder.mkdir(parents=True, exist_ok=True)
    if text:
        write_text(folder, changes.get("generation") is not None)
    readers = open_readers(params.reader_specs(), folder)
    if changes.get("generation"):
        text = read_json(folder / "text.json")
    context = BuildContext(CLASSES if classes is None else classes, list(labels), readers, text)
    torch.manual_seed(0)
    module = build_model(params, context)
    # Larger weights than at the start: else all answers are nearly equal and nothing can be told apart.
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if weight.ndim > 1:
                weight.mul_(4.0 if "embedding" in name or "positions" in name else 2.0)
    save_trained(folder, module, params, context)
    return folder


def write_text(folder: Path, readable: bool) -> None:
    """The tokenizer's files: hashing, or a BPE, whose ids can be read back as text."""
    if not readable:
        write_json(folder / "text.json", TEXT)
        return
    from polyweft.data.tokenizer_training import write_tokenizer

    captions = [f"a red {name} number {number}" for name in CLASSES for number in range(3)]
    write_tokenizer(
        folder, captions, kind="bpe", vocabulary_size=300, max_tokens=12, lowercase=True, clip_vocabulary=None
    )


def picture(seed: int, size: tuple[int, int] = (20, 14), form: str = "PNG") -> bytes:
    """An image of noise in the given format."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def clip(seed: int) -> bytes:
    """A WAV of noise."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, np.random.default_rng(seed).uniform(-1, 1, 1600), 8000, format="WAV")
    return buffer.getvalue()


def scene(seed: int) -> bytes:
    """A scene graph of two or three nodes."""
    nodes = [
        {"name": CLASSES[(seed + place) % 3], "position": [0.1 * place, 0.5]} for place in range(2 + seed % 2)
    ]
    return json.dumps({"nodes": nodes, "edges": [{"source": 0, "target": 1, "relation": "above"}]}).encode()


def sample(number: int, *, lacks: Sequence[str] = ()) -> Sample:
    """A row with every modality but those that it lacks."""
    english = {"text": f"a red {CLASSES[number % 3]} number {number}", "language": "en"}
    chinese = {"text": f"一个红色的圆 {number}", "language": "zh"}
    jpeg = number % 2 == 1
    media = {
        "image": picture(number, form="JPEG" if jpeg else "PNG"),
        "audio": clip(number),
        "graph": scene(number),
    }
    extensions = {"image": "jpg" if jpeg else "png", "audio": "wav", "graph": "graph"}
    return Sample(
        id=f"row-{number}",
        captions=[english, chinese] if "text" not in lacks else [],
        label=CLASSES[number % 3],
        class_index=number % 3,
        target=None,
        group=None,
        leak=False,
        labels=["round"] if number % 3 == 0 else ["sharp"],
        media={name: content for name, content in media.items() if name not in lacks},
        extensions={name: end for name, end in extensions.items() if name not in lacks},
    )


def samples(modalities: Sequence[str] = ("image", "text")) -> list[Sample]:
    """Eight rows with all of `modalities`, and one without each (and with no others than these)."""
    others = [name for name in ENCODERS if name not in modalities]
    whole = [sample(number, lacks=others) for number in range(8)]
    return whole + [sample(8 + place, lacks=[*others, name]) for place, name in enumerate(modalities)]


def write_prepared(folder: Path, rows: list[Sample] | None = None) -> Path:
    """Prepared data with a test split alone."""
    rows = samples() if rows is None else rows
    names = write_split(folder, "test", rows, shard_samples=4)
    content = {
        "classes": CLASSES,
        "labels": ["round", "sharp"],
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


KINDS = ("joint", "fused", "captioner")


@functools.cache
def made(kind: str = "joint") -> Made:
    """One export of each kind, made once a test run: PyTorch's exporter takes seconds.

    `joint`: image and text in one space, with a head that sees both. `fused`: four modalities without a joint
    space, two tasks; text is given token by token. `captioner`: describes images.
    """
    from stages.export import run

    root = Path(_keep().name) / kind
    forms: dict[str, dict[str, Any]] = {
        "joint": {},
        "fused": {
            "modalities": tuple(ENCODERS),
            "embedding_size": 0,
            "labels": ["round", "sharp"],
            "text_tower": "lstm",
            "tokens": ["text", "graph"],
        },
        "captioner": {
            "classes": [],
            "tower": "cnn",
            "tokens": ["image"],
            "generation": {"strategy": "beam", "beams": 2, "max_tokens": 6},
        },
    }
    form = forms[kind]
    prepared = write_prepared(root / "prepared", samples(form.get("modalities", ("image", "text"))))
    trained = write_trained(root / "trained", **form)
    report = run(PARAMS, RUNTIME, prepared=prepared, trained=trained, out=root / "export")
    return Made(prepared, trained, root / "export", report)


@functools.cache
def _keep() -> tempfile.TemporaryDirectory[str]:
    # Held by the cache until the interpreter ends, which then removes the folder.
    return tempfile.TemporaryDirectory(prefix="polyweft-tiny-export-")
