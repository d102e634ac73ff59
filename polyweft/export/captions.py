"""Captions from a predictor's decoder: the trained model and the exported one write them by the same code.

Shape suffixes: N rows, B sequences under way, T tokens, L image positions, V vocabulary, F feature size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from polyweft.data.generation import GenerationSpec, Special, generate
from polyweft.models.predictor import FloatArray, IntArray, Predictor


def captions(
    predictor: Predictor, image_features_NLF: FloatArray, generation: Mapping[str, Any]
) -> list[str]:
    """Describe each image, as `generation` (a `Predictor`'s own, or other settings) says."""
    tokenizer: Any = predictor.readers["text"].tokenizer  # type: ignore[attr-defined]
    special = Special(tokenizer.start_id, tokenizer.end_id, tokenizer.pad_id)

    def step(ids_BT: IntArray, rows_B: IntArray) -> FloatArray:
        length = ids_BT.shape[1]
        # The exported decoder takes two positions at least; what follows a position does not count.
        padded = np.pad(ids_BT, ((0, 0), (0, max(0, 2 - length))), constant_values=special.pad)
        return predictor.decode(padded, image_features_NLF[rows_B])[:, length - 1]

    spec = GenerationSpec.from_dict(dict(generation))
    found = generate(step, len(image_features_NLF), spec, special)
    return [str(tokenizer.decode(ids)) for ids in found]
