"""The contrastive losses equal their definitions and keep their laws."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from polyweft.losses.contrastive import MAX_LOGIT_SCALE, ContrastParams, Scale, info_nce, pairwise, within
from polyweft.losses.gather import Rows
from polyweft.losses.siglip import siglip

SCALE, BIAS = torch.tensor(10.0), torch.tensor(-5.0)
SEEDS = st.integers(0, 999)
INFONCE, SIGLIP = ContrastParams(loss="infonce"), ContrastParams(loss="siglip")
EVERY = [
    INFONCE,
    ContrastParams(loss="infonce", soft_targets=0.2),
    ContrastParams(loss="infonce", hard_negatives=0.5),
    SIGLIP,
]


def _unit(rows: int, seed: int, size: int = 8) -> Tensor:
    return functional.normalize(torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)), dim=1)


def _rows(x_BD: Tensor, keys: list[int] | None = None, there: list[bool] | None = None) -> Rows:
    count = len(x_BD)
    key_B = torch.tensor(keys) if keys is not None else torch.arange(count)
    return Rows.gather(x_BD, key_B, torch.tensor(there if there is not None else [True] * count))


def _picked(rows: Rows, index: Tensor) -> Rows:
    return Rows.gather(rows.x_BD[index], rows.key_B[index], rows.there_B[index])


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(2, 9), seed=SEEDS, scale=st.floats(1.0, 100.0))
def test_with_one_positive_a_row_infonce_is_clips_loss(rows: int, seed: int, scale: float) -> None:
    images, texts = _unit(rows, seed), _unit(rows, seed + 1)
    logits, keys = scale * images @ texts.T, torch.arange(rows)
    clip = (functional.cross_entropy(logits, keys) + functional.cross_entropy(logits.T, keys)) / 2
    ours = info_nce(_rows(images), _rows(texts), torch.tensor(scale))
    torch.testing.assert_close(ours, clip, rtol=1e-4, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 9), seed=SEEDS, scale=st.floats(1.0, 100.0), bias=st.floats(-10.0, 10.0))
def test_with_one_positive_a_row_siglip_is_its_definition(
    rows: int, seed: int, scale: float, bias: float
) -> None:
    a, b = _unit(rows, seed), _unit(rows, seed + 1)
    signs = 2 * torch.eye(rows) - 1
    expected = -functional.logsigmoid(signs * (scale * a @ b.T + bias)).sum() / rows
    ours = siglip(_rows(a), _rows(b), torch.tensor(scale), torch.tensor(bias), chunk=4)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, chunk=st.integers(1, 9))
def test_siglips_chunk_changes_neither_loss_nor_gradients(seed: int, chunk: int) -> None:
    keys, there = [0, 1, 1, 3, 4, 5, 6], [True] * 6 + [False]

    def results(size: int) -> list[Tensor]:
        leaves = [_unit(7, seed), _unit(7, seed + 1), SCALE.clone(), BIAS.clone()]
        a, b, scale, bias = (leaf.requires_grad_() for leaf in leaves)
        loss = siglip(_rows(a, keys), _rows(b, None, there), scale, bias, chunk=size)
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    for part, whole in zip(results(chunk), results(100), strict=True):
        torch.testing.assert_close(part, whole, rtol=0, atol=1e-5)


def test_siglip_makes_no_tensor_larger_than_a_chunk() -> None:
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            self.numel = max(self.numel, out.numel() if isinstance(out, Tensor) else 0)
            return out

    leaf = _unit(64, 0).requires_grad_()
    for chunk, expected in ((16, 64 * 16), (64, 64 * 64)):
        rows = _rows(leaf)
        with Largest() as largest:
            siglip(rows, rows, SCALE, BIAS, chunk=chunk).backward()
        assert largest.numel == expected


def test_siglips_gradients_are_those_of_its_value() -> None:
    def loss(a: Tensor, b: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        key, there = torch.tensor([0, 1, 1]), torch.tensor([True, True, False])
        parts = Rows(a, a, key, key, there, there), Rows(b, b, key, key, there, there)
        return siglip(*parts, scale, bias, chunk=2)

    leaves = (_unit(3, 0).double(), _unit(3, 1).double(), SCALE.double(), BIAS.double())
    assert torch.autograd.gradcheck(loss, tuple(leaf.requires_grad_() for leaf in leaves))


@pytest.mark.parametrize("params", EVERY, ids=str)
@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_the_order_of_rows_does_not_matter(params: ContrastParams, seed: int) -> None:
    a, b = _rows(_unit(6, seed), [0, 1, 2, 2, 4, 5]), _rows(_unit(6, seed + 1), None, [True] * 5 + [False])
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    whole = pairwise({"image": a, "text": b}, SCALE, BIAS, params)
    mixed = pairwise({"image": _picked(a, order), "text": _picked(b, order)}, SCALE, BIAS, params)
    torch.testing.assert_close(whole, mixed, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("params", EVERY, ids=str)
@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_rows_that_lack_a_modality_change_nothing(params: ContrastParams, seed: int) -> None:
    a, b = _rows(_unit(6, seed)), _rows(_unit(6, seed + 1), None, [True] * 4 + [False] * 2)
    whole = pairwise({"image": a, "text": b}, SCALE, BIAS, params)
    first = torch.arange(4)
    part = pairwise({"image": _picked(a, first), "text": _picked(b, first)}, SCALE, BIAS, params)
    torch.testing.assert_close(whole, part, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("params", EVERY, ids=str)
def test_a_perfect_match_costs_less_than_a_mismatch(params: ContrastParams) -> None:
    apart = torch.eye(4)
    right = pairwise({"image": _rows(apart), "text": _rows(apart)}, SCALE, BIAS, params)
    wrong = pairwise({"image": _rows(apart), "text": _rows(apart.roll(1, 0))}, SCALE, BIAS, params)
    assert right < wrong


@pytest.mark.parametrize("params", EVERY, ids=str)
def test_a_batch_without_a_pair_gives_zero_and_zero_gradients(params: ContrastParams) -> None:
    leaf = _unit(3, 0).requires_grad_()
    rows = {"image": _rows(leaf), "text": _rows(leaf, None, [False] * 3)}
    loss = pairwise(rows, SCALE, BIAS, params)
    assert loss == 0
    assert torch.equal(torch.autograd.grad(loss, leaf)[0], torch.zeros(3, 8))


@pytest.mark.parametrize("params", EVERY, ids=str)
def test_autocast_changes_no_bit(params: ContrastParams) -> None:
    rows = {"image": _rows(_unit(6, 0)), "text": _rows(_unit(6, 1))}
    plain = pairwise(rows, SCALE, BIAS, params) + within(rows, SCALE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(pairwise(rows, SCALE, BIAS, params) + within(rows, SCALE), plain)


def test_equal_captions_do_not_repel_each_other() -> None:
    same = functional.normalize(torch.eye(4)[[0, 0, 1, 2]], dim=1)
    scale = torch.tensor(100.0)
    together = info_nce(_rows(same), _rows(same, [0, 0, 1, 2]), scale)
    # two positives that are equally near share the probability: the least loss is ln 2 for those rows
    assert together == pytest.approx(0.5 * math.log(2.0), abs=1e-4)
    assert siglip(_rows(same), _rows(same, [0, 0, 1, 2]), scale, torch.tensor(-50.0), chunk=2) < 1e-4
    assert siglip(_rows(same), _rows(same), scale, torch.tensor(-50.0), chunk=2) > 1.0


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, beta=st.floats(0.1, 2.0))
def test_hard_negatives_weigh_the_near_ones_more(seed: int, beta: float) -> None:
    """The weights have mean 1 and grow with the cosine, so the loss grows; where all are alike it stays."""
    a, b = _rows(_unit(6, seed)), _rows(_unit(6, seed + 1))
    assert info_nce(a, b, SCALE, hard_negatives=beta) > info_nce(a, b, SCALE) - 1e-5
    alike = _rows(torch.eye(6))
    torch.testing.assert_close(
        info_nce(alike, alike, SCALE, hard_negatives=beta), info_nce(alike, alike, SCALE)
    )


def test_hard_negatives_equal_their_formula() -> None:
    a, b = _unit(4, 0), _unit(4, 1)
    beta, direction = 0.7, []
    for logits in (10 * a @ b.T, 10 * b @ a.T):
        for i in range(4):
            others = torch.cat([logits[i, :i], logits[i, i + 1 :]])
            weights = (beta * others).exp() / (beta * others).exp().mean()
            partition = logits[i, i].exp() + (weights * others.exp()).sum()
            direction.append(partition.log() - logits[i, i])
    ours = info_nce(_rows(a), _rows(b), SCALE, hard_negatives=beta)
    torch.testing.assert_close(ours, torch.stack(direction).mean(), rtol=1e-5, atol=1e-5)


def test_soft_targets_are_met_when_across_is_like_within() -> None:
    """Texts that stand to images as images stand to each other: nothing is left to learn."""
    near = functional.normalize(torch.tensor([[1.0, 0.1, 0], [1.0, -0.1, 0], [0, 0, 1.0]]), dim=1)

    def pull(soft: float) -> float:
        leaf = near.clone().requires_grad_()
        rows = {"image": _rows(leaf), "text": _rows(near)}
        params = ContrastParams(loss="infonce", soft_targets=soft)
        return float(torch.autograd.grad(pairwise(rows, SCALE, None, params), leaf)[0].abs().max())

    assert pull(1.0) == pytest.approx(0.0, abs=1e-5)
    assert pull(0.0) > 2 * pull(0.5) - 1e-4 > 0.01


def test_pairs_are_averaged_over_those_that_are_there() -> None:
    parts = {name: _rows(_unit(5, seed)) for seed, name in enumerate(("image", "text", "audio"))}
    pairs = (("image", "text"), ("image", "audio"), ("text", "audio"))
    expected = torch.stack([info_nce(parts[a], parts[b], SCALE) for a, b in pairs]).mean()
    torch.testing.assert_close(pairwise(parts, SCALE, None, INFONCE), expected)
    silent = parts | {"audio": _rows(_unit(5, 2), None, [False] * 5)}
    alone = info_nce(parts["image"], parts["text"], SCALE)
    torch.testing.assert_close(pairwise(silent, SCALE, None, INFONCE), alone)


def test_contrast_within_a_modality_draws_rows_that_share_a_key_together() -> None:
    apart, together = torch.eye(4), torch.eye(4)[[0, 0, 2, 3]]
    texts = _rows(torch.eye(4)[[1, 1, 2, 3]], [0, 0, 1, 2])
    assert within({"image": _rows(together), "text": texts}, SCALE) < within(
        {"image": _rows(apart), "text": texts}, SCALE
    )
    # Khosla et al.: -log softmax over the other rows, for the two rows that have a partner
    expected = -torch.tensor([10.0, 0.0, 0.0]).log_softmax(0)[0]
    torch.testing.assert_close(within({"image": _rows(together), "text": texts}, SCALE), expected)


def test_without_shared_keys_there_is_nothing_within() -> None:
    leaf = _unit(4, 0).requires_grad_()
    loss = within({"image": _rows(leaf), "text": _rows(_unit(4, 1))}, SCALE)
    assert loss == 0
    assert torch.equal(torch.autograd.grad(loss, leaf)[0], torch.zeros(4, 8))


def test_the_scale_starts_where_the_papers_say_and_stays_in_bounds() -> None:
    clip, sigmoid = Scale("infonce"), Scale("siglip")
    assert clip(2)["scale"].tolist() == pytest.approx([1 / 0.07] * 2)
    assert (sigmoid(1)["scale"].item(), sigmoid(1)["bias"].item()) == pytest.approx((10.0, -10.0))
    assert "bias" not in clip(1)
    with torch.no_grad():
        assert not any(value.requires_grad for value in sigmoid(2).values())
    for value, bound in ((7.0, MAX_LOGIT_SCALE), (-3.0, 0.0)):
        torch.nn.init.constant_(clip.logit_scale, value)
        clip.clamp()
        assert float(clip.logit_scale.detach()) == pytest.approx(bound)
    assert clip.facts() == pytest.approx({"temperature": 1.0})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "triplet"}, "'infonce' or 'siglip'"),
        ({"loss": "siglip", "hard_negatives": 1.0}, "belong to infonce"),
        ({"loss": "infonce", "soft_targets": 1.5}, "less than or equal to 1"),
    ],
)
def test_params_that_do_not_exist_or_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ContrastParams.model_validate(changes)
