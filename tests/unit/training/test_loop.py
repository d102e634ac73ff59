"""A run that stops and resumes ends with the bytes of one that did not; faults stop it with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyweft.data.batches import Arrays
from polyweft.errors import TrainingError
from polyweft.progress import Bar
from polyweft.training.distributed import ALONE, World
from polyweft.training.learner import Surroundings
from polyweft.training.loop import Result, fit
from tests import small


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.prepare(tmp_path_factory.mktemp("loop"), train=40, others=16)


class _StoppedError(Exception):
    pass


def _fit(
    prepared: Path,
    folder: Path,
    *,
    stop_at: int | None = None,
    world: World = ALONE,
    section: dict[str, Any] | None = None,
    asked_at: int | None = None,
    rows: Arrays | None = None,
    **changes: Any,
) -> Result:
    torch.manual_seed(0)
    model, context = small.built(prepared, section)
    steps = 0

    def log(metrics: dict[str, float], step: int) -> None:
        if stop_at is not None and step >= stop_at:
            raise _StoppedError

    def stopping() -> bool:
        nonlocal steps
        steps += 1
        return asked_at is not None and steps >= asked_at

    with Bar("test", shown=False) as bar:
        return fit(
            model, small.train_params(**changes), context.readers, rows or small.arrays(prepared, context),
            small.arrays(prepared, context, "validation"),
            Surroundings(world, folder, log, bar, stopping=stopping), seed=3,
        )  # fmt: skip


def _same(one: Result, other: Result) -> None:
    assert one.progress == other.progress
    assert one.curve == other.curve
    for name, tensor in one.weights.items():
        assert torch.equal(tensor, other.weights[name]), name


def test_it_learns(prepared: Path, tmp_path: Path) -> None:
    result = _fit(prepared, tmp_path, epochs=12, lr=1e-2)
    assert result.curve[-1][1] < result.curve[0][1] * 0.8
    assert max(entry["accuracy"] for entry in result.progress.validations) >= 0.9


@pytest.mark.parametrize(
    ("every", "changes"),
    [
        (2, {}),
        (3, {"ema_decay": 0.9, "layer_decay": 0.8, "image_sizes": [8, 16]}),
        (5, {"modality_dropout": 0.3, "micro_batch": 3, "gradient_checkpointing": True}),
        (4, {"curriculum": "difficulty", "curriculum_epochs": 2, "precision": "bf16"}),
        (7, {"precision": "fp16", "ema_decay": 0.9}),
    ],
    ids=["plain", "averaged", "accumulated", "curriculum", "scaled"],
)
def test_a_run_that_stops_and_resumes_ends_with_the_same_bytes(
    prepared: Path, tmp_path: Path, every: int, changes: dict[str, Any]
) -> None:
    whole = _fit(prepared, tmp_path / "whole", checkpoint_steps=every, **changes)
    with pytest.raises(_StoppedError):
        _fit(prepared, tmp_path / "parts", stop_at=10, checkpoint_steps=every, **changes)
    resumed = _fit(prepared, tmp_path / "parts", checkpoint_steps=every, **changes)
    assert resumed.resumed_from > 0
    _same(resumed, whole)


def test_a_run_that_is_asked_to_stop_leaves_a_checkpoint_at_once(prepared: Path, tmp_path: Path) -> None:
    whole = _fit(prepared, tmp_path / "whole", checkpoint_steps=100)
    with pytest.raises(TrainingError, match=r"stopped after step 7; a checkpoint holds it"):
        _fit(prepared, tmp_path / "parts", asked_at=7, checkpoint_steps=100)
    resumed = _fit(prepared, tmp_path / "parts", checkpoint_steps=100)
    assert resumed.resumed_from == 7
    _same(resumed, whole)


def test_early_stopping_keeps_the_best_weights(prepared: Path, tmp_path: Path) -> None:
    progress = _fit(prepared, tmp_path, epochs=12, early_stopping_epochs=2, lr=0.02).progress
    scores = [entry["score"] for entry in progress.validations]
    assert progress.stopped
    assert len(scores) == progress.best_epoch + 2
    assert scores[progress.best_epoch - 1] == pytest.approx(max(scores), abs=1e-5)


def test_where_training_hides_modalities_each_is_also_validated_alone(prepared: Path, tmp_path: Path) -> None:
    plain = _fit(prepared, tmp_path / "plain", epochs=1).progress.validations[-1]
    hiding = _fit(prepared, tmp_path / "hiding", epochs=1, modality_dropout=0.3).progress.validations[-1]
    alone = {"accuracy_without_image", "accuracy_without_text"}
    assert not alone & set(plain)
    assert alone <= set(hiding)
    given = [value for name, value in hiding.items() if name not in ("epoch", "score")]
    assert hiding["score"] == pytest.approx(sum(given) / len(given), abs=1e-5)


def test_a_frozen_tower_stays_as_it_was(prepared: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    fresh = small.built(prepared)[0].state_dict()
    weights = _fit(prepared, tmp_path, freeze=["towers.image"]).weights
    moved = {name for name, tensor in weights.items() if not torch.equal(tensor, fresh[name])}
    assert moved
    assert not any(name.startswith("towers.image") for name in moved)


def test_a_pattern_that_freezes_nothing_is_refused(prepared: Path, tmp_path: Path) -> None:
    from polyweft.errors import ConfigError

    with pytest.raises(ConfigError, match=r"train.freeze: 'towers.sound' names no parameter"):
        _fit(prepared, tmp_path, freeze=["towers.sound"])


def test_fewer_samples_than_a_batch_is_refused(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"batch_size is 64 but the train split has 40 samples"):
        _fit(prepared, tmp_path, batch_size=64)


def test_a_batch_smaller_than_the_processes_is_refused(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"batch_size 2 is smaller than the 3 processes"):
        _fit(prepared, tmp_path, batch_size=2, world=World(0, 3, torch.device("cpu")))


def test_other_image_sizes_than_a_vits_are_refused(prepared: Path, tmp_path: Path) -> None:
    image = {**small.IMAGE, "tower": "vit"}
    image |= {"vit": {"width": 16, "layers": 1, "heads": 2, "patch": 8, "pool": "mean"}}
    section = {**small.DUAL_TOWER, "encoders": {**small.DUAL_TOWER["encoders"], "image": image}}
    with pytest.raises(TrainingError, match=r"train.image_sizes needs an image tower that takes any size"):
        _fit(prepared, tmp_path, section=section, image_sizes=[8, 16])


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_samples(
    prepared: Path, tmp_path: Path
) -> None:
    section = {**small.DUAL_TOWER, "head": {**small.HEAD, "tasks": {"regression": 1.0}, "huber": None}}
    _, context = small.built(prepared, section)
    rows = small.arrays(prepared, context)
    rows.value_N[17] = np.inf
    with pytest.raises(TrainingError, match=r"loss of step 0 is not finite .*its rows: row-") as stop:
        _fit(prepared, tmp_path, section=section, rows=rows)
    assert "regression" in str(stop.value)
    assert (tmp_path / "step-000000000").is_dir()


def test_no_epochs_leave_the_initial_weights(prepared: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    fresh = small.built(prepared)[0].state_dict()
    weights = _fit(prepared, tmp_path, epochs=0).weights
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in weights.items() if "value_" not in name)
