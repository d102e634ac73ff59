"""The smallest data and models of every kind, for tests that need a real one in a second."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from polyweft.config import parse_section
from polyweft.data.batches import Arrays, load_arrays
from polyweft.data.shards import DATASET_FILE, Sample, write_split
from polyweft.data.tokenizer_training import write_tokenizer
from polyweft.io import write_json
from polyweft.models.build import build_model, context_of_data
from polyweft.models.family import BuildContext, Family, ModelParams
from polyweft.training.params import TrainParams

CLASSES, LABELS = ["dark", "light"], ["even", "high", "odd"]
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven"]

IMAGE = {
    "tower": "cnn", "size": 16, "resize": "squash", "normalization": "half",
    "background": [255, 255, 255], "max_pixels": 1000, "cnn": {"channels": [8, 16], "blocks": [0, 1]},
}  # fmt: skip
TEXT_TOWER = {"tower": "transformer", "transformer": {"width": 16, "layers": 1, "heads": 2, "dropout": 0.1}}
AUDIO = {
    "rate": 4000, "seconds": 0.1, "mels": 16, "window_ms": 16.0, "hop_ms": 8.0,
    "channels": [8, 16], "blocks": [0, 1],
}  # fmt: skip
HEAD = {
    "sees": ["image", "text"], "fusion": "early", "hidden": 8, "dropout": 0.1, "missing": "learned",
    "tasks": {"single_label": 1.0},
}  # fmt: skip
VIDEO = {"frames": 2, "size": 16, "cnn": {"channels": [8, 16], "blocks": [0, 1]}, "pooling": "attention"}
GRAPH = {"nodes": 8, "names": 4, "attributes": 4, "relations": 4, "width": 16}
SIZES = {"embedding_size": 8, "feature_size": 16}
DUAL_TOWER: dict[str, Any] = {
    "family": "dual_tower", **SIZES, "encoders": {"image": IMAGE, "text": TEXT_TOWER},
    "contrast": {"loss": "infonce"}, "head": HEAD,
}  # fmt: skip


def model_params(section: dict[str, Any] | None = None) -> ModelParams:
    """The section `model`, checked."""
    return parse_section(ModelParams, "model", section or DUAL_TOWER, where="a test")


def train_params(**changes: Any) -> TrainParams:
    """The section `train` of a run of seconds."""
    augment = {"shift": 0.1, "scale": 0.1, "rotate": 5.0, "flip": False}
    return TrainParams.model_validate(
        {
            "processes": 1, "strategy": "ddp", "epochs": 3, "batch_size": 8, "lr": 3e-3, "weight_decay": 0.1,
            "betas": [0.9, 0.98], "warmup_steps": 2, "clip_norm": 1.0, "precision": "fp32",
            "positives": "content", "early_stopping_epochs": 9, "validate_every": 1, "checkpoint_steps": 2,
            "augment": {**augment, "brightness": 0.1, "contrast": 0.1, "color": 0.1}, **changes,
        }
    )  # fmt: skip


def sample(number: int, seed: int = 0, *, without: tuple[str, ...] = ()) -> Sample:
    """Row `number`: a number below eight, as brightness, in words, as a tone, and so on."""
    rng = np.random.default_rng([seed, number])
    value = int(rng.integers(0, len(NUMBERS)))
    media = {
        "image": _png(value, rng),
        "audio": _wav(value, rng),
        "video": _film(value),
        "graph": _graph(value),
    }
    labels = [["even", "odd"][value % 2], *(["high"] if value > 3 else [])]
    return Sample(
        id=f"row-{number}",
        captions=[] if "text" in without else [{"text": f"the number {NUMBERS[value]}", "language": "en"}],
        label=CLASSES[value > 3],
        class_index=int(value > 3),
        labels=labels,
        target=float(value),
        group=None,
        leak=False,
        difficulty=float(value),
        media={name: content for name, content in media.items() if name not in without},
        extensions={"image": "png", "audio": "wav", "video": "mp4", "graph": "graph"},
    )


def prepare(folder: Path, *, train: int = 24, others: int = 10) -> Path:
    """A prepared folder of such rows, every fifth without an image and every seventh without text."""
    counts = {"train": train, "validation": others, "test": others}
    shards: dict[str, list[str]] = {}
    first = 0
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in counts.items():
        rows = [sample(first + row, without=_without(row)) for row in range(count)]
        shards[split] = write_split(folder, split, rows, shard_samples=16)
        first += count
    total = sum(counts.values())
    modalities = {"image": total, "text": total, "audio": total, "video": total, "graph": total}
    write_json(
        folder / DATASET_FILE,
        {"classes": CLASSES, "labels": LABELS, "splits": counts, "shards": shards,
         "modalities": modalities, "languages": ["en"]},
    )  # fmt: skip
    captions = [f"the number {number}" for number in NUMBERS]
    write_tokenizer(
        folder, captions, kind="bpe", vocabulary_size=300, max_tokens=12, lowercase=True, clip_vocabulary=None
    )
    return folder


def built(prepared: Path, section: dict[str, Any] | None = None) -> tuple[Family, BuildContext]:
    """The model of a section for prepared data; seed torch before."""
    params = model_params(section)
    context = context_of_data(params, prepared)
    return build_model(params, context), context


def arrays(prepared: Path, context: BuildContext, split: str = "train") -> Arrays:
    """A split in memory."""
    return load_arrays(prepared, split, context.readers)


def _without(row: int) -> tuple[str, ...]:
    return tuple(name for name, every in (("image", 5), ("text", 7)) if row % every == every - 1)


def _png(value: int, rng: np.random.Generator) -> bytes:
    from PIL import Image

    pixels = rng.integers(0, 60, (16, 16, 3)) + value * 25
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def _wav(value: int, rng: np.random.Generator) -> bytes:
    import soundfile

    times = np.arange(400) / 4000
    wave = 0.4 * np.sin(2 * np.pi * (200 + 150 * value) * times) + 0.01 * rng.standard_normal(400)
    buffer = io.BytesIO()
    soundfile.write(buffer, wave.astype(np.float32), 4000, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def _film(value: int) -> bytes:
    import av

    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for number in range(4):
            picture = np.full((32, 32, 3), 20 + 25 * value + 4 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return out.getvalue()


def _graph(value: int) -> bytes:
    nodes = [{"name": "dot"} for _ in range(value + 1)]
    edges = [{"source": i, "target": i + 1, "relation": "before"} for i in range(value)]
    return json.dumps({"nodes": nodes, "edges": edges}).encode()
