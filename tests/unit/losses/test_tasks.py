"""The losses of tasks equal PyTorch's over the labelled rows, and unlabelled rows do not count."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from polyweft.losses.tasks import (
    balance_by_uncertainty,
    balanced_weights,
    binary,
    multi_label,
    regression,
    single_label,
)

SEEDS = st.integers(0, 999)
ZERO, ONE = torch.tensor(0.0), torch.tensor(1.0)


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, smoothing=st.floats(0.0, 0.5), weighted=st.booleans())
def test_single_label_is_cross_entropy_of_the_labelled_rows(
    seed: int, smoothing: float, weighted: bool
) -> None:
    logits, classes = _random(6, 3, seed=seed), torch.tensor([0, -1, 2, 1, -1, 2])
    weights = torch.tensor([0.5, 1.0, 4.0]) if weighted else None
    there = classes >= 0
    expected = functional.cross_entropy(
        logits[there], classes[there], weight=weights, label_smoothing=smoothing
    )
    ours = single_label(logits, classes, weights_C=weights, smoothing=smoothing)
    torch.testing.assert_close(ours, expected)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, smoothing=st.floats(0.0, 0.5))
def test_binary_is_single_label_over_two_logits_one_of_which_is_zero(seed: int, smoothing: float) -> None:
    logit, classes = _random(5, 1, seed=seed), torch.tensor([0, 1, -1, 1, 0])
    two = torch.cat([torch.zeros(5, 1), logit], dim=1)
    expected = single_label(two, classes, smoothing=smoothing)
    torch.testing.assert_close(binary(logit, classes, smoothing=smoothing), expected)


def test_multi_label_counts_known_entries_only() -> None:
    logits = _random(4, 3)
    labels = torch.tensor([[1.0, 0.0, 1.0], [torch.nan] * 3, [0.0, torch.nan, 1.0], [0.0, 0.0, 0.0]])
    known = ~labels.isnan()
    expected = functional.binary_cross_entropy_with_logits(logits[known], labels[known])
    torch.testing.assert_close(multi_label(logits, labels), expected)


@pytest.mark.parametrize("huber", [None, 0.7])
def test_regression_is_standardised_and_counts_rows_with_a_value(huber: float | None) -> None:
    value, target = _random(4, 1), torch.tensor([10.0, torch.nan, 14.0, 9.0])
    mean, deviation = torch.tensor(11.0), torch.tensor(2.0)
    there = ~target.isnan()
    standard = ((target - mean) / deviation)[there]
    ours = regression(value, target, mean=mean, deviation=deviation, huber=huber)
    expected = (
        functional.mse_loss(value[there, 0], standard)
        if huber is None
        else functional.huber_loss(value[there, 0], standard, delta=huber)
    )
    torch.testing.assert_close(ours, expected)


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_the_order_of_rows_does_not_matter(seed: int) -> None:
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    logits, classes = _random(5, 3, seed=seed), torch.tensor([0, 1, -1, 2, 0])
    torch.testing.assert_close(single_label(logits, classes), single_label(logits[order], classes[order]))


def test_without_targets_losses_and_gradients_are_zero() -> None:
    logits = _random(3, 1).requires_grad_()
    nothing, unknown = torch.full((3,), -1), torch.full((3,), torch.nan)
    losses = (
        single_label(logits.expand(3, 4), nothing),
        binary(logits, nothing),
        multi_label(logits, unknown[:, None]),
        regression(logits, unknown, mean=ZERO, deviation=ONE),
    )
    for loss in losses:
        assert loss == 0
        assert torch.equal(torch.autograd.grad(loss, logits)[0], torch.zeros(3, 1))


def test_a_loss_is_nought_only_where_the_answer_is_right() -> None:
    right = single_label(torch.tensor([[50.0, 0.0], [0.0, 50.0]]), torch.tensor([0, 1]))
    wrong = single_label(torch.tensor([[50.0, 0.0], [0.0, 50.0]]), torch.tensor([1, 0]))
    assert right == pytest.approx(0.0)
    assert wrong == pytest.approx(50.0)


@settings(max_examples=20, deadline=None)
@given(loss=st.floats(0.01, 10.0))
def test_the_best_variance_of_a_task_is_the_size_of_its_loss(loss: float) -> None:
    """The derivative of exp(-s) L + s / 2 is zero at exp(s) = 2 L, and for regression at exp(s) = L."""
    for name, best in (("single_label", 2 * loss), ("regression", loss)):
        log_variance = torch.tensor(best).log().requires_grad_()
        balanced = balance_by_uncertainty({name: torch.tensor(loss)}, {name: log_variance})[name]
        assert torch.autograd.grad(balanced, log_variance)[0] == pytest.approx(0.0, abs=1e-5)


def test_rare_classes_weigh_more_and_the_mean_over_rows_is_one() -> None:
    counts = torch.tensor([90, 10, 0])
    weights = balanced_weights(counts)
    assert weights[1] == 9 * weights[0]
    assert (weights * counts).sum() / counts.sum() == pytest.approx(1.0)
    assert weights[2] == 1
