"""From a head's answers to the numbers of each row: classes, labels of which a row may bear several, values.

What comes out are the groups of keys that `polyweft.evaluation.weighted` describes.

Shape suffixes: N rows, C classes, K labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from polyweft.data.shards import Sample
from polyweft.evaluation.classification import ClassReport, class_reports, confusion_matrix
from polyweft.evaluation.embedding import Answers, BoolArray, IntArray
from polyweft.evaluation.weighted import Rows
from polyweft.models.predictor import Predictor

PROBABILITIES, LABELS, VALUE = "probabilities", "label_probabilities", "value"

MAIN = {PROBABILITIES: "accuracy", LABELS: "label_micro_f1", VALUE: "r2"}
"""The metric that stands for each of a head's outputs."""


def task_rows(
    predictor: Predictor, samples: Sequence[Sample], answers: Answers, keep_N: BoolArray, unit_N: IntArray
) -> Rows:
    """The kept rows' targets and answers; `unit_N` is each row's unit, of which only kept rows' count."""
    rows: Rows = {}
    ids_N = np.array([sample.id for sample in samples])
    if has_classes(predictor):
        named_N = np.array([s.label or "" if s.class_index >= 0 else "" for s in samples])
        chosen = keep_N & answers.answered_N & (named_N != "")
        if chosen.any():
            rows |= {"row_id": ids_N[chosen], "row_unit": unit_N[chosen], "actual": named_N[chosen]}
            rows |= _class_answers(predictor, answers.outputs[PROBABILITIES][chosen], rows["actual"])
    if LABELS in predictor.outputs:
        borne_NK = np.array([[name in s.labels for name in predictor.labels] for s in samples], dtype=bool)
        chosen = keep_N & answers.answered_N & np.array([bool(s.labels) for s in samples])
        if chosen.any():
            rows |= {"label_row_id": ids_N[chosen], "label_row_unit": unit_N[chosen]}
            rows |= {"label_actual": borne_NK[chosen], "label_score": answers.outputs[LABELS][chosen]}
    if VALUE in predictor.outputs:
        target_N = np.array([np.nan if s.target is None else s.target for s in samples], dtype=np.float64)
        chosen = keep_N & answers.answered_N & np.isfinite(target_N)
        if chosen.any():
            rows |= {"value_row_id": ids_N[chosen], "value_row_unit": unit_N[chosen]}
            rows["value_actual"] = target_N[chosen]
            rows["value_predicted"] = answers.outputs[VALUE][chosen, 0].astype(np.float64)
    return rows


def has_classes(predictor: Predictor) -> bool:
    """Whether the head tells classes: two at least."""
    return PROBABILITIES in predictor.outputs and len(predictor.classes) > 1


def _class_answers(
    predictor: Predictor, probabilities_NC: npt.NDArray[Any], actual_N: npt.NDArray[Any]
) -> Rows:
    rows: Rows = {"predicted": np.array(predictor.classes)[probabilities_NC.argmax(axis=1)]}
    if len(predictor.classes) == 2:
        # By name, so that a model that orders its classes otherwise is measured alike.
        positive = max(predictor.classes)
        rows["positive"] = actual_N == positive
        rows["score"] = probabilities_NC[:, predictor.classes.index(positive)]
    return rows


def confusion(rows: Rows) -> tuple[list[str], npt.NDArray[np.int64]]:
    """The classes that stand among the actual or predicted ones, sorted, and their confusion matrix."""
    if "actual" not in rows:
        return [], np.zeros((0, 0), dtype=np.int64)
    names = np.unique(np.concatenate([rows["actual"], rows["predicted"]]))
    actual, predicted = (np.searchsorted(names, rows[key]) for key in ("actual", "predicted"))
    return [str(name) for name in names], confusion_matrix(actual, predicted, len(names))


def label_reports(rows: Rows, names: list[str]) -> list[ClassReport]:
    """Precision, recall, F1 at 0.5 and support of every label."""
    if "label_actual" not in rows:
        return []
    reports = []
    for name, actual_N, score_N in zip(names, rows["label_actual"].T, rows["label_score"].T, strict=True):
        matrix = confusion_matrix(actual_N.astype(np.int64), (score_N >= 0.5).astype(np.int64), 2)
        reports.append(class_reports(matrix, ["", name])[1])
    return reports


def predictions(predictor: Predictor, samples: Sequence[Sample], answers: Answers) -> dict[str, list[Any]]:
    """Columns with a line a row: what stands in the data and what the head answers, None where nothing."""
    known = answers.answered_N
    table: dict[str, list[Any]] = {"label": [sample.label for sample in samples]}
    nothing: list[Any] = [None] * len(samples)
    table |= {"predicted": nothing, "probability": nothing}
    if has_classes(predictor):
        best = list(zip(answers.outputs[PROBABILITIES], known, strict=True))
        table["predicted"] = [predictor.classes[int(p.argmax())] if there else None for p, there in best]
        table["probability"] = [float(p.max()) if there else None for p, there in best]
    if LABELS in predictor.outputs:
        table["labels"] = [list(sample.labels) for sample in samples]
        table["predicted_labels"] = [
            [name for name, p in zip(predictor.labels, row, strict=True) if p >= 0.5] if there else None
            for row, there in zip(answers.outputs[LABELS], known, strict=True)
        ]
    if VALUE in predictor.outputs:
        table["target"] = [sample.target for sample in samples]
        table["value"] = [
            float(row[0]) if there else None for row, there in zip(answers.outputs[VALUE], known, strict=True)
        ]
    return table
