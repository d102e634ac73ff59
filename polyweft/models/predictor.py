"""What evaluation, the gate and serving ask of a model, be it PyTorch or ONNX: arrays in, arrays out.

Shape suffixes: B rows, H and W pixels, T tokens, D embedding size, F feature size, C classes.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from polyweft.data.decode import ImageSpec

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


class Predictor(Protocol):
    """A model that embeds images and texts into one space and classifies from their features.

    Attributes
    ----------
    image_spec
        How an image's bytes become pixels; see `polyweft.data.decode`.
    classes
        Names of the classes, in the order of `classify`'s columns; empty where there is no class head.
    sees
        What the class head looks at: `image`, `text` or `both`.
    embedding_size
        D.
    """

    image_spec: ImageSpec
    classes: list[str]
    sees: str
    embedding_size: int

    def images(self, pixels_B3HW: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Normalised pixels to unit-length embeddings (B, D) and features (B, F)."""

    def texts(self, input_ids_BT: IntArray) -> tuple[FloatArray, FloatArray]:
        """Token ids, padded after the end token, to unit-length embeddings (B, D) and features (B, F)."""

    def classify(
        self, image_features_BF: FloatArray, text_features_BF: FloatArray, present_B2: FloatArray
    ) -> FloatArray:
        """Features to class probabilities (B, C); `present`: 1 where image (column 0), text (1) is there."""
