"""The average of the weights: its formula, its warm-up, and that a module can borrow it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from polyweft.training.ema import Ema


def _moved(module: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))


def test_the_average_is_that_of_its_formula() -> None:
    module = nn.Linear(3, 2)
    ema = Ema(module, 0.5)
    expected = module.weight.detach().double()
    for step in range(12):
        _moved(module, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * module.weight.detach().double()
        ema.update(module, step)
    torch.testing.assert_close(ema.tensors()["weight"].double(), expected, atol=1e-6, rtol=0)


def test_a_module_has_the_average_inside_the_block_and_its_own_weights_after_it() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    ema = Ema(module, 0.9)
    _moved(module, 0)
    ema.update(module, 0)
    own = copy.deepcopy(module.state_dict())
    with ema.applied(module):
        inside = copy.deepcopy(dict(module.named_parameters()))
    assert all(torch.equal(inside[name], average) for name, average in ema.tensors().items())
    assert not torch.equal(inside["0.weight"], own["0.weight"])
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in own.items())


def test_an_error_inside_the_block_gives_the_weights_back() -> None:
    module = nn.Linear(3, 2)
    ema = Ema(module, 0.9)
    _moved(module, 0)
    own = module.weight.detach().clone()
    with pytest.raises(ZeroDivisionError), ema.applied(module):
        raise ZeroDivisionError
    assert torch.equal(module.weight, own)


def test_the_average_of_half_precision_weights_is_fp32_and_leaves_frozen_ones_out() -> None:
    module = nn.Linear(4, 4).to(torch.bfloat16)
    module.bias.requires_grad_(False)
    ema = Ema(module, 0.9999)
    assert {name: tensor.dtype for name, tensor in ema.tensors().items()} == {"weight": torch.float32}
    before = ema.tensors()["weight"].clone()
    with torch.no_grad():
        module.weight.add_(1.0)
    ema.update(module, 10**6)
    assert 0 < float((ema.tensors()["weight"] - before).mean()) < 2e-4
