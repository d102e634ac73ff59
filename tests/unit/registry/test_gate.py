"""The gate fails closed: each way in which a candidate is bad has a candidate that must be held."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from polyweft.evaluation.confidence import Rows
from registry.gate import Measured, NotEvaluable, RegisterParams, decide, minimum_bars

CLASSES = ("blue", "green", "red")
BARS = {"accuracy": 0.8, "macro_f1": 0.7}
GOOD = {"accuracy": 0.95, "macro_f1": 0.94}


def params(margin: float = 0.02, **changes: object) -> RegisterParams:
    given = {
        "name": "colours",
        "primary_metric": "accuracy",
        "non_inferiority_margin": margin,
        "minimum": BARS,
        "bootstrap_samples": 200,
        "description": "Tells colours apart.",
    }
    return RegisterParams.model_validate(given | changes)


def rows(right: int, count: int = 100) -> Rows:
    """Rows of `count` images of which the first `right` are classified rightly."""
    actual = np.arange(count) % 3
    predicted = np.where(np.arange(count) < right, actual, (actual + 1) % 3)
    numbers = np.arange(count)
    return {
        "unit_id": numbers,
        "row_id": numbers,
        "row_unit": numbers,
        "actual": actual,
        "predicted": predicted,
    }


def measured(
    right: int = 95, count: int = 100, classes: tuple[str, ...] = CLASSES, **metrics: float
) -> Measured:
    return Measured(GOOD | metrics, rows(right, count), classes)


def held(candidate: Measured, champion: Measured | NotEvaluable | None = None, **changes: object) -> str:
    decision = decide(candidate, champion, params(**changes), seed=0)
    assert not decision.promote
    assert decision.reasons
    return "; ".join(decision.reasons)


def test_first_version_needs_the_minimum_bars_alone() -> None:
    decision = decide(measured(), None, params(), seed=0)
    assert decision.promote
    assert decision.checks["minimum_bars"]["accuracy"] == {"bar": 0.8, "value": 0.95, "pass": True}


def test_value_on_the_bar_passes() -> None:
    assert decide(measured(accuracy=0.8), None, params(), seed=0).promote


def test_candidate_below_a_bar_is_held() -> None:
    assert "macro_f1 is 0.6900, below the bar of 0.7" in held(measured(macro_f1=0.69))


def test_candidate_at_chance_is_held_though_there_is_no_champion() -> None:
    assert "accuracy" in held(Measured({"accuracy": 1 / 3, "macro_f1": 1 / 6}, rows(33), CLASSES))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_candidate_whose_metric_is_no_number_is_held(metric: str, value: float) -> None:
    assert f"{metric} is missing or not a number" in held(measured(**{metric: value}))


def test_candidate_without_a_required_metric_is_held() -> None:
    candidate = Measured({"accuracy": 0.95}, rows(95), CLASSES)
    assert "macro_f1 is missing" in held(candidate)


def test_candidate_without_the_primary_metric_is_held_though_no_bar_names_it() -> None:
    assert "primary metric mrr is missing" in held(measured(), primary_metric="mrr")


@pytest.mark.parametrize("empty", [{}, rows(0, 0)])
def test_candidate_measured_on_no_samples_is_held(empty: Rows) -> None:
    assert "no samples" in held(Measured(GOOD, empty, CLASSES))
    assert "no samples" in held(Measured(GOOD, empty, CLASSES), measured())


def test_candidate_worse_than_the_champion_is_held() -> None:
    assert "may be worse by more than the margin of 0.02" in held(measured(85), measured(95))


def test_candidate_not_surely_as_good_is_held_though_the_point_is_within_the_margin() -> None:
    decision = decide(measured(94), measured(95), params(), seed=0)
    assert decision.checks["non_inferiority"]["difference"] == pytest.approx(-0.01)
    assert not decision.promote


def test_equal_and_better_candidates_are_promoted() -> None:
    assert decide(measured(95), measured(95), params(margin=0.0), seed=0).promote
    assert decide(measured(99), measured(90), params(), seed=0).promote


def test_champion_that_cannot_be_evaluated_means_hold() -> None:
    assert "cannot be evaluated on the same rows: it is gone" in held(measured(), NotEvaluable("it is gone"))


def test_champion_measured_on_other_rows_means_hold() -> None:
    assert "same rows" in held(measured(95, 100), measured(85, 90))


def test_champion_with_other_labels_means_hold() -> None:
    reason = held(measured(), measured(classes=("blue", "green", "pink")))
    assert "red new" in reason
    assert "pink gone" in reason
    assert "classes" in held(measured(), measured(classes=("red", "green", "blue")))


def test_champion_without_the_primary_metric_means_hold() -> None:
    champion = Measured(GOOD, {"unit_id": np.arange(100)}, CLASSES)
    assert "cannot be compared" in held(measured(), champion)


def test_difference_that_is_no_number_means_hold() -> None:
    metric = "text_to_image_mrr"
    nothing = rows(95) | {f"{metric}.part": np.zeros(100), f"{metric}.count": np.zeros(100)}
    candidate = Measured(GOOD | {metric: 0.5}, nothing, CLASSES)
    assert "not a number" in held(candidate, candidate, primary_metric=metric)


def test_every_reason_is_given() -> None:
    reason = held(measured(50, accuracy=0.5, macro_f1=math.nan), measured(95))
    assert reason.count(";") == 2


def test_bars_give_null_for_what_is_no_number() -> None:
    assert minimum_bars({"a": math.nan}, {"a": 0.5, "b": 0.5}) == {
        "a": {"bar": 0.5, "value": None, "pass": False},
        "b": {"bar": 0.5, "value": None, "pass": False},
    }


def test_params_without_a_bar_are_refused() -> None:
    with pytest.raises(ValidationError):
        params(minimum={})


values = st.one_of(st.none(), st.sampled_from([math.nan, math.inf, -math.inf]), st.floats(0, 1))
champions = st.one_of(
    st.none(), st.just(NotEvaluable("gone")), st.integers(0, 40).map(lambda right: measured(right, 40))
)


@given(st.fixed_dictionaries({"accuracy": values, "macro_f1": values}), champions, st.integers(0, 40))
def test_nothing_is_promoted_with_a_metric_missing_or_no_number(
    metrics: dict[str, float | None], champion: Measured | NotEvaluable | None, right: int
) -> None:
    present = {name: value for name, value in metrics.items() if value is not None}
    candidate = Measured(present, rows(right, 40), CLASSES)
    decision = decide(candidate, champion, params(margin=1.0, minimum={"accuracy": 0, "macro_f1": 0}), seed=0)
    whole = len(present) == 2 and all(math.isfinite(value) for value in present.values())
    assert decision.promote == (whole and not isinstance(champion, NotEvaluable))


@given(st.integers(0, 40), st.integers(0, 40), st.floats(0, 1), st.floats(0, 1))
def test_wider_margin_never_turns_a_promotion_into_a_hold(
    candidate: int, champion: int, one: float, other: float
) -> None:
    narrow, wide = (
        decide(measured(candidate, 40), measured(champion, 40), params(margin=margin), seed=0).promote
        for margin in sorted((one, other))
    )
    assert wide >= narrow


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_better_candidate_is_never_held_where_a_worse_one_passes(one: int, other: int, champion: int) -> None:
    worse, better = (
        decide(measured(right, 40), measured(champion, 40), params(margin=0.1), seed=0).promote
        for right in sorted((one, other))
    )
    assert better >= worse
