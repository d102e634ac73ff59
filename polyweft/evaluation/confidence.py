"""Bootstrap intervals of metrics, resampled by image, and the paired bootstrap that the gate asks.

What is resampled are units: an image with all rows and captions that share it; without images, another
medium; or a row that has none. Every metric is a function of the units' weights (see
`polyweft.evaluation.weighted`), most a ratio: a row's correctness, an image's hit, and, for queries that
several units bear, a query's value split evenly over them. The gallery and the ranks in it stay as they are;
only which units are counted varies. Intervals are percentiles (Efron and Tibshirani, 1993, chapter 13) of
multinomial resamples.

Shape suffixes: U units, B replicates.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import numpy.typing as npt

from polyweft.errors import DataError
from polyweft.evaluation.weighted import Rows, metric_names, same_keys
from polyweft.evaluation.weighted import metric as weighted_metric

__all__ = ["LEVEL", "Rows", "estimates", "intervals", "metric_names", "paired_difference"]

FloatArray = npt.NDArray[np.float64]

LEVEL = 0.95

_CHUNK_CELLS = 2**20


def estimates(rows: Rows, names: Collection[str] | None = None) -> dict[str, float]:
    """The metrics `names`, or all of `metric_names`, each unit counted once; NaN where one is undefined."""
    ones = np.ones((1, len(rows["unit_id"])))
    chosen = metric_names(rows) if names is None else names
    return {name: float(weighted_metric(rows, name)(ones)[0]) for name in chosen}


def intervals(
    rows: Rows, names: Collection[str] | None = None, *, samples: int, seed: int
) -> dict[str, tuple[float, float]]:
    """The 95% interval (low, high) of the metrics `names`, or of all of `metric_names`.

    Macro F1 over resampled rows is biased where classes are rare, so that a percentile interval can miss the
    estimate; an interval is widened to hold it. Replicates in which a metric is undefined are left out.
    """
    names = metric_names(rows) if names is None else names
    metrics = [weighted_metric(rows, name) for name in names]
    replicates = [
        [metric(weights_BU) for metric in metrics]
        for weights_BU in _resamples(len(rows["unit_id"]), samples, seed)
    ]
    points = estimates(rows, names)
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
    first, second = weighted_metric(candidate, metric), weighted_metric(champion, metric)
    ones = np.ones((1, len(candidate["unit_id"])))
    point = float(first(ones)[0] - second(ones)[0])
    replicates = [
        first(weights_BU) - second(weights_BU)
        for weights_BU in _resamples(len(candidate["unit_id"]), samples, seed)
    ]
    low, high = _percentiles(np.concatenate(replicates), point)
    return point, low, high


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
    keys = same_keys(candidate, metric)
    if keys != same_keys(champion, metric):
        raise DataError(
            f"candidate and champion retrieve between other modalities, so their {metric!r} cannot be "
            "compared. Name a metric of one direction, such as text_to_image_mrr."
        )
    for key in keys:
        if not np.array_equal(candidate[key], champion[key]):
            raise DataError(
                f"candidate and champion were not evaluated on the same rows ({key!r} differs, "
                f"{len(candidate[key])} and {len(champion[key])} long). Evaluate both on the same split with "
                "the same `evaluate` parameters."
            )
