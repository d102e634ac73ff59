"""Classes by their names alone: the nearest class prompt in the joint space (Radford et al., 2021, 3.1.4).

Each class's name is put into every template; the class's vector is the mean of the prompts' embeddings,
brought to unit length. A row is given the class nearest to its content.

Shape suffixes: N rows, I unique contents, C classes, P templates, D embedding size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from polyweft.data.shards import Sample
from polyweft.evaluation.embedding import BoolArray, Contents, IntArray, finite
from polyweft.evaluation.weighted import Rows
from polyweft.models.predictor import FloatArray, Predictor

PLACE = "{}"
"""Where a template takes the class's name."""


def class_vectors(predictor: Predictor, templates: Sequence[str]) -> FloatArray:
    """A unit-length vector for each class of `predictor.classes`: float32 [C, D]."""
    reader = predictor.readers["text"]
    vectors = []
    for name in predictor.classes:
        prompts = [template.replace(PLACE, name).encode("utf-8") for template in templates]
        mean_D = predictor.encode("text", reader.read(prompts))[0].mean(axis=0)
        vectors.append(mean_D / max(float(np.linalg.norm(mean_D)), 1e-12))
    vectors_CD = np.stack(vectors).astype(np.float32)
    finite("class prompts", vectors_CD)
    return vectors_CD


def zero_shot_rows(
    predictor: Predictor,
    samples: Sequence[Sample],
    contents: Mapping[str, Contents],
    embeddings: Mapping[str, FloatArray],
    vectors_CD: FloatArray,
    keep_N: BoolArray,
    unit_N: IntArray,
    units: int,
) -> Rows:
    """Parts and counts by unit of `zero_shot_accuracy`, of the first modality besides text that rows have.

    Other modalities' are called `zero_shot_accuracy_<modality>`. A tie is a mistake.
    """
    rows: Rows = {}
    class_N = np.array(
        [predictor.classes.index(s.label) if s.label in predictor.classes else -1 for s in samples]
    )
    for modality in predictor.modalities:
        item_N = contents[modality].first_N
        chosen_N = keep_N & (item_N >= 0) & (class_N >= 0)
        if modality == "text" or not chosen_N.any():
            continue
        scores_IC = embeddings[modality] @ vectors_CD.T
        right_N = _right(scores_IC[item_N[chosen_N]], class_N[chosen_N])
        name = f"zero_shot_accuracy_{modality}" if rows else "zero_shot_accuracy"
        rows[f"{name}.part"] = np.bincount(unit_N[chosen_N], weights=right_N, minlength=units)
        rows[f"{name}.count"] = np.bincount(unit_N[chosen_N], minlength=units).astype(np.float64)
    return rows


def _right(scores_NC: FloatArray, class_N: IntArray) -> BoolArray:
    """Whether the right class's score is above every other's."""
    place = np.arange(len(class_N))
    own_N = scores_NC[place, class_N]
    others_NC = scores_NC.copy()
    others_NC[place, class_N] = -np.inf
    return np.asarray(own_N > others_NC.max(axis=1))
