"""Tiny families, and their losses and gradients on one batch or on a process's part of it.

As a program (`RANK WORLD FOLDER`) a process of several leaves the mean over the processes.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from polyweft.data.reader import open_readers
from polyweft.io import write_json
from polyweft.losses.targets import Targets
from polyweft.models.build import build_model
from polyweft.models.family import BuildContext, Family, ModelParams
from polyweft.training.gradients import Step, Work, average_gradients, backward_cached, backward_whole
from tests.group import joined

ROWS = 16
CLASSES, LABELS = ["a", "b", "c"], ["x", "y"]
MODALITIES = ["image", "text", "audio"]
ENCODERS: dict[str, dict[str, Any]] = {
    "image": {
        "tower": "cnn", "size": 16, "resize": "squash", "normalization": "half",
        "background": [255, 255, 255], "max_pixels": 1000, "cnn": {"channels": [8], "blocks": [1]},
    },
    "text": {"tower": "lstm", "lstm": {"width": 8, "hidden": 8}},
    "audio": {"rate": 8000, "seconds": 0.25, "mels": 16, "channels": [8], "blocks": [1]},
}  # fmt: skip
HEAD = {
    "sees": MODALITIES, "fusion": "attention", "hidden": 8, "dropout": 0.0, "missing": "impute", "heads": 2,
    "tasks": {"single_label": 1.0, "multi_label": 0.5, "regression": 0.5}, "balance": "uncertainty",
    "class_weights": "balanced", "label_smoothing": 0.1,
}  # fmt: skip
INFONCE = {"loss": "infonce", "soft_targets": 0.2, "hard_negatives": 0.5, "within_weight": 0.5}
# At weight 1 a gradient here is 30, whose last place in fp32 is 2e-6.
SIGLIP = {"loss": "siglip", "chunk": 5, "weight": 0.1}
CASES: dict[str, dict[str, Any]] = {
    "trimodal infonce": {"family": "trimodal", "contrast": INFONCE, "head": HEAD | {"fusion": "late"}},
    "trimodal siglip": {"family": "trimodal", "contrast": SIGLIP},
    "fusion_classifier": {"family": "fusion_classifier", "embedding_size": 0, "head": HEAD},
}


def params_of(**changes: Any) -> ModelParams:
    """The section `model` of a tiny family; `changes` name it at least."""
    plain = {"embedding_size": 8, "feature_size": 8, "encoders": ENCODERS}
    return ModelParams.model_validate(plain | changes)


def build(folder: Path, **changes: Any) -> tuple[Family, BuildContext]:
    """A tiny family with fixed weights; its tokenizer's file is written into `folder`."""
    text = {"kind": "hash", "max_tokens": 8, "pad_id": 0, "start_id": 1, "end_id": 2, "vocabulary_size": 30}
    write_json(folder / "text.json", text | {"lowercase": True})
    params = params_of(**changes)
    context = BuildContext(CLASSES, LABELS, open_readers(params.reader_specs(), folder), text)
    torch.manual_seed(0)
    return build_model(params, context), context


def batch(mine: slice = slice(None)) -> Work:
    """Rows of the joined batch; some lack a modality, some are dropped for the head, some have no target."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 30, (ROWS, 6), generator=generator)
    ids[:, 5] = ids[3, 2] = 2
    present = (torch.rand(ROWS, 3, generator=generator) < 0.8).float()
    present[:4] = 1
    labels = (torch.rand(ROWS, 2, generator=generator) < 0.5).float()
    labels[6] = torch.nan
    value = torch.randn(ROWS, generator=generator)
    value[7] = torch.nan
    inputs = {
        "image": torch.randn(ROWS, 3, 16, 16, generator=generator),
        "text": ids,
        "audio": torch.randn(ROWS, 16, 26, generator=generator),
    }
    targets = Targets(
        class_B=torch.randint(-1, 3, (ROWS,), generator=generator)[mine],
        labels_BK=labels[mine],
        value_B=value[mine],
        keys={name: torch.randint(0, 12, (ROWS,), generator=generator)[mine] for name in MODALITIES},
        present_BM=present[mine],
        modalities=MODALITIES,
        ids_BT=ids[mine],
    )
    dropped = present * (torch.rand(ROWS, 3, generator=generator) < 0.9)
    return Work({name: x[mine] for name, x in inputs.items()}, dropped[mine], targets, seed=0)


def outcome(folder: Path, rank: int, world: int, micro_batches: int) -> dict[str, Tensor]:
    """By case and name the losses and gradients, the mean over the processes."""
    mine = slice(rank * ROWS // world, (rank + 1) * ROWS // world)
    out: dict[str, Tensor] = {}
    for name, changes in CASES.items():
        model, _ = build(folder, **changes)
        if model.head is not None:
            whole = batch().targets
            model.head.prepare(whole.class_B, whole.labels_BK, whole.value_B)  # type: ignore[operator]
        step, plain = Step(model), (lambda: contextlib.nullcontext(), lambda loss: loss)
        if micro_batches == 1:
            losses = backward_whole(step, batch(mine), *plain)
        else:
            rows = ROWS // world // micro_batches
            losses = backward_cached(step, batch(mine), *plain, micro_batch=rows)
        average_gradients(model)
        for part, loss in losses.items():
            out[f"{name}: {part}"] = loss.reshape(1) / world
            if world > 1:
                distributed.all_reduce(out[f"{name}: {part}"])
        out |= {
            f"{name}: d {n}": p.grad.contiguous() for n, p in model.named_parameters() if p.grad is not None
        }
    return out


def main() -> None:
    """Join the group, compute, write."""
    from safetensors.torch import save_file

    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    mine = folder / str(rank)
    mine.mkdir()
    with joined(folder / "port", rank, world):
        results = {count: outcome(mine, rank, world, count) for count in (1, 4)}
    if rank == 0:
        for count, out in results.items():
            save_file(out, folder / f"out-{count}.safetensors")


if __name__ == "__main__":
    main()
