"""A model that looks its answers up: the tests choose each content's embedding and each row's answers."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from polyweft.data.reader import Reader, open_readers
from polyweft.data.shards import Sample
from polyweft.data.text import clean
from polyweft.evaluation.evaluator import EvaluateParams
from polyweft.models.predictor import FloatArray, IntArray

SPEC: dict[str, Any] = {
    "size": 4,
    "resize": "squash",
    "mean": [0.0] * 3,
    "std": [1.0] * 3,
    "background": [255] * 3,
    "max_pixels": 10**6,
}
TEXT = {
    **{"kind": "hash", "max_tokens": 40, "pad_id": 0, "start_id": 1, "end_id": 2},
    **{"vocabulary_size": 2**40, "lowercase": False},
}


def params(**changes: Any) -> EvaluateParams:
    settings: dict[str, Any] = {
        "split": "test",
        "languages": None,
        "caption_choice": "all",
        "bootstrap_samples": 200,
        "batch_size": 7,
    }
    return EvaluateParams(**(settings | changes))


class NumberReader:
    """A modality whose contents are numbers in ASCII: the model's input is the number itself."""

    tensor, dtype, shape, pad = "number", "float32", [1], 0
    raw_dtype, raw_shape = "float32", [1]

    def raw(self, content: bytes) -> npt.NDArray[np.float32]:
        return np.array([float(content)], np.float32)

    def finish(self, raw: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return raw

    def read(self, contents: Sequence[bytes]) -> npt.NDArray[np.float32]:
        return np.stack([self.raw(content) for content in contents])


def readers(folder: Path) -> dict[str, Reader]:
    """Of images and texts as they are, and of audio as `NumberReader` has it."""
    (folder / "text.json").write_text(json.dumps(TEXT), encoding="utf-8")
    return {**open_readers({"image": SPEC, "text": {}}, folder), "audio": NumberReader()}


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
    audio: int | None = None,
    label: str | None = None,
    classes: list[str] | None = None,
    leak: bool = False,
    **more: Any,
) -> Sample:
    """A row with picture `image`; captions that begin with a Chinese sign are Chinese."""
    media = {} if image is None else {"image": picture(image)}
    media |= {} if audio is None else {"audio": str(audio).encode()}
    settings: dict[str, Any] = {"target": None, "group": None, **more}
    return Sample(
        id=f"row-{row}",
        captions=[{"text": text, "language": "zh" if text[:1] > "一" else "en"} for text in captions],
        label=label,
        class_index=(classes or []).index(label) if label in (classes or []) else -1,
        leak=leak,
        media=media,
        extensions={"image": "png", "audio": "wav"},
        **settings,
    )


class TableModel:
    """`images[n]` is the embedding of picture n, `texts[caption]` that of a cleaned caption, `audio[n]`, ...

    An image's and a clip's features are one-hot in its number (a second feature of texts is their length);
    the head adds the rows of `answers[output]` of what is present, and where `imputes`, answers that of the
    image in its place. Every answer of a row that has no image but audio is by the audio.
    """

    family = "table"
    generates = False
    generation: dict[str, Any] | None = None
    imputes = False

    def __init__(
        self,
        readers: Mapping[str, Reader],
        images: FloatArray,
        texts: dict[str, FloatArray],
        *,
        audio: FloatArray | None = None,
        classes: list[str] | None = None,
        labels: list[str] | None = None,
        answers: FloatArray | dict[str, FloatArray] | None = None,
        sees: list[str] | None = None,
    ) -> None:
        self.modalities = ["image", "text"] + (["audio"] if audio is not None else [])
        self.readers = {name: readers[name] for name in self.modalities}
        self.classes, self.labels = classes or [], labels or []
        self.answers = answers if isinstance(answers, dict) else {"probabilities": answers}
        self.answers = {name: table for name, table in self.answers.items() if table is not None}
        self.outputs = {name: [table.shape[1]] for name, table in self.answers.items()}
        self.sees = (sees or ["image"]) if self.answers else []
        self.embedding_size = images.shape[1]
        self.embeddings = {"image": images.astype(np.float32), "audio": audio}
        self.texts = {self._ids(text): vector for text, vector in texts.items()}
        self.seen_present: list[FloatArray] = []

    def _ids(self, text: str) -> tuple[int, ...]:
        row = self.readers["text"].read([clean(text).encode()])[0]
        return tuple(row[row != 0])

    def encode(self, modality: str, inputs: npt.NDArray[Any]) -> tuple[FloatArray, FloatArray]:
        count = len(self.embeddings["image"])
        if modality == "text":
            nothing = np.zeros((len(inputs), count), np.float32)
            found = [self.texts.get(tuple(row[row != 0]), np.zeros(self.embedding_size)) for row in inputs]
            return np.array(found, np.float32).reshape(len(inputs), -1), nothing
        number = (
            np.rint(inputs[:, :2, 0, 0] * 255).astype(int) @ np.array([1, 256])
            if modality == "image"
            else inputs[:, 0].astype(int)
        )
        vectors = self.embeddings[modality]
        assert vectors is not None
        return vectors[number].astype(np.float32), np.eye(count, dtype=np.float32)[number]

    def answer(
        self, features: Mapping[str, FloatArray], present_BM: FloatArray, *, impute: bool | None = None
    ) -> dict[str, FloatArray]:
        self.seen_present.append(present_BM)
        number = features["image"]
        if "audio" in features and (impute or not self.imputes):
            number = np.where(present_BM[:, :1] > 0, number, features["audio"])
        return {name: (number @ table).astype(np.float32) for name, table in self.answers.items()}

    def decode(self, input_ids_BT: IntArray, image_features_BLF: FloatArray) -> FloatArray:
        raise NotImplementedError


def unit_rows(generator: np.random.Generator, rows: int, size: int) -> FloatArray:
    values = generator.normal(size=(rows, size))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)
