"""Bootstrap intervals of metrics, resampled by image, and the paired bootstrap that the gate asks.

What is resampled are units: an image with all rows and captions that share it, or a row without an image.
Every metric is a function of the units' weights. Most are ratios, sum(w * part) / sum(w * count) over units:
a row's correctness, an image's hit, and, for queries by caption, a caption's value split evenly over the
images that bear it. Macro F1 is computed from weighted counts per class. The gallery and the ranks in it stay
as they are; only which images are counted varies. Intervals are percentiles (Efron and Tibshirani, 1993,
chapter 13) of multinomial resamples.

`rows`, the material of all this, is a dictionary of arrays: `unit_id` [U]; `<metric>.part` and
`<metric>.count` [U] for each ratio; of the classified rows `row_id`, `row_unit`, `actual` and `predicted`.

Shape suffixes: U units, B replicates, C classes, N classified rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from polyweft.errors import DataError
from polyweft.evaluation.classification import macro_f1

Rows = dict[str, npt.NDArray[Any]]
FloatArray = npt.NDArray[np.float64]

LEVEL = 0.95

BOTH_WAYS = {
    name: (f"image_to_text_{name}", f"text_to_image_{name}")
    for name in ("mean_average_precision", "ndcg_at_10", "mrr")
}
"""Metrics that are the mean of the two directions."""

_CHUNK_CELLS = 2**20


def metric_names(rows: Rows) -> list[str]:
    """The metrics that `rows` allows, sorted."""
    ratios = {name.removesuffix(".part") for name in rows if name.endswith(".part")}
    both = {name for name, parts in BOTH_WAYS.items() if ratios.issuperset(parts)}
    classified = {"accuracy", "macro_f1"} if "actual" in rows else set()
    return sorted(ratios | both | classified)


def estimates(rows: Rows) -> dict[str, float]:
    """Every metric of `metric_names`, each unit counted once."""
    ones = np.ones((1, len(rows["unit_id"])))
    return {name: float(_Metric(rows, name).values(ones)[0]) for name in metric_names(rows)}


def intervals(rows: Rows, *, samples: int, seed: int) -> dict[str, tuple[float, float]]:
    """The 95% interval (low, high) of every metric of `metric_names`.

    Macro F1 over resampled rows is biased where classes are rare, so that a percentile interval can miss the
    estimate; an interval is widened to hold it. Replicates in which a metric is undefined are left out.
    """
    names = metric_names(rows)
    metrics = [_Metric(rows, name) for name in names]
    replicates = [
        [metric.values(weights_BU) for metric in metrics]
        for weights_BU in _resamples(len(rows["unit_id"]), samples, seed)
    ]
    points = estimates(rows)
    return {
        name: _percentiles(np.concatenate([chunk[place] for chunk in replicates]), points[name])
        for place, name in enumerate(names)
    }


def paired_difference(
    candidate: Rows, champion: Rows, metric: str, *, samples: int, seed: int
) -> tuple[float, float, float]:
    """Candidate minus champion in `metric`, with its 95% interval: (difference, low, high).

    Both are weighted by the same resamples of the same images, so what is hard for both cancels out.

    Raises
    ------
    DataError
        The two were not computed on the same rows and captions, or `metric` is not among what both have.
    """
    for name, rows in (("candidate", candidate), ("champion", champion)):
        if metric not in metric_names(rows):
            raise DataError(
                f"the {name} has no metric {metric!r}; it has {metric_names(rows)}. Name one that both have."
            )
    _same_rows(candidate, champion, metric)
    first, second = _Metric(candidate, metric), _Metric(champion, metric)
    ones = np.ones((1, len(candidate["unit_id"])))
    point = float(first.values(ones)[0] - second.values(ones)[0])
    replicates = [
        first.values(weights_BU) - second.values(weights_BU)
        for weights_BU in _resamples(len(candidate["unit_id"]), samples, seed)
    ]
    low, high = _percentiles(np.concatenate(replicates), point)
    return point, low, high


class _Metric:
    """One metric as a function of units' weights: float64 [B, U] to [B], NaN where it is undefined."""

    def __init__(self, rows: Rows, name: str) -> None:
        self._ratios: list[FloatArray] = []
        self._counts = _ClassCounts(rows) if name == "macro_f1" else None
        if name == "accuracy":
            units = len(rows["unit_id"])
            right_N = (rows["actual"] == rows["predicted"]).astype(np.float64)
            part_U = np.bincount(rows["row_unit"], weights=right_N, minlength=units)
            count_U = np.bincount(rows["row_unit"], minlength=units).astype(np.float64)
            self._ratios.append(np.stack([part_U, count_U], axis=1))
        elif name != "macro_f1":
            for part in BOTH_WAYS.get(name, (name,)):
                self._ratios.append(np.stack([rows[f"{part}.part"], rows[f"{part}.count"]], axis=1))

    def values(self, weights_BU: FloatArray) -> FloatArray:
        if self._counts is not None:
            return macro_f1(*self._counts.weighted(weights_BU))
        totals = [weights_BU @ ratio for ratio in self._ratios]
        with np.errstate(invalid="ignore", divide="ignore"):
            values_B = [total[:, 0] / total[:, 1] for total in totals]
        return np.asarray(np.mean(values_B, axis=0), dtype=np.float64)


class _ClassCounts:
    """Hits, actual rows and predicted rows of each class, weighted by the rows' units."""

    def __init__(self, rows: Rows) -> None:
        names, codes = np.unique(np.concatenate([rows["actual"], rows["predicted"]]), return_inverse=True)
        self._classes = len(names)
        actual_N, predicted_N = np.split(codes, 2)
        right_N, unit_N = actual_N == predicted_N, rows["row_unit"]
        self._code = np.concatenate(
            [actual_N[right_N], self._classes + actual_N, 2 * self._classes + predicted_N]
        )
        self._unit = np.concatenate([unit_N[right_N], unit_N, unit_N])

    def weighted(self, weights_BU: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Three arrays float64 [B, C]."""
        counts: FloatArray = np.stack(
            [
                np.bincount(self._code, weights=weights_U[self._unit], minlength=3 * self._classes)
                for weights_U in weights_BU
            ]
        )
        hits_BC, actual_BC, predicted_BC = np.split(counts, 3, axis=1)
        return hits_BC, actual_BC, predicted_BC


def _resamples(units: int, samples: int, seed: int) -> Iterator[FloatArray]:
    """How often each unit was drawn, `samples` times U draws: chunks of float64 [B, U]."""
    generator = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_CELLS // max(units, 1))
    for start in range(0, samples, chunk):
        size = min(chunk, samples - start)
        drawn = generator.integers(0, units, size=(size, units)) + units * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * units)
        yield counts.reshape(size, units).astype(np.float64)


def _percentiles(values_B: FloatArray, point: float) -> tuple[float, float]:
    defined = values_B[np.isfinite(values_B)]
    if not len(defined):
        return point, point
    low, high = np.quantile(defined, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return min(float(low), point), max(float(high), point)


def _same_rows(candidate: Rows, champion: Rows, metric: str) -> None:
    keys = ["unit_id"]
    if metric in ("accuracy", "macro_f1"):
        keys += ["row_id", "row_unit", "actual"]
    else:
        keys += [f"{part}.count" for part in BOTH_WAYS.get(metric, (metric,))]
    for key in keys:
        if not np.array_equal(candidate[key], champion[key]):
            raise DataError(
                f"candidate and champion were not evaluated on the same rows ({key!r} differs, "
                f"{len(candidate[key])} and {len(champion[key])} long). Evaluate both on the same split with "
                "the same `evaluate` parameters."
            )
