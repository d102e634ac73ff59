"""Ranks and measures against their definitions written out, and the laws that they must obey."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from polyweft.errors import PolyweftError
from polyweft.evaluation import retrieval
from polyweft.evaluation.retrieval import per_query, rank_pairs
from tests.unit.evaluation.table_model import unit_rows

Array = npt.NDArray[np.float64]


def written_out(scores_QG: Array, right_QG: npt.NDArray[np.bool_]) -> list[dict[str, float]]:
    """Sort each query's gallery, wrong items before right ones where they tie, and read the measures off."""
    answers = []
    for scores, right in zip(scores_QG, right_QG, strict=True):
        order = sorted(range(len(scores)), key=lambda i: (-scores[i], right[i]))
        hits = np.array([right[i] for i in order])
        ranks = np.flatnonzero(hits) + 1
        answers.append(
            {
                "recall_at_1": float(hits[:1].any()),
                "recall_at_5": float(hits[:5].any()),
                "true_recall_at_5": hits[:5].sum() / hits.sum(),
                "average_precision": np.mean(np.cumsum(hits)[ranks - 1] / ranks),
                "reciprocal_rank": 1 / ranks[0],
                "best_rank": float(ranks[0]),
            }
        )
    return answers


def relation(
    generator: np.random.Generator, images: int, captions: int, density: float
) -> npt.NDArray[np.bool_]:
    """A random relation in which every image and every caption has a partner."""
    right = generator.random((images, captions)) < density
    right[np.arange(images), generator.integers(0, captions, images)] = True
    right[generator.integers(0, images, captions), np.arange(captions)] = True
    return right


def exact_grid(generator: np.random.Generator, rows: int, size: int) -> npt.NDArray[np.float32]:
    """Vectors of -1, 0 and 1: their products are whole numbers, so that ties are many and exact."""
    return generator.integers(-1, 2, size=(rows, size)).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(1, 30),
    captions=st.integers(1, 30),
    density=st.sampled_from([0.0, 0.1, 0.6]),
    few=st.sampled_from([0, 2, 8]),
    block=st.sampled_from([3, 240]),
)
def test_ranks_and_measures_equal_the_definitions_with_many_ties(
    seed: int, images: int, captions: int, density: float, few: int, block: int
) -> None:
    generator = np.random.default_rng(seed)
    a, b = exact_grid(generator, images, 4), exact_grid(generator, captions, 4)
    right = relation(generator, images, captions, density)
    pairs = np.argwhere(right)
    generator.shuffle(pairs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "_FEW", few)
        patch.setattr(retrieval, "_BLOCK", block)
        ranks = rank_pairs(a, b, pairs)
    scores = (a @ b.T).astype(np.float64)
    for side, (table, relevant, queries) in enumerate(
        [(scores, right, images), (scores.T, right.T, captions)]
    ):
        ours = per_query(ranks[:, side], pairs[:, side], queries)
        for query, expected in enumerate(written_out(table, relevant)):
            for name, value in expected.items():
                assert ours[name][query] == pytest.approx(value), (name, side, query)


def test_ndcg_equals_that_of_scikit_learn_where_nothing_ties() -> None:
    generator = np.random.default_rng(3)
    a, b = unit_rows(generator, 20, 16), unit_rows(generator, 45, 16)
    right = relation(generator, 20, 45, 0.3)
    pairs = np.argwhere(right)
    ours = per_query(rank_pairs(a, b, pairs)[:, 0], pairs[:, 0], 20)["ndcg_at_10"]
    theirs = [ndcg_score([right[i]], [a[i] @ b.T], k=10, ignore_ties=True) for i in range(20)]
    np.testing.assert_allclose(ours, theirs)


@pytest.mark.parametrize("size", [16, 48, 384, 511])
def test_a_constant_embedding_finds_nothing(size: int) -> None:
    one = unit_rows(np.random.default_rng(size), 1, size)
    pairs = np.stack([np.arange(300), np.arange(300)], axis=1)
    ranks = rank_pairs(np.repeat(one, 300, axis=0), np.repeat(one, 300, axis=0), pairs)
    assert (ranks == 300).all()


def test_the_order_of_images_and_captions_does_not_matter() -> None:
    generator = np.random.default_rng(1)
    a, b = unit_rows(generator, 40, 8), unit_rows(generator, 70, 8)
    pairs = np.argwhere(relation(generator, 40, 70, 0.05))
    shuffle_a, shuffle_b = generator.permutation(40), generator.permutation(70)
    moved = np.stack([np.argsort(shuffle_a)[pairs[:, 0]], np.argsort(shuffle_b)[pairs[:, 1]]], axis=1)
    np.testing.assert_array_equal(rank_pairs(a, b, pairs), rank_pairs(a[shuffle_a], b[shuffle_b], moved))


def test_a_gallery_that_grows_never_improves_a_rank() -> None:
    generator = np.random.default_rng(2)
    a, b = unit_rows(generator, 30, 8), unit_rows(generator, 60, 8)
    pairs = np.stack([np.arange(30), np.arange(30)], axis=1)
    small, large = rank_pairs(a, b[:30], pairs), rank_pairs(a, b, pairs)
    assert (large[:, 0] >= small[:, 0]).all()
    np.testing.assert_array_equal(large[:, 1], small[:, 1])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_embeddings_that_are_not_finite_are_refused(bad: float) -> None:
    a = np.eye(3, dtype=np.float32)
    broken = a.copy()
    broken[1, 0] = bad
    pairs = np.stack([np.arange(3), np.arange(3)], axis=1)
    for left, right in ((a, broken), (broken, a)):
        with pytest.raises(PolyweftError, match="1 of 3"):
            rank_pairs(left, right, pairs)
