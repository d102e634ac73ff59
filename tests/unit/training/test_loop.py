"""A run that stops and resumes ends with the bytes of one that did not; faults stop it with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from polyweft.data.batches import Arrays
from polyweft.errors import TrainingError
from polyweft.io import read_json
from polyweft.progress import Bar
from polyweft.training import checkpoint
from polyweft.training.distributed import ALONE, World
from polyweft.training.gradients import Work, backward_whole
from polyweft.training.init_from import load_into
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
    logged: list[dict[str, float]] | None = None,
    **changes: Any,
) -> Result:
    torch.manual_seed(0)
    model, context = small.built(prepared, section)
    steps = 0

    def log(metrics: dict[str, float], step: int) -> None:
        if logged is not None:
            logged.append(metrics)
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
        (3, {"muon": {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}}),
        (7, {"precision": "fp16", "ema_decay": 0.9}),
    ],
    ids=["plain", "averaged", "accumulated", "curriculum", "orthogonal", "scaled"],
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
        _fit(prepared, tmp_path, section=section, rows=rows, batch_size=40)
    assert "regression" in str(stop.value)
    assert (tmp_path / "step-000000000").is_dir()
    assert sorted(read_json(tmp_path / "not-finite.json")["rows"]) == sorted(rows.ids)


def test_a_gradient_that_is_not_finite_stops_before_the_weights_take_it(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(step: nn.Module, work: Work, *rest: Any) -> dict[str, torch.Tensor]:
        losses = backward_whole(step, work, *rest)
        if (tmp_path / "step-000000002").exists():
            next(step.parameters()).grad.fill_(torch.nan)  # type: ignore[union-attr]
        return losses

    monkeypatch.setattr("polyweft.training.learner.backward_whole", faulty)
    with pytest.raises(TrainingError, match=r"gradient of step 2 is not finite; its rows: row-"):
        _fit(prepared, tmp_path)
    kept = checkpoint.newest(tmp_path)
    assert kept is not None
    assert kept.step == 2
    assert all(bool(tensor.isfinite().all()) for tensor in kept.part("").values())
    model, _ = small.built(prepared)
    assert not load_into(model, kept.place).missing, "train.init_from takes the folder that the message names"


def test_a_run_that_is_out_of_memory_goes_on_as_one_with_half_the_rows_at_a_time(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    halved = _fit(prepared, tmp_path / "halved", micro_batch=4)

    def short(step: nn.Module, work: Work, *rest: Any) -> dict[str, torch.Tensor]:
        backward_whole(step, work, *rest)  # gradients of a step that then fails are not taken along
        raise MemoryError

    monkeypatch.setattr("polyweft.training.learner.backward_whole", short)
    _same(_fit(prepared, tmp_path / "short"), halved)
    assert read_json(tmp_path / "short" / "micro_batch.json") == {"micro_batch": 4}


def test_the_curves_of_a_run_are_logged_while_it_trains(prepared: Path, tmp_path: Path) -> None:
    logged: list[dict[str, float]] = []
    _fit(prepared, tmp_path, epochs=2, logged=logged)
    (row,) = (row for row in logged if "loss" in row)
    wanted = {"lr", "grad_norm", "grad_norm_image", "grad_norm_text", "temperature", "memory_mb"}
    assert wanted | {"samples_per_second", "epoch"} <= row.keys()
    assert all(value > 0 for name, value in row.items() if name.startswith("grad_norm"))
    assert sum("validation_score" in other for other in logged) == 2


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ({**small.DUAL_TOWER, "head": None}, {"modality_dropout": 0.2}, r"modality_dropout 0.2 .* has none"),
        (None, {"curriculum": "difficulty"}, r"first train.curriculum_epochs epochs, which are 0"),
        (None, {"compile": True, "micro_batch": 4}, r"train.compile does not go with train.micro_batch"),
        (
            None,
            {"precision": "fp16", "muon": {"lr": 0.02}},
            r"train.muon does not go with .*precision fp16",
        ),
    ],
    ids=["dropout", "curriculum", "compile", "muon"],
)
def test_settings_that_would_do_nothing_or_harm_together_are_refused(
    prepared: Path, tmp_path: Path, section: dict[str, Any] | None, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        _fit(prepared, tmp_path, section=section, **changes)


def test_a_curriculum_without_any_difficulty_is_refused(prepared: Path, tmp_path: Path) -> None:
    _, context = small.built(prepared)
    rows = small.arrays(prepared, context)
    rows.difficulty_N[:] = np.nan
    with pytest.raises(TrainingError, match=r"needs rows whose difficulty is known, and none is"):
        _fit(prepared, tmp_path, rows=rows, curriculum="difficulty", curriculum_epochs=1)


def test_no_epochs_leave_the_initial_weights(prepared: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    fresh = small.built(prepared)[0].state_dict()
    weights = _fit(prepared, tmp_path, epochs=0).weights
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in weights.items() if "value_" not in name)
