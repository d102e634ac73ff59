"""Accuracy's companions agree with scikit-learn, and hold in the corners that it leaves open."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix as sklearn_confusion
from sklearn.metrics import f1_score, precision_recall_fscore_support

from polyweft.evaluation.classification import class_reports, confusion_matrix, macro_f1

PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(PAIRS)
def test_the_measures_equal_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    actual, predicted = np.array(pairs).T
    matrix = confusion_matrix(actual, predicted, 5)
    np.testing.assert_array_equal(matrix, sklearn_confusion(actual, predicted, labels=range(5)))

    counts = (np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0))
    ours = macro_f1(*(part[None].astype(float) for part in counts))
    assert np.isclose(ours[0], f1_score(actual, predicted, average="macro"))

    theirs = precision_recall_fscore_support(actual, predicted, labels=range(5), zero_division=0)
    reports = class_reports(matrix, list("abcde"))
    np.testing.assert_allclose([r.precision for r in reports], theirs[0])
    np.testing.assert_allclose([r.recall for r in reports], theirs[1])
    np.testing.assert_allclose([r.f1 for r in reports], theirs[2])
    assert [r.support for r in reports] == theirs[3].tolist()
    assert [r.name for r in reports] == list("abcde")


def test_macro_f1_of_nothing_is_undefined_and_not_zero() -> None:
    nothing = np.zeros((1, 3))
    assert np.isnan(macro_f1(nothing, nothing, nothing)[0])
