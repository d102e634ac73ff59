"""Intervals cover what they should, follow images and not rows, and the paired bootstrap is paired."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from polyweft.errors import DataError
from polyweft.evaluation.confidence import Rows, estimates, intervals, metric_names, paired_difference


def classified(right: np.ndarray, unit: np.ndarray | None = None) -> Rows:
    """Rows of class a or b; where `right` is 0 the other one is predicted."""
    unit = np.arange(len(right)) if unit is None else unit
    actual = np.where(np.arange(len(right)) % 2, "a", "b")
    wrong = np.where(np.arange(len(right)) % 2, "b", "a")
    return {
        "unit_id": np.array([f"image:{i}" for i in range(unit.max() + 1)]),
        "row_id": np.array([f"row-{i}" for i in range(len(right))]),
        "row_unit": unit,
        "actual": actual,
        "predicted": np.where(right, actual, wrong),
    }


def ratio(values: np.ndarray, name: str = "text_to_image_mrr") -> Rows:
    ids = np.array([f"image:{i}" for i in range(len(values))])
    return {"unit_id": ids, f"{name}.part": values.astype(float), f"{name}.count": np.ones(len(values))}


def test_estimates_are_the_plain_metrics() -> None:
    right = np.array([1, 1, 0, 1, 1])
    rows = classified(right)
    assert estimates(rows)["accuracy"] == pytest.approx(0.8)
    f1 = f1_score(rows["actual"], rows["predicted"], average="macro")
    assert estimates(rows)["macro_f1"] == pytest.approx(f1)


def test_the_interval_of_a_share_is_as_wide_as_theory_says() -> None:
    right = np.random.default_rng(0).random(400) < 0.7
    low, high = intervals(classified(right), samples=4000, seed=1)["accuracy"]
    share = right.mean()
    half = 1.96 * np.sqrt(share * (1 - share) / 400)
    assert (low, high) == pytest.approx((share - half, share + half), abs=0.008)


def test_about_95_of_100_intervals_cover_the_truth() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        low, high = intervals(ratio(generator.random(80) ** 2), samples=300, seed=trial)["text_to_image_mrr"]
        covered += low <= 1 / 3 <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_rows_that_share_an_image_are_drawn_together() -> None:
    right = np.repeat(np.random.default_rng(0).random(100) < 0.5, 9)
    alone = intervals(classified(right), samples=1000, seed=0)["accuracy"]
    shared = intervals(classified(right, np.repeat(np.arange(100), 9)), samples=1000, seed=0)["accuracy"]
    assert shared[1] - shared[0] > 2.5 * (alone[1] - alone[0])


def test_an_interval_holds_its_estimate_and_is_a_point_where_nothing_varies() -> None:
    generator = np.random.default_rng(0)
    rows = classified(generator.random(7) < 0.5) | {"row_id": np.arange(7).astype(str)}
    rows["actual"] = np.array(list("abcdefg"))
    for name, (low, high) in intervals(rows, samples=200, seed=0).items():
        assert low <= estimates(rows)[name] <= high
    assert intervals(ratio(np.ones(5)), samples=100, seed=0)["text_to_image_mrr"] == (1.0, 1.0)


def test_a_unit_without_a_part_in_a_metric_does_not_move_it() -> None:
    rows = ratio(np.array([1.0, 0.0, 0.0]))
    rows["text_to_image_mrr.count"][2] = 0
    assert estimates(rows)["text_to_image_mrr"] == 0.5


def test_metrics_of_both_directions_are_their_mean() -> None:
    rows = ratio(np.array([1.0, 1.0])) | ratio(np.array([0.0, 1.0]), "image_to_text_mrr")
    assert estimates(rows)["mrr"] == 0.75
    assert metric_names(ratio(np.ones(2))) == ["text_to_image_mrr"]


def test_the_same_seed_gives_the_same_interval_and_another_one_another() -> None:
    rows = ratio(np.random.default_rng(0).random(50))
    assert intervals(rows, samples=100, seed=3) == intervals(rows, samples=100, seed=3)
    assert intervals(rows, samples=100, seed=3) != intervals(rows, samples=100, seed=4)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_a_model_does_not_differ_from_itself(metric: str) -> None:
    rows = classified(np.random.default_rng(0).random(50) < 0.6)
    assert paired_difference(rows, rows, metric, samples=200, seed=0) == (0.0, 0.0, 0.0)


def test_pairing_sees_a_small_steady_difference_that_two_intervals_cannot() -> None:
    values = np.random.default_rng(0).random(200)
    better, worse = ratio(values), ratio(values * 0.97)
    difference, low, high = paired_difference(better, worse, "text_to_image_mrr", samples=500, seed=0)
    assert difference == pytest.approx(values.mean() * 0.03)
    assert 0 < low <= difference <= high
    apart = [intervals(rows, samples=500, seed=0)["text_to_image_mrr"] for rows in (better, worse)]
    assert apart[0][0] < apart[1][1]
    swapped = paired_difference(worse, better, "text_to_image_mrr", samples=500, seed=0)
    assert swapped == pytest.approx((-difference, -high, -low))


def test_models_are_not_compared_on_different_rows() -> None:
    one, other = classified(np.ones(4)), classified(np.ones(4))
    other["actual"] = other["actual"][::-1].copy()
    with pytest.raises(DataError, match="actual"):
        paired_difference(one, other, "accuracy", samples=100, seed=0)
    with pytest.raises(DataError, match="unit_id"):
        paired_difference(ratio(np.ones(3)), ratio(np.ones(4)), "text_to_image_mrr", samples=100, seed=0)
    fewer = ratio(np.ones(3))
    fewer["text_to_image_mrr.count"][0] = 0.5
    with pytest.raises(DataError, match="count"):
        paired_difference(ratio(np.ones(3)), fewer, "text_to_image_mrr", samples=100, seed=0)


def test_a_metric_that_one_of_them_lacks_is_an_error_that_names_it() -> None:
    with pytest.raises(DataError, match="champion has no metric 'accuracy'"):
        paired_difference(classified(np.ones(3)), ratio(np.ones(3)), "accuracy", samples=100, seed=0)
