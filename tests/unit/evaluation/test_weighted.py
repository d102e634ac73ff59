"""The metrics of every task agree with scikit-learn, with weights, and are undefined where they must be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    mean_absolute_error,
    r2_score,
    roc_auc_score,
    root_mean_squared_error,
)

from polyweft.errors import DataError
from polyweft.evaluation.confidence import estimates, intervals, metric_names, paired_difference
from polyweft.evaluation.weighted import LOWER_IS_BETTER, Rows, metric

SEEDS = st.integers(0, 2**32 - 1)


def units(count: int) -> Rows:
    return {"unit_id": np.array([f"row:{i}" for i in range(count)])}


def binary(positive: np.ndarray, score: np.ndarray) -> Rows:
    names = np.where(positive, "yes", "no")
    ids, place = np.array([f"row-{i}" for i in range(len(score))]), np.arange(len(score))
    rows = {
        "row_id": ids,
        "row_unit": place,
        "actual": names,
        "predicted": np.where(score > 0.5, "yes", "no"),
    }
    return units(len(score)) | rows | {"positive": positive, "score": score}


def labelled(actual: np.ndarray, score: np.ndarray) -> Rows:
    ids, place = np.array([f"row-{i}" for i in range(len(score))]), np.arange(len(score))
    rows = {"label_row_id": ids, "label_row_unit": place, "label_actual": actual, "label_score": score}
    return units(len(score)) | rows


def valued(actual: np.ndarray, predicted: np.ndarray) -> Rows:
    ids, place = np.array([f"row-{i}" for i in range(len(actual))]), np.arange(len(actual))
    rows = {
        "value_row_id": ids,
        "value_row_unit": place,
        "value_actual": actual,
        "value_predicted": predicted,
    }
    return units(len(actual)) | rows


def drawn(seed: int, rows: int) -> tuple[np.random.Generator, np.ndarray]:
    """A generator, and how often each row was drawn (each at least once)."""
    generator = np.random.default_rng(seed)
    return generator, generator.integers(1, 4, rows).astype(float)


def value(rows: Rows, name: str, weights: np.ndarray) -> float:
    return float(metric(rows, name)(weights[None])[0])


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, steps=st.sampled_from([2, 5, 1000]))
def test_curves_of_a_ranking_equal_those_of_scikit_learn_with_ties_and_weights(seed: int, steps: int) -> None:
    generator, weights = drawn(seed, 30)
    positive = generator.random(30) < 0.4
    positive[:2] = True, False
    score = generator.integers(0, steps, 30) / steps
    rows = binary(positive, score)
    assert value(rows, "roc_auc", weights) == pytest.approx(
        roc_auc_score(positive, score, sample_weight=weights)
    )
    expected = average_precision_score(positive, score, sample_weight=weights)
    assert value(rows, "average_precision", weights) == pytest.approx(expected)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_scores_of_labels_equal_those_of_scikit_learn(seed: int) -> None:
    generator, weights = drawn(seed, 20)
    actual = generator.random((20, 4)) < 0.4
    actual[0] = True
    score = np.round(generator.random((20, 4)), 1).astype(np.float32)
    rows, guess = labelled(actual, score), score >= 0.5
    for name, average in (("label_micro_f1", "micro"), ("label_macro_f1", "macro")):
        expected = f1_score(actual, guess, average=average, sample_weight=weights, zero_division=0)
        assert value(rows, name, weights) == pytest.approx(expected)
    expected = average_precision_score(actual, score, average="macro", sample_weight=weights)
    assert value(rows, "label_map", weights) == pytest.approx(expected)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, shift=st.sampled_from([0.0, 1e4]))
def test_errors_of_numbers_equal_those_of_scikit_learn_also_far_from_zero(seed: int, shift: float) -> None:
    generator, weights = drawn(seed, 25)
    actual = generator.normal(size=25) + shift
    predicted = actual + generator.normal(size=25)
    rows = valued(actual, predicted)
    theirs = {"mae": mean_absolute_error, "rmse": root_mean_squared_error, "r2": r2_score}
    for name, function in theirs.items():
        assert value(rows, name, weights) == pytest.approx(function(actual, predicted, sample_weight=weights))
    covariance = np.cov(actual, predicted, aweights=weights)
    expected = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
    assert value(rows, "pearson", weights) == pytest.approx(expected)


def test_drawing_a_row_twice_is_having_it_twice() -> None:
    generator = np.random.default_rng(0)
    actual, predicted = generator.normal(size=8), generator.normal(size=8)
    counts = np.array([2, 1, 3, 0, 1, 1, 2, 1])
    repeated = valued(np.repeat(actual, counts), np.repeat(predicted, counts))
    for name, expected in estimates(repeated).items():
        assert value(valued(actual, predicted), name, counts.astype(float)) == pytest.approx(expected)


def test_what_is_undefined_is_nan_and_not_a_number_made_up() -> None:
    one_class = binary(np.ones(4, dtype=bool), np.linspace(0, 1, 4))
    assert np.isnan(estimates(one_class)["roc_auc"])
    nobody = labelled(np.zeros((4, 2), dtype=bool), np.zeros((4, 2)))
    assert np.isnan(estimates(nobody)["label_map"])
    flat = estimates(valued(np.full(5, 0.1), np.arange(5.0)))
    assert not np.isfinite([flat["r2"], flat["pearson"]]).any()
    assert flat["mae"] == pytest.approx(1.94)


def test_every_metric_has_an_interval_around_its_estimate() -> None:
    generator = np.random.default_rng(1)
    positive = generator.random(60) < 0.5
    actual = generator.normal(size=60)
    rows = binary(positive, (positive + generator.normal(size=60)).astype(np.float64))
    rows |= labelled(generator.random((60, 3)) < 0.5, generator.random((60, 3)))
    rows |= valued(actual, actual + generator.normal(size=60))
    found, points = intervals(rows, samples=200, seed=0), estimates(rows)
    assert set(found) == set(metric_names(rows))
    assert len(found) == 11
    for name, (low, high) in found.items():
        assert low < points[name] < high, name
    only = intervals(rows, ["r2"], samples=200, seed=0)
    assert only == {"r2": found["r2"]}


def test_models_are_compared_on_the_same_targets_alone() -> None:
    actual = np.arange(6.0)
    good, poor = valued(actual, actual + 0.1), valued(actual, actual[::-1])
    difference, low, high = paired_difference(good, poor, "mae", samples=200, seed=0)
    assert low <= difference <= high < 0
    assert "mae" in LOWER_IS_BETTER
    with pytest.raises(DataError, match="value_actual"):
        paired_difference(good, valued(actual + 1, actual), "r2", samples=100, seed=0)
    score, marks = np.linspace(0, 1, 6)[:, None], actual[:, None] > 2
    same = paired_difference(labelled(marks, score), labelled(marks, score), "label_map", samples=100, seed=0)
    assert same == (0, 0, 0)
    with pytest.raises(DataError, match="label_actual"):
        paired_difference(labelled(marks, score), labelled(~marks, score), "label_map", samples=100, seed=0)


def test_a_mean_over_other_directions_is_another_metric() -> None:
    def directions(*names: str) -> Rows:
        rows = units(3)
        for name in names:
            rows |= {f"{name}_mrr.part": np.ones(3), f"{name}_mrr.count": np.ones(3)}
        return rows

    two = directions("image_to_text", "text_to_image")
    four = directions("image_to_text", "text_to_image", "image_to_audio", "audio_to_image")
    with pytest.raises(DataError, match="between other modalities"):
        paired_difference(two, four, "mrr", samples=100, seed=0)
    assert paired_difference(two, four, "image_to_text_mrr", samples=100, seed=0) == (0, 0, 0)
