"""Measures of a classifier: accuracy, macro F1, the report per class, the confusion matrix.

Shape suffixes: N rows, C classes, B anything (bootstrap replicates, or nothing).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


def confusion_matrix(actual_N: IntArray, predicted_N: IntArray, classes: int) -> IntArray:
    """Count rows by class: int64 [C, C], the actual class down, the predicted one across."""
    cells = np.bincount(actual_N * classes + predicted_N, minlength=classes * classes)
    return cells.reshape(classes, classes).astype(np.int64)


def macro_f1(hits_BC: FloatArray, actual_BC: FloatArray, predicted_BC: FloatArray) -> FloatArray:
    """Mean over classes of F1 = 2 hits / (actual + predicted), [B]; NaN where there is no class.

    The mean goes over the classes that stand among the actual or the predicted ones, as scikit-learn's
    `f1_score(average="macro")` does. Counts may be weighted.
    """
    total_BC = actual_BC + predicted_BC
    stands_BC = total_BC > 0
    f1_BC = 2 * hits_BC / np.where(stands_BC, total_BC, 1)
    classes_B = stands_BC.sum(axis=-1)
    mean_B = f1_BC.sum(axis=-1) / np.maximum(classes_B, 1)
    return np.asarray(np.where(classes_B > 0, mean_B, np.nan), dtype=np.float64)


@dataclass(frozen=True)
class ClassReport:
    """One class's line: precision, recall and F1 in [0, 1] (0 where undefined), and its actual rows."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int


def class_reports(confusion_CC: IntArray, names: list[str]) -> list[ClassReport]:
    """Precision, recall, F1 and support of every class, in the order of `names`."""
    hits_C = np.diag(confusion_CC)
    actual_C, predicted_C = confusion_CC.sum(axis=1), confusion_CC.sum(axis=0)
    return [
        ClassReport(
            name=name,
            precision=_ratio(hits, predicted),
            recall=_ratio(hits, actual),
            f1=_ratio(2 * hits, actual + predicted),
            support=int(actual),
        )
        for name, hits, actual, predicted in zip(names, hits_C, actual_C, predicted_C, strict=True)
    ]


def _ratio(part: np.int64, whole: np.int64) -> float:
    return float(part / whole) if whole else 0.0
