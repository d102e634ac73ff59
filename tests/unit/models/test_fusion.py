"""Every fusion takes any number of modalities, and what is absent or padding changes nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from polyweft.models.fusion import FUSIONS, TOKEN_FUSIONS, Late, Weighted, build_fusion, pooled

F = 8
MASKED = [name for name in FUSIONS if name not in ("early", "gated")]


def _fusion(name: str, modalities: int, *, weighted: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return build_fusion(
        name, modalities, F, heads=2, layers=2, dropout=0.0,
        decide=lambda: nn.Linear(F, 3), outputs=3, weighted=weighted,
    ).eval()  # type: ignore[arg-type] # fmt: skip


def _features(modalities: int, rows: int = 4, *, tokens: bool = False, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(rows, 3 + m, F) if tokens else (rows, F) for m in range(modalities)]
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("name", FUSIONS)
@pytest.mark.parametrize("modalities", [1, 2, 3])
@pytest.mark.parametrize("tokens", [False, True])
def test_any_number_of_modalities_gives_a_vector_a_row_and_gradients(
    name: str, modalities: int, tokens: bool
) -> None:
    fusion = _fusion(name, modalities)
    features = [x.requires_grad_() for x in _features(modalities, tokens=tokens)]
    out = fusion(features, torch.ones(4, modalities))
    assert out.shape == (4, fusion.width)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in (*features, *fusion.parameters()))


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("tokens", [False, True])
def test_an_absent_modality_changes_nothing(name: str, tokens: bool) -> None:
    fusion, present = (
        _fusion(name, 3, weighted=True),
        torch.tensor([[1.0, 0, 1], [0, 1, 1], [0, 0, 1], [1, 1, 0]]),
    )
    one, other = _features(3, tokens=tokens), _features(3, tokens=tokens, seed=2)
    there = [column[:, None, None] if tokens else column[:, None] for column in present.T]
    mixed = [a * t + b * (1 - t) for a, b, t in zip(one, other, there, strict=True)]
    torch.testing.assert_close(fusion(one, present), fusion(mixed, present))
    assert fusion(one, present).isfinite().all()
    assert not torch.allclose(fusion(one, present), fusion(other, present), atol=1e-3)


@pytest.mark.parametrize("name", FUSIONS)
def test_padding_changes_nothing_and_rows_do_not_look_at_each_other(name: str) -> None:
    fusion, features, present = _fusion(name, 2), _features(2, tokens=True), torch.ones(4, 2)
    padded = [torch.cat([x, torch.zeros(4, 2, F)], dim=1) for x in features]
    whole = fusion(features, present)
    torch.testing.assert_close(fusion(padded, present), whole, rtol=1e-4, atol=1e-5)
    alone = fusion([x[2:3] for x in features], present[2:3])
    torch.testing.assert_close(alone, whole[2:3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["attention", "mid"])
def test_fusions_over_positions_see_more_than_their_mean(name: str) -> None:
    fusion, (image, text) = _fusion(name, 2), _features(2, tokens=True)
    means = [pooled(image)[:, None].expand_as(image), text]
    assert name in TOKEN_FUSIONS
    assert not torch.allclose(
        fusion([image, text], torch.ones(4, 2)), fusion(means, torch.ones(4, 2)), atol=1e-3
    )


@settings(max_examples=20, deadline=None)
@given(scores=st.lists(st.floats(-3, 3), min_size=3, max_size=3), absent=st.integers(0, 2))
def test_the_weights_of_those_present_sum_to_one(scores: list[float], absent: int) -> None:
    fusion = Weighted(3, F)
    fusion.weights.scores.data = torch.tensor(scores)
    present = torch.ones(2, 3)
    present[0, absent] = 0
    same = torch.ones(2, F)
    torch.testing.assert_close(fusion([same, same, same], present), same)


def test_late_decisions_are_averaged_over_those_present() -> None:
    late = Late([nn.Identity(), nn.Identity()], F, weighted=False)
    a, b = _features(2)
    present = torch.tensor([[1.0, 1], [1, 0], [0, 1], [1, 1]])
    expected = torch.stack([(a[0] + b[0]) / 2, a[1], b[2], (a[3] + b[3]) / 2])
    torch.testing.assert_close(late([a, b], present), expected)


def test_pooling_leaves_padding_out() -> None:
    x = torch.tensor([[[1.0, 3.0], [3.0, 5.0], [0.0, 0.0]], [[0.0, 0.0]] * 3])
    assert torch.equal(pooled(x), torch.tensor([[2.0, 4.0], [0.0, 0.0]]))
