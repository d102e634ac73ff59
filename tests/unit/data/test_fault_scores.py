"""The figures about findings are those of the definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from polyweft.data.fault_scores import average_precision, fault_facts


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 9)), min_size=1, max_size=40).filter(
        lambda rows: any(right for right, _ in rows)
    )
)
@settings(max_examples=50, deadline=None)
def test_average_precision_is_scikit_learns(rows: list[tuple[bool, int]]) -> None:
    right = np.array([r for r, _ in rows])
    scores = np.array([s / 10 for _, s in rows])
    assert average_precision(right, scores) == pytest.approx(average_precision_score(right, scores))


def test_a_positive_that_was_not_scored_counts_as_missed() -> None:
    right, scores = np.array([True, False]), np.array([0.9, 0.1])
    assert average_precision(right, scores, positives=2) == 0.5
    assert average_precision(np.array([], bool), np.array([]), positives=3) == 0.0


TRUTH = [
    {"id": "b", "fault": "exact_duplicate", "detail": "a"},
    {"id": "d", "fault": "near_duplicate", "detail": "c"},
    {"id": "f", "fault": "leak", "detail": "e"},
    {"id": "g", "fault": "broken_image", "detail": "truncated"},
    {"id": "h", "fault": "missing_file", "detail": ""},
    {"id": "i", "fault": "swapped_captions", "detail": "j"},
    {"id": "j", "fault": "swapped_captions", "detail": "i"},
]


def found(check: str, name: str, other: str | None = None) -> dict[str, str | None]:
    return {"check": check, "id": name, "other_id": other}


def test_everything_found_is_one_everywhere() -> None:
    findings = [
        found("exact_duplicates", "b", "a"),
        found("near_duplicates", "d", "c"),
        found("leaks", "e", "f"),  # the other side of the pair is named: still right
        found("mismatched_pairs", "i"),
        found("mismatched_pairs", "j"),
    ]
    facts = fault_facts(TRUTH, findings, {"g", "h"}, {"i": 0.9, "j": 0.8, "x": 0.1})
    assert set(facts.values()) == {1.0}
    assert "broken_audio_recall" not in facts


def test_wrong_findings_cost_precision_and_missed_ones_recall() -> None:
    findings = [
        found("exact_duplicates", "b", "a"),
        found("near_duplicates", "x", "y"),
        found("mismatched_pairs", "i"),
        found("mismatched_pairs", "x"),
    ]
    facts = fault_facts(TRUTH, findings, {"g", "x", "y", "z"}, {"i": 0.9, "x": 0.8, "j": 0.1})
    assert facts["duplicates_precision"] == 0.5
    assert facts["duplicates_recall"] == 0.5
    assert facts["near_duplicates_recall"] == 0.0
    assert (facts["leaks_precision"], facts["leaks_recall"]) == (0.0, 0.0)
    assert (facts["broken_precision"], facts["broken_recall"]) == (0.25, 0.5)
    assert facts["swapped_captions_precision"] == 0.5
    assert facts["swapped_captions_average_precision"] == pytest.approx((1 + 2 / 3) / 2, abs=1e-6)


def test_no_truth_gives_no_facts() -> None:
    assert fault_facts([], [found("leaks", "a", "b")], {"c"}, {"a": 0.5}) == {}
