"""Metrics as functions of the units' weights: what the bootstrap asks for again and again.

`Rows` is the material of all metrics, a dictionary of arrays. `unit_id` [U] names the units (see
`polyweft.evaluation.confidence`); the other keys come in groups, each of which allows some metrics:

- `<metric>.part`, `<metric>.count` [U]: a ratio, sum(w * part) / sum(w * count) over the units.
- `row_id`, `row_unit`, `actual`, `predicted` [N] of the classified rows: `accuracy`, `macro_f1`; with two
  classes also `positive` (bool) and `score` [N]: `roc_auc`, `average_precision`.
- `label_row_id`, `label_row_unit` [N], `label_actual` (bool) and `label_score` [N, K] of rows of which each
  may bear several labels: `label_micro_f1`, `label_macro_f1` at 0.5, `label_map`.
- `value_row_id`, `value_row_unit`, `value_actual`, `value_predicted` [N] of rows with a number: `mae`,
  `rmse`, `r2`, `pearson`.
- `bleu_statistics` [U, X], summed over each unit's captions: `bleu_4`; see `polyweft.evaluation.generation`.

Shape suffixes: U units, B replicates, C classes, N rows, K labels, X statistics.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from polyweft.evaluation.classification import macro_f1
from polyweft.evaluation.generation import bleu

Rows = dict[str, npt.NDArray[Any]]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

Metric = Callable[[FloatArray], FloatArray]
"""Weights of the units, float64 [B, U], to values [B]; NaN where the metric is undefined."""

MEANS = ("mean_average_precision", "ndcg_at_10", "mrr")
"""Metrics that are the mean over the directions of retrieval, such as `image_to_text_mrr`."""

LOWER_IS_BETTER = frozenset({"mae", "rmse"})
"""In every other metric a higher value is the better one."""

_CLASSES = ("accuracy", "macro_f1")
_BINARY = ("roc_auc", "average_precision")
_LABELS = ("label_micro_f1", "label_macro_f1", "label_map")
_VALUES = ("mae", "rmse", "r2", "pearson")
_GROUPS = {
    "actual": _CLASSES,
    "score": _BINARY,
    "label_actual": _LABELS,
    "value_actual": _VALUES,
    "bleu_statistics": ("bleu_4",),
}
_SAME = {
    **dict.fromkeys((*_CLASSES, *_BINARY), ("row_id", "row_unit", "actual")),
    **dict.fromkeys(_LABELS, ("label_row_id", "label_row_unit", "label_actual")),
    **dict.fromkeys(_VALUES, ("value_row_id", "value_row_unit", "value_actual")),
    "bleu_4": ("rouge_l.count",),
}


def metric_names(rows: Rows) -> list[str]:
    """The metrics that `rows` allows, sorted."""
    names = {name.removesuffix(".part") for name in rows if name.endswith(".part")}
    names |= {name for name in MEANS if len(_directions(rows, name)) > 1}
    for key, group in _GROUPS.items():
        names |= set(group) if key in rows else set()
    return sorted(names)


def same_keys(rows: Rows, name: str) -> list[str]:
    """The keys of `rows` that must be equal for two models to be compared in metric `name`."""
    if name in _SAME:
        return ["unit_id", *_SAME[name]]
    return ["unit_id", *(f"{part}.count" for part in _parts(rows, name))]


def metric(rows: Rows, name: str) -> Metric:
    """Metric `name` of `rows`, one of `metric_names`, as a function of the units' weights."""
    if name == "accuracy":
        right_N = (rows["actual"] == rows["predicted"]).astype(np.float64)
        return _ratios([_per_unit(rows, "row_unit", np.stack([right_N, np.ones_like(right_N)], axis=1))])
    if name == "macro_f1":
        return _class_f1(rows)
    if name in _BINARY:
        curve = _Curve(rows["positive"], rows["score"], rows["row_unit"])
        return curve.roc_auc if name == "roc_auc" else curve.average_precision
    if name == "label_map":
        return _label_map(rows)
    if name in _LABELS:
        return _label_f1(rows, micro=name == "label_micro_f1")
    if name == "bleu_4":
        return lambda weights_BU: bleu(weights_BU @ rows["bleu_statistics"])
    if name in _VALUES:
        return _regression(rows, name)
    return _ratios([np.stack([rows[f"{p}.part"], rows[f"{p}.count"]], axis=1) for p in _parts(rows, name)])


def _directions(rows: Rows, name: str) -> list[str]:
    ending = f"_{name}.part"
    return sorted(key.removesuffix(".part") for key in rows if "_to_" in key and key.endswith(ending))


def _parts(rows: Rows, name: str) -> list[str]:
    return _directions(rows, name) if name in MEANS else [name]


def _per_unit(rows: Rows, unit_key: str, columns_NX: FloatArray) -> FloatArray:
    """Sums of the rows' columns over each unit: float64 [U, X]."""
    units = len(rows["unit_id"])
    sums = [np.bincount(rows[unit_key], weights=column, minlength=units) for column in columns_NX.T]
    return np.stack(sums, axis=1)


def _ratios(pairs: list[FloatArray]) -> Metric:
    """The mean of several ratios, each with part and count by unit [U, 2]."""

    def values(weights_BU: FloatArray) -> FloatArray:
        totals = [weights_BU @ pair for pair in pairs]
        with np.errstate(invalid="ignore", divide="ignore"):
            values_B = [total[:, 0] / total[:, 1] for total in totals]
        return np.asarray(np.mean(values_B, axis=0), dtype=np.float64)

    return values


def _class_f1(rows: Rows) -> Metric:
    names, codes = np.unique(np.concatenate([rows["actual"], rows["predicted"]]), return_inverse=True)
    classes = len(names)
    actual_N, predicted_N = np.split(codes, 2)
    right_N, unit_N = actual_N == predicted_N, rows["row_unit"]
    code = np.concatenate([actual_N[right_N], classes + actual_N, 2 * classes + predicted_N])
    unit = np.concatenate([unit_N[right_N], unit_N, unit_N])

    def values(weights_BU: FloatArray) -> FloatArray:
        counts: FloatArray = np.stack(
            [np.bincount(code, weights=weights_U[unit], minlength=3 * classes) for weights_U in weights_BU]
        )
        hits_BC, actual_BC, predicted_BC = np.split(counts, 3, axis=1)
        return macro_f1(hits_BC, actual_BC, predicted_BC)

    return values


class _Curve:
    """A ranking by score: its ROC and precision-recall curves under weights, ties as one step."""

    def __init__(self, positive_N: BoolArray, score_N: npt.NDArray[Any], unit_N: npt.NDArray[Any]) -> None:
        order = np.argsort(-score_N, kind="stable")
        self._positive_N, self._unit_N = positive_N[order].astype(np.float64), unit_N[order]
        ordered = score_N[order]
        self._ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)) if len(ordered) else order

    def _counts(self, weights_BU: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Weighted positives and negatives at or above each distinct score: float64 [B, steps]."""
        weights_BN = weights_BU[:, self._unit_N]
        hits_BN = np.cumsum(weights_BN * self._positive_N, axis=1)[:, self._ends]
        return hits_BN, np.cumsum(weights_BN, axis=1)[:, self._ends] - hits_BN

    def roc_auc(self, weights_BU: FloatArray) -> FloatArray:
        """Area under the ROC curve by the trapezoidal rule; NaN without positives or without negatives."""
        hits, misses = self._counts(weights_BU)
        before = np.concatenate([np.zeros((len(hits), 1)), hits[:, :-1]], axis=1)
        area_B = (np.diff(misses, axis=1, prepend=0) * (hits + before) / 2).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(area_B / (hits[:, -1] * misses[:, -1]), dtype=np.float64)

    def average_precision(self, weights_BU: FloatArray) -> FloatArray:
        """Sum over steps of the gain in recall times the precision there; NaN without positives."""
        hits, misses = self._counts(weights_BU)
        precision = hits / np.maximum(hits + misses, np.finfo(np.float64).tiny)
        with np.errstate(invalid="ignore", divide="ignore"):
            total_B = (np.diff(hits, axis=1, prepend=0) * precision).sum(axis=1)
            return np.asarray(total_B / hits[:, -1], dtype=np.float64)


def _label_f1(rows: Rows, *, micro: bool) -> Metric:
    actual_NK, predicted_NK = rows["label_actual"], rows["label_score"] >= 0.5
    counts_N3K = np.stack([actual_NK & predicted_NK, actual_NK, predicted_NK], axis=1).astype(np.float64)
    if micro:
        hits_N, actual_N, predicted_N = counts_N3K.sum(axis=2).T
        return _ratios(
            [_per_unit(rows, "label_row_unit", np.stack([2 * hits_N, actual_N + predicted_N], axis=1))]
        )
    labels = actual_NK.shape[1]
    units_UX = _per_unit(rows, "label_row_unit", counts_N3K.reshape(len(counts_N3K), -1))

    def values(weights_BU: FloatArray) -> FloatArray:
        hits_BK, actual_BK, predicted_BK = np.split(weights_BU @ units_UX, [labels, 2 * labels], axis=1)
        return macro_f1(hits_BK, actual_BK, predicted_BK)

    return values


def _label_map(rows: Rows) -> Metric:
    """The mean of the labels' average precisions, over the labels that some row bears."""
    curves = [
        _Curve(actual_N, score_N, rows["label_row_unit"])
        for actual_N, score_N in zip(rows["label_actual"].T, rows["label_score"].T, strict=True)
    ]

    def values(weights_BU: FloatArray) -> FloatArray:
        values_KB = np.stack([curve.average_precision(weights_BU) for curve in curves])
        stands_KB = np.isfinite(values_KB)
        count_B = stands_KB.sum(axis=0)
        mean_B = np.where(stands_KB, values_KB, 0).sum(axis=0) / np.maximum(count_B, 1)
        return np.asarray(np.where(count_B > 0, mean_B, np.nan), dtype=np.float64)

    return values


def _regression(rows: Rows, name: str) -> Metric:
    # Centred, so that sums of squares do not cancel.
    middle = float(np.mean(rows["value_actual"]))
    y_N, p_N = rows["value_actual"] - middle, rows["value_predicted"] - middle
    error_N = p_N - y_N
    columns = [np.ones_like(y_N), abs(error_N), error_N**2, y_N, p_N, y_N**2, p_N**2, y_N * p_N]
    moments_UX = _per_unit(rows, "value_row_unit", np.stack(columns, axis=1).astype(np.float64))
    # What is left of equal numbers after rounding is no spread.
    rounding = (1e-12 * float(max(abs(middle), abs(y_N).max(), abs(p_N).max()))) ** 2

    def values(weights_BU: FloatArray) -> FloatArray:
        n, absolute, squared, y, p, yy, pp, yp = (weights_BU @ moments_UX).T
        with np.errstate(invalid="ignore", divide="ignore"):
            spread_y, spread_p = (s2 - s * s / n for s2, s in ((yy, y), (pp, p)))
            spread_y, spread_p = (np.where(s > rounding * n, s, 0.0) for s in (spread_y, spread_p))
            found: dict[str, FloatArray] = {
                "mae": absolute / n,
                "rmse": np.sqrt(squared / n),
                "r2": 1 - squared / spread_y,
                "pearson": (yp - y * p / n) / np.sqrt(spread_y * spread_p),
            }
        return found[name]

    return values
