"""A run that stops and resumes ends with the bytes of one that did not; faults stop it with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyweft.data.batches import Arrays
from polyweft.errors import TrainingError
from polyweft.models.build import ModelParams, build_model, image_spec
from polyweft.progress import Bar
from polyweft.training.distributed import World
from polyweft.training.loop import Result, fit
from polyweft.training.params import TrainParams

TEXT = {"kind": "hash", "max_tokens": 8, "pad_id": 0, "start_id": 1, "end_id": 2, "vocabulary_size": 30}
MODEL = ModelParams.model_validate(
    {
        "family": "dual_tower",
        "embedding_size": 8,
        "feature_size": 16,
        "image": {
            "tower": "cnn",
            "size": 16,
            "resize": "squash",
            "normalization": "half",
            "background": [255, 255, 255],
            "max_pixels": 1000,
            "cnn": {"channels": [8, 16], "blocks": [0, 1]},
            "vit": {"patch": 4, "width": 16, "layers": 1, "heads": 2, "pool": "mean"},
        },
        "text": {"width": 16, "layers": 1, "heads": 2, "dropout": 0.1},
        "head": {"sees": "both", "hidden": 8, "dropout": 0.1},
    }
)
ALONE = World(0, 1, torch.device("cpu"))


def _params(**changes: Any) -> TrainParams:
    augment = {"shift": 0.1, "scale": 0.1, "rotate": 5.0, "flip": False}
    return TrainParams.model_validate(
        {
            "processes": 1, "strategy": "ddp", "epochs": 3, "batch_size": 8, "lr": 3e-3, "weight_decay": 0.1,
            "betas": [0.9, 0.98], "warmup_steps": 2, "clip_norm": 1.0, "precision": "fp32",
            "contrastive_weight": 1.0, "classification_weight": 1.0, "label_smoothing": 0.0,
            "positives": "caption", "early_stopping_epochs": 9, "validate_every": 1, "checkpoint_steps": 2,
            "augment": {**augment, "brightness": 0.1, "contrast": 0.1, "color": 0.1}, **changes,
        }
    )  # fmt: skip


def _rows(rows: int, seed: int) -> Arrays:
    """Rows whose class is how bright the picture is, and whose caption says so."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 2, rows)
    pixels = rng.integers(0, 100, (rows, 16, 16, 3)) + classes[:, None, None, None] * 120
    return Arrays(
        ids=[f"row-{i}" for i in range(rows)],
        pixels_NSS3=pixels.astype(np.uint8),
        has_image_N=np.ones(rows, np.bool_),
        tokens_MT=np.stack([np.full(rows, 1), 5 + classes, np.full(rows, 2)], axis=1).astype(np.int64),
        first_caption_N1=np.arange(rows + 1),
        text_key_M=classes.astype(np.int64),
        image_key_N=np.arange(rows),
        group_key_N=np.arange(rows),
        class_N=classes.astype(np.int64),
        end_id=2,
    )


def _fit(folder: Path, stop_at: int | None = None, rows: int = 40, **changes: Any) -> Result:
    torch.manual_seed(0)
    model = build_model(MODEL, classes=2, text=TEXT)

    def log(metrics: dict[str, float], step: int) -> None:
        if stop_at is not None and step >= stop_at:
            raise KeyboardInterrupt

    return fit(
        model, _params(**changes), image_spec(MODEL.image), _rows(rows, 1), _rows(16, 2), ALONE,
        seed=3, checkpoints=folder, log=log, bar=Bar("test", shown=False),
    )  # fmt: skip


def test_it_learns(tmp_path: Path) -> None:
    result = _fit(tmp_path, epochs=6)
    assert result.progress.curve[-1][2] < result.progress.curve[0][2] * 0.8
    assert result.progress.validations[-1]["accuracy"] == 1.0


@pytest.mark.parametrize("every", [2, 3, 5])
def test_a_run_that_stops_and_resumes_ends_with_the_same_bytes(tmp_path: Path, every: int) -> None:
    whole = _fit(tmp_path / "whole", checkpoint_steps=every)
    with pytest.raises(KeyboardInterrupt):
        _fit(tmp_path / "parts", stop_at=10, checkpoint_steps=every)
    resumed = _fit(tmp_path / "parts", checkpoint_steps=every)
    assert resumed.resumed_from > 0
    assert resumed.progress == whole.progress
    for name, tensor in whole.weights.items():
        assert torch.equal(tensor, resumed.weights[name]), name


def test_early_stopping_keeps_the_best_weights(tmp_path: Path) -> None:
    result = _fit(tmp_path, epochs=12, early_stopping_epochs=2, lr=0.02)
    progress = result.progress
    scores = [entry["score"] for entry in progress.validations]
    assert progress.stopped
    assert len(scores) == progress.best_epoch + 2
    assert scores[progress.best_epoch - 1] == pytest.approx(max(scores), abs=1e-5)


def test_fewer_samples_than_a_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"batch_size is 8 but the train split has 5 samples"):
        _fit(tmp_path, rows=5)


def test_a_batch_that_does_not_divide_among_the_processes_is_refused(tmp_path: Path) -> None:
    model = build_model(MODEL, classes=2, text=TEXT)
    with pytest.raises(TrainingError, match=r"does not divide among 3 processes"):
        fit(
            model, _params(), image_spec(MODEL.image), _rows(40, 1), _rows(16, 2),
            World(0, 3, torch.device("cpu")), seed=3, checkpoints=tmp_path,
            log=lambda metrics, step: None, bar=Bar("test", shown=False),
        )  # fmt: skip


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_samples(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"the loss of step \d+ is not finite, over the samples row-"):
        _fit(tmp_path, lr=1.0, clip_norm=1e30, contrastive_weight=1e38, epochs=20)


def test_no_epochs_leave_the_initial_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    fresh = build_model(MODEL, classes=2, text=TEXT).state_dict()
    result = _fit(tmp_path, epochs=0)
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in result.weights.items())
