"""The evaluation of a model on one split: every metric with its interval, and what the gate compares.

The same code serves the trained PyTorch model, an exported ONNX model and a champion from the registry, of
any family: it asks for a `Predictor`. Names of metrics are flat and stable; the gate relies on them.

- `<a>_to_<b>_*`, for every two modalities that the model embeds and some row has both of: a query is a unique
  content of `a` (an image, a caption), right are the contents of `b` that any of its rows bears.
- `*_recall_at_K`: a query's best right item is among the first K. `*_true_recall_at_K`: the share of a
  query's right items that are, averaged.
- `mean_average_precision`, `ndcg_at_10`, `mrr`: the mean over the directions, which are given as well.
- `accuracy`, `macro_f1` of rows with a label, with two classes also `roc_auc` and `average_precision` of the
  class whose name comes last; `label_micro_f1`, `label_macro_f1` (at 0.5) and `label_map` (the mean over
  labels of average precision) of rows with several labels; `mae`, `rmse`, `r2`, `pearson` of rows with a
  number. All by the row's media and first caption.
- `accuracy_with_<m>`, `accuracy_without_<m>`: see `polyweft.evaluation.missing`.
- `bleu_4`, `rouge_l`, `cider` of generated captions; `zero_shot_accuracy`: see `captioning`, `zero_shot`.
- `*_low`, `*_high`: 95% bootstrap interval by image; see `polyweft.evaluation.confidence`.
- `*_without_leaks`: the same over the split without the rows whose content also stands in train, which are
  then neither queries nor in the gallery. Only where there are such rows, and others.

Shape suffixes: N rows, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from polyweft.config import Section
from polyweft.data.shards import Sample
from polyweft.errors import DataError
from polyweft.evaluation.captioning import Captioned
from polyweft.evaluation.classification import ClassReport, class_reports
from polyweft.evaluation.confidence import Rows, estimates, intervals
from polyweft.evaluation.measures import Example
from polyweft.evaluation.missing import Removal
from polyweft.evaluation.retrieval import CURVE_AT, RECALL_AT
from polyweft.evaluation.split import Split
from polyweft.evaluation.tasks import confusion, label_reports
from polyweft.evaluation.zero_shot import PLACE
from polyweft.models.predictor import Predictor

Metrics = dict[str, float | int]
SplitName = Literal["train", "validation", "test"]


class EvaluateParams(Section):
    """Section `evaluate`."""

    split: SplitName = Field(description="the split that is evaluated")
    languages: list[str] | None = Field(description="captions of these languages only; null takes all")
    caption_choice: Literal["all", "first"] = Field(description="a row's captions: all, or its first")
    bootstrap_samples: int = Field(ge=100, le=100_000)
    batch_size: int = Field(ge=1, le=8192, description="contents that the model sees at once")
    zero_shot_templates: list[str] = Field(
        default=[], max_length=256, description="`a photo of a {}`: classes told by name; [] leaves it out"
    )

    @field_validator("zero_shot_templates")
    @classmethod
    def _with_a_place(cls, templates: list[str]) -> list[str]:
        for template in templates:
            if template.count(PLACE) != 1:
                raise ValueError(f"template {template!r} needs {PLACE} once, where the class's name goes")
        return templates


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
        Columns of equal length, a line a row: id, leak, label, predicted, probability, what other tasks
        answer, and `<direction>_rank` (of the row's first caption); None where there is none.
    classes, confusion_CC, class_reports
        Of the classified rows: the classes that stand among the actual or the predicted ones.
    label_reports
        Of the rows that may bear several labels, at 0.5.
    recall_curve
        direction, k, recall, low, high.
    removals
        Each task without each modality.
    examples
        Some captions with the images (or other contents) that they find.
    captions
        Some images with the captions that were generated for them.
    """

    metrics: Metrics
    rows: Rows
    predictions: dict[str, list[Any]]
    classes: list[str] = field(default_factory=list)
    confusion_CC: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))
    class_reports: list[ClassReport] = field(default_factory=list)
    label_reports: list[ClassReport] = field(default_factory=list)
    recall_curve: list[dict[str, Any]] = field(default_factory=list)
    removals: list[Removal] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    captions: list[Captioned] = field(default_factory=list)


def evaluate_split(
    predictor: Predictor, samples: Sequence[Sample], params: EvaluateParams, *, seed: int
) -> Evaluation:
    """Evaluate `predictor` on `samples`.

    Raises
    ------
    DataError
        There are no samples, or none that the model can be measured on.
    MediaError, TrainingError
        A content cannot be decoded; the model answers NaN or infinity.
    """
    if not samples:
        raise DataError(
            f"split {params.split!r} has no rows to evaluate. Set evaluate.split to one that has, or give "
            "prepare a share for this split, then run `dvc repro`."
        )
    split = Split(
        predictor,
        samples,
        languages=params.languages,
        caption_choice=params.caption_choice,
        templates=params.zero_shot_templates,
        batch_size=params.batch_size,
    )
    all_N = np.ones(len(samples), dtype=bool)
    rows, ranks = split.rows(all_N)
    if len(rows) <= 1:
        raise DataError(
            f"split {params.split!r} has {len(samples)} rows, but none with two of the modalities "
            f"{predictor.modalities} that the model joins, and none with a target that its head knows: there "
            "is nothing to measure. Check evaluate.languages, and what data/reports/prepare.json counts."
        )
    bounds = intervals(rows, samples=params.bootstrap_samples, seed=seed)
    metrics = _flat(rows, bounds, "")
    removed = split.removals(all_N, bootstrap_samples=params.bootstrap_samples, seed=seed)
    metrics |= _removal_metrics(removed, "") | split.counts(rows)
    leaks_N = np.array([sample.leak for sample in samples])
    if 0 < leaks_N.sum() < len(samples):
        clean_rows, _ = split.rows(~leaks_N)
        if len(clean_rows) > 1:
            clean_bounds = intervals(clean_rows, samples=params.bootstrap_samples, seed=seed)
            metrics |= _flat(clean_rows, clean_bounds, "_without_leaks")
            clean = split.removals(~leaks_N, bootstrap_samples=params.bootstrap_samples, seed=seed)
            metrics |= _removal_metrics(clean, "_without_leaks")
    classes, confusion_CC = confusion(rows)
    return Evaluation(
        metrics=metrics,
        rows=rows,
        predictions=split.predictions(ranks),
        classes=classes,
        confusion_CC=confusion_CC,
        class_reports=class_reports(confusion_CC, classes),
        label_reports=label_reports(rows, list(predictor.labels)),
        recall_curve=_curve(rows, bounds, split.retrieval.directions),
        removals=removed,
        examples=split.retrieval.examples(ranks),
        captions=split.captions,
    )


def _flat(rows: Rows, bounds: Mapping[str, tuple[float, float]], suffix: str) -> Metrics:
    """Metrics by their flat names; the curve's other K are left to `recall_curve`."""
    hidden = {f"recall_at_{k}" for k in CURVE_AT if k not in RECALL_AT}
    metrics: Metrics = {}
    for name, value in estimates(rows).items():
        if any(name.endswith(f"_{tail}") for tail in hidden) or not np.isfinite(value):
            continue
        metrics[f"{name}{suffix}"] = value
        if "true_recall" not in name:
            metrics[f"{name}{suffix}_low"], metrics[f"{name}{suffix}_high"] = bounds[name]
    return metrics


def _removal_metrics(removed: Sequence[Removal], end: str) -> Metrics:
    metrics: Metrics = {}
    for line in removed:
        for suffix, (value, low, high) in line.values.items():
            name = f"{line.metric}_{suffix}{end}"
            metrics |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return metrics


def _curve(
    rows: Rows, bounds: Mapping[str, tuple[float, float]], directions: Sequence[str]
) -> list[dict[str, Any]]:
    names = [(direction, k, f"{direction}_recall_at_{k}") for direction in directions for k in CURVE_AT]
    values = estimates(rows, [name for _, _, name in names])
    return [
        {
            "direction": direction,
            "k": k,
            "recall": values[name],
            "low": bounds[name][0],
            "high": bounds[name][1],
        }
        for direction, k, name in names
    ]
