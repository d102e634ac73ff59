"""The schedule rises to its peak and falls to zero; vectors do not decay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from polyweft.errors import ConfigError
from polyweft.models.transformer import Transformer
from polyweft.training import checkpoint
from polyweft.training.optim import (
    adamw,
    freeze,
    layer_scales,
    learning_rate,
    restore_state,
    set_rate,
    state_tensors,
)


class Tower(nn.Module):
    """As the project's: embeddings and a position before blocks, a norm and a projection after."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2)
        self.position = nn.Parameter(torch.zeros(1, 8))
        self.body = Transformer(8, 3, 2)
        self.projection = nn.Linear(8, 4)


def _model() -> nn.Module:
    model = nn.Module()
    model.towers = nn.ModuleDict({"image": Tower(), "text": Tower()})
    model.head = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 2))
    model.scale = nn.Parameter(torch.tensor(1.0))
    return model


@given(peak=st.floats(1e-6, 1.0), warmup=st.integers(0, 50), extra=st.integers(1, 500))
def test_the_rate_stays_within_zero_and_its_peak(peak: float, warmup: int, extra: int) -> None:
    total = warmup + extra
    rates = [learning_rate(step, peak=peak, warmup=warmup, total=total) for step in range(total)]
    assert all(0.0 <= rate <= peak * (1 + 1e-9) for rate in rates)
    assert max(rates) == pytest.approx(peak)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)


def test_norms_and_biases_do_not_decay() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    decays = {
        parameter.ndim: group["weight_decay"]
        for group in adamw(module, lr=1e-3, weight_decay=0.1, betas=[0.9, 0.98]).param_groups
        for parameter in group["params"]
    }
    assert decays == {2: 0.1, 1: 0.0}


def test_deeper_layers_learn_faster_and_what_is_after_the_blocks_at_the_full_rate() -> None:
    scales = layer_scales(_model(), 0.5)
    for tower in ("towers.image", "towers.text"):
        assert scales[f"{tower}.patches.weight"] == scales[f"{tower}.position"] == 0.5**3
        for layer in range(3):
            assert scales[f"{tower}.body.blocks.{layer}.attention.out.weight"] == 0.5 ** (2 - layer)
        assert scales[f"{tower}.body.norm.weight"] == scales[f"{tower}.projection.weight"] == 1.0
    assert scales["head.0.weight"] == scales["scale"] == 1.0


def test_a_decay_of_one_makes_one_group_of_matrices_and_one_of_vectors() -> None:
    groups = adamw(_model(), lr=1e-3, weight_decay=0.1, betas=[0.9, 0.98]).param_groups
    assert sorted((group["scale"], group["weight_decay"]) for group in groups) == [(1.0, 0.0), (1.0, 0.1)]


def test_a_set_rate_is_scaled_by_depth() -> None:
    optimizer = adamw(_model(), lr=1e-3, weight_decay=0.1, betas=[0.9, 0.98], layer_decay=0.5)
    set_rate(optimizer, 0.1)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == [0.0125, 0.025, 0.05, 0.1]


def test_freezing_takes_names_beginnings_and_wildcards() -> None:
    model = _model()
    frozen = freeze(model, ["towers.image", "towers.*.position", "scale"])
    assert frozen == sorted(n for n, p in model.named_parameters() if not p.requires_grad)
    assert {"towers.image.patches.weight", "towers.text.position", "scale"} <= set(frozen)
    assert model.towers["text"].patches.weight.requires_grad
    optimizer = adamw(model, lr=1e-3, weight_decay=0.1, betas=[0.9, 0.98])
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}


def test_a_pattern_that_names_nothing_and_one_that_leaves_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'tower' names no parameter. The model has .*towers.image"):
        freeze(_model(), ["tower"])
    with pytest.raises(ConfigError, match="nothing is left to train"):
        freeze(_model(), ["*"])


def test_a_restored_optimiser_takes_the_same_next_step(tmp_path: Path) -> None:
    models = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model in models:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizers = [adamw(model, lr=1e-2, weight_decay=0.1, betas=[0.9, 0.98]) for model in models]

    def step(number: int) -> None:
        torch.manual_seed(5)
        models[number](torch.randn(2, 3, 4, 4)).square().sum().backward()
        optimizers[number].step()
        optimizers[number].zero_grad()

    step(0)
    tensors = {f"optimizer.{n}": t for n, t in state_tensors(models[0], optimizers[0]).items()}
    assert "optimizer.0.weight:exp_avg" in tensors
    checkpoint.save(tmp_path, 1, tensors, {})
    models[1].load_state_dict(models[0].state_dict())
    found = checkpoint.newest(tmp_path)
    assert found is not None
    restore_state(models[1], optimizers[1], found)
    step(0)
    step(1)
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))
