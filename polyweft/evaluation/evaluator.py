"""The evaluation of a model on one split: every metric with its interval, and what the gate compares.

The same code serves the trained PyTorch model, an exported ONNX model and a champion from the registry: it
asks for a `Predictor`. Names of metrics are flat and stable; `docs` and the gate rely on them.

- `accuracy`, `macro_f1`: rows with a label, by the row's image and first caption. Absent without classes.
- `image_to_text_*`: a query is an image; right are the captions that any of its rows bears.
- `text_to_image_*`: a query is a unique caption; right are all images that bear it.
- `*_recall_at_K`: a query's best right item is among the first K. `*_true_recall_at_K`: the share of a
  query's right items that are, averaged.
- `mean_average_precision`, `ndcg_at_10`, `mrr`: the mean of the two directions, which are given as well.
- `*_low`, `*_high`: 95% bootstrap interval by image; see `polyweft.evaluation.confidence`.
- `*_without_leaks`: the same over the split without the rows whose content also stands in train, which are
  then neither queries nor in the gallery. Only where there are such rows, and others.

Shape suffixes: N rows, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from polyweft.config import Section
from polyweft.data.shards import Sample
from polyweft.data.text import TextTokenizer
from polyweft.errors import DataError
from polyweft.evaluation.classification import ClassReport, class_reports
from polyweft.evaluation.confidence import Rows, estimates, intervals
from polyweft.evaluation.embedding import embed, unique_items
from polyweft.evaluation.measures import DIRECTIONS, Example, SplitMeasures
from polyweft.evaluation.retrieval import CURVE_AT, RECALL_AT
from polyweft.models.predictor import Predictor

Metrics = dict[str, float | int]
Split = Literal["train", "validation", "test"]


class EvaluateParams(Section):
    """Section `evaluate`."""

    split: Split = Field(description="the split that is evaluated")
    languages: list[str] | None = Field(description="captions of these languages only; null takes all")
    caption_choice: Literal["all", "first"] = Field(description="a row's captions: all, or its first")
    bootstrap_samples: int = Field(ge=100, le=100_000)
    batch_size: int = Field(ge=1, le=8192, description="images or captions that the model sees at once")


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate_split` found.

    Attributes
    ----------
    metrics
        Flat names to numbers, counts among them; see the module.
    rows
        What `confidence.paired_difference` compares.
    predictions
        Columns of equal length, a line a row: id, leak, label, predicted, probability,
        image_to_text_rank, text_to_image_rank (of the row's first caption); None where there is none.
    classes, confusion_CC, class_reports
        Of the classified rows: the classes that stand among the actual or the predicted ones.
    recall_curve
        direction, k, recall, low, high.
    examples
        Some captions with the images that they find.
    """

    metrics: Metrics
    rows: Rows
    predictions: dict[str, list[Any]]
    classes: list[str] = field(default_factory=list)
    confusion_CC: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))
    class_reports: list[ClassReport] = field(default_factory=list)
    recall_curve: list[dict[str, Any]] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)


def evaluate_split(
    predictor: Predictor,
    tokenizer: TextTokenizer,
    samples: Sequence[Sample],
    params: EvaluateParams,
    *,
    seed: int,
) -> Evaluation:
    """Evaluate `predictor` on `samples`.

    Raises
    ------
    DataError
        There are no samples, or none that the model can be measured on.
    MediaError, TrainingError
        An image cannot be decoded; the model answers NaN or infinity.
    """
    if not samples:
        raise DataError(
            f"split {params.split!r} has no rows to evaluate. Set evaluate.split to one that has, or give "
            "prepare a share for this split, then run `dvc repro`."
        )
    items = unique_items(samples, languages=params.languages, caption_choice=params.caption_choice)
    embedded = embed(predictor, tokenizer, samples, items, batch_size=params.batch_size)
    split = SplitMeasures(samples, items, embedded, list(predictor.classes))
    everything = np.ones(len(samples), dtype=bool)
    rows, ranks = split.rows(everything)
    if len(rows) <= 1:
        raise DataError(
            f"split {params.split!r} has {len(samples)} rows, but none with an image and a caption and none "
            "with a label that the model knows: there is nothing to measure. Check evaluate.languages, and "
            "the modalities in data/reports/prepare.json."
        )
    bounds = intervals(rows, samples=params.bootstrap_samples, seed=seed)
    metrics = _flat(rows, bounds, "") | split.counts(rows)
    leaks_N = np.array([sample.leak for sample in samples])
    if 0 < leaks_N.sum() < len(samples):
        clean_rows, _ = split.rows(~leaks_N)
        if len(clean_rows) > 1:
            clean_bounds = intervals(clean_rows, samples=params.bootstrap_samples, seed=seed)
            metrics |= _flat(clean_rows, clean_bounds, "_without_leaks")
    classes, confusion = split.confusion(rows)
    return Evaluation(
        metrics=metrics,
        rows=rows,
        predictions=split.predictions(rows, ranks),
        classes=classes,
        confusion_CC=confusion,
        class_reports=class_reports(confusion, classes),
        recall_curve=_curve(rows, bounds),
        examples=split.examples(ranks),
    )


def _flat(rows: Rows, bounds: dict[str, tuple[float, float]], suffix: str) -> Metrics:
    """Metrics by their flat names; the curve's other K are left to `recall_curve`."""
    hidden = {f"recall_at_{k}" for k in CURVE_AT if k not in RECALL_AT}
    metrics: Metrics = {}
    for name, value in estimates(rows).items():
        if any(name.endswith(f"_{tail}") for tail in hidden):
            continue
        metrics[f"{name}{suffix}"] = value
        if "true_recall" not in name:
            metrics[f"{name}{suffix}_low"], metrics[f"{name}{suffix}_high"] = bounds[name]
    return metrics


def _curve(rows: Rows, bounds: dict[str, tuple[float, float]]) -> list[dict[str, Any]]:
    values = estimates(rows)
    names = [(direction, k, f"{direction}_recall_at_{k}") for direction in DIRECTIONS for k in CURVE_AT]
    return [
        {
            "direction": direction,
            "k": k,
            "recall": values[name],
            "low": bounds[name][0],
            "high": bounds[name][1],
        }
        for direction, k, name in names
        if name in values
    ]
