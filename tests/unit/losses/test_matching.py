"""A hard negative is wrong, near, and drawn as the generator says."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from polyweft.losses.gather import Rows
from polyweft.losses.matching import hard_negatives

SCALE = torch.tensor(10.0)


def _rows(seed: int, keys: list[int], there: list[bool]) -> Rows:
    x_BD = torch.randn(len(keys), 4, generator=torch.Generator().manual_seed(seed))
    return Rows.gather(functional.normalize(x_BD, dim=1), torch.tensor(keys), torch.tensor(there))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 999),
    keys=st.lists(st.integers(0, 3), min_size=5, max_size=5),
    there=st.lists(st.booleans(), min_size=5, max_size=5),
    drawn=st.booleans(),
)
def test_a_partner_is_never_right_and_never_absent(
    seed: int, keys: list[int], there: list[bool], drawn: bool
) -> None:
    a, b = _rows(seed, list(range(5)), [True] * 5), _rows(seed + 1, keys, there)
    generator = torch.Generator().manual_seed(seed) if drawn else None
    for chosen in hard_negatives(a, b, SCALE, generator=generator):
        for row, other in enumerate(chosen.tolist()):
            wrong = [j for j in range(5) if there[row] and there[j] and keys[j] != keys[row]]
            assert other in wrong if wrong else other == -1


def test_without_a_generator_the_nearest_wrong_row_is_taken() -> None:
    a, b = _rows(0, [0, 1, 2, 3], [True] * 4), _rows(1, [0, 1, 2, 3], [True] * 4)
    cosine = (a.x_BD @ b.x_BD.T).fill_diagonal_(-2)
    for_a, for_b = hard_negatives(a, b, SCALE)
    assert torch.equal(for_a, cosine.argmax(dim=1))
    assert torch.equal(for_b, cosine.argmax(dim=0))


def test_near_rows_are_drawn_more_often() -> None:
    near = functional.normalize(torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.0]]), dim=1)
    rows = Rows.gather(near, torch.arange(3), torch.ones(3, dtype=torch.bool))
    generator = torch.Generator().manual_seed(0)
    drawn = [
        int(hard_negatives(rows, rows, torch.tensor(1.0), generator=generator)[0][0]) for _ in range(200)
    ]
    assert 100 < drawn.count(1) < 200
