"""A model that looks its answers up: the tests choose each image's and each caption's embedding."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from polyweft.data.decode import ImageSpec
from polyweft.data.shards import Sample
from polyweft.data.text import TextTokenizer, clean
from polyweft.evaluation.evaluator import EvaluateParams
from polyweft.models.predictor import FloatArray, IntArray

SPEC = ImageSpec(
    size=4, resize="squash", mean=[0.0] * 3, std=[1.0] * 3, background=[255] * 3, max_pixels=10**6
)


def params(**changes: Any) -> EvaluateParams:
    settings: dict[str, Any] = {
        "split": "test",
        "languages": None,
        "caption_choice": "all",
        "bootstrap_samples": 200,
        "batch_size": 7,
    }
    return EvaluateParams(**(settings | changes))


def tokenizer(folder: Path) -> TextTokenizer:
    spec = {"kind": "hash", "max_tokens": 40, "pad_id": 0, "start_id": 1, "end_id": 2}
    content = json.dumps({**spec, "vocabulary_size": 2**40, "lowercase": False})
    (folder / "text.json").write_text(content, encoding="utf-8")
    return TextTokenizer.load(folder)


def picture(number: int) -> bytes:
    """A PNG whose colour is its number."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (number % 256, number // 256, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def sample(
    row: int,
    image: int | None,
    captions: list[str],
    *,
    label: str | None = None,
    classes: list[str] | None = None,
    leak: bool = False,
) -> Sample:
    """A row with picture `image`; captions that begin with a Chinese sign are Chinese."""
    return Sample(
        id=f"row-{row}",
        captions=[{"text": text, "language": "zh" if text[:1] > "一" else "en"} for text in captions],
        label=label,
        class_index=(classes or []).index(label) if label in (classes or []) else -1,
        target=None,
        group=None,
        leak=leak,
        image=None if image is None else picture(image),
        audio=None,
    )


class TableModel:
    """`images[n]` is the embedding of picture n, `texts[caption]` that of a cleaned caption.

    Features are the embeddings; the class probabilities are those that `answers` gives by picture.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        images: FloatArray,
        texts: dict[str, FloatArray],
        *,
        classes: list[str] | None = None,
        answers: FloatArray | None = None,
        sees: str = "image",
    ) -> None:
        self.image_spec, self.classes, self.sees = SPEC, classes or [], sees
        self.embedding_size = images.shape[1]
        self._images, self._answers = images.astype(np.float32), answers
        self._texts = {tuple(tokenizer.encode([clean(text)])[0]): vector for text, vector in texts.items()}
        self.seen_present: list[FloatArray] = []

    def images(self, pixels_B3HW: FloatArray) -> tuple[FloatArray, FloatArray]:
        number = np.rint(pixels_B3HW[:, :2, 0, 0] * 255).astype(int) @ np.array([1, 256])
        features = np.zeros((len(number), len(self._images)), dtype=np.float32)
        features[np.arange(len(number)), number] = 1
        return self._images[number], features

    def texts(self, input_ids_BT: IntArray) -> tuple[FloatArray, FloatArray]:
        found = [self._texts[tuple(row[row != 0])] for row in input_ids_BT]
        return np.array(found, dtype=np.float32), np.zeros((len(found), len(self._images)), dtype=np.float32)

    def classify(
        self, image_features_BF: FloatArray, text_features_BF: FloatArray, present_B2: FloatArray
    ) -> FloatArray:
        assert self._answers is not None
        self.seen_present.append(present_B2)
        out: FloatArray = (image_features_BF @ self._answers).astype(np.float32)
        return out


def unit_rows(generator: np.random.Generator, rows: int, size: int) -> FloatArray:
    values = generator.normal(size=(rows, size))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)
