"""Micro-batches have the gradients of one graph over all rows, with the dropout that each of them drew."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor

from polyweft.data.batches import choose_contents, take
from polyweft.training.feed import Feed
from polyweft.training.gradients import Step, Work, backward_cached
from tests import small

ROWS, MICRO_BATCH = 12, 5
DROPOUT = {
    "tower": "transformer",
    "transformer": {"width": 16, "layers": 2, "heads": 2, "dropout": 0.4},
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.prepare(tmp_path_factory.mktemp("accumulation"))


def _gradients(step: Step) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in step.named_parameters() if p.grad is not None}
    step.zero_grad(set_to_none=True)
    return {name: grad.to_dense().clone() for name, grad in found.items()}


def test_micro_batches_replay_the_dropout_that_their_loss_saw(prepared: Path) -> None:
    torch.manual_seed(0)
    section = {**small.DUAL_TOWER, "encoders": {"image": small.IMAGE, "text": DROPOUT}}
    model, context = small.built(prepared, section)
    arrays, feed = small.arrays(prepared, context), Feed(context.readers, torch.device("cpu"))
    batch = take(arrays, torch.arange(ROWS).numpy(), choose_contents(arrays, seed=0, epoch=0))
    work = Work(feed.inputs(batch), torch.from_numpy(batch.present_BM), feed.targets(batch), seed=7)
    step = Step(model.train())

    parts = []  # the same, kept in memory as one graph
    for number, begin in enumerate(range(0, ROWS, MICRO_BATCH)):
        rows = slice(begin, begin + MICRO_BATCH)
        torch.manual_seed(work.seed + 1 + number)
        parts.append(model({name: x[rows] for name, x in work.inputs.items()}, work.present_BM[rows]))
    outputs = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    torch.manual_seed(work.seed)
    expected_losses = step.losses(outputs, work.targets)
    torch.stack(list(expected_losses.values())).sum().backward()
    expected = _gradients(step)

    losses = backward_cached(step, work, nullcontext, lambda loss: loss, micro_batch=MICRO_BATCH)
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected_losses[name].detach(), rtol=0, atol=1e-6)
    found = _gradients(step)
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        largest = max(1.0, float(grad.abs().max()))  # up to 30, where float32's last place is 2e-6
        torch.testing.assert_close(found[name], grad, rtol=0, atol=1e-6 * largest, msg=name)
