"""What evaluation, the gate and serving ask of a model, be it PyTorch or ONNX: arrays in, arrays out.

Shape suffixes: B rows, M modalities, L positions, T tokens, V vocabulary, D embedding size, F feature size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from polyweft.data.reader import Reader

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


class Predictor(Protocol):
    """A model that embeds several modalities into one space, answers its tasks, or writes captions.

    Attributes
    ----------
    family
        As `model.family` names it.
    modalities
        What it takes, in the order of `present`'s columns.
    readers
        By modality: how bytes become its input.
    classes, labels
        Names of the exclusive classes, and of the labels of which a row may bear several.
    sees
        The modalities that its head looks at; empty without a head.
    outputs
        The head's outputs by name, with the shape of one row: `probabilities` [C] over `classes`,
        `label_probabilities` [K] over `labels`, `value` [1].
    embedding_size
        D; 0 where there is no joint space.
    imputes
        Whether `answer` can reconstruct an absent modality's features, or leave that.
    generates
        Whether it writes captions: `decode` may be called.
    generation
        How it decodes them, as `polyweft.data.generation.GenerationSpec` has it; None where it writes none.
    """

    family: str
    modalities: list[str]
    readers: dict[str, Reader]
    classes: list[str]
    labels: list[str]
    sees: list[str]
    outputs: dict[str, list[int]]
    embedding_size: int
    imputes: bool
    generates: bool
    generation: dict[str, Any] | None

    def encode(self, modality: str, inputs: npt.NDArray[Any]) -> tuple[FloatArray, FloatArray]:
        """A modality's input to unit-length embeddings (B, D) and features (B, F) or (B, L, F)."""

    def answer(
        self, features: Mapping[str, FloatArray], present_BM: FloatArray, *, impute: bool | None = None
    ) -> dict[str, FloatArray]:
        """Features of every modality, and 1 in `present` where a row has it, to the head's outputs.

        `impute` says how an absent modality is stood in for, where the model `imputes`; None: as served.
        """

    def decode(self, input_ids_BT: IntArray, image_features_BLF: FloatArray) -> FloatArray:
        """Token ids so far and an image's features to the next tokens' logits (B, T, V)."""
