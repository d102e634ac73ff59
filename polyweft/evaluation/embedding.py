"""A split's samples as arrays: who bears which image and caption, and what a model makes of them.

Images with equal bytes are one image, and captions that are equal after cleaning are one caption, so that a
manifest with a row a caption and one with a row an image give the same metrics.

Shape suffixes: N rows, I unique images, M unique captions, D embedding size, F feature size, C classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from polyweft.data.decode import MediaDecodeError, decode_image_uint8, normalise
from polyweft.data.shards import Sample
from polyweft.data.text import TextTokenizer, clean
from polyweft.errors import MediaError, TrainingError
from polyweft.models.predictor import FloatArray, Predictor

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Items:
    """The unique images and captions of some samples.

    Attributes
    ----------
    image_of_N
        Each row's image, or -1.
    image_ids, image_rows
        SHA-256 (hex) of each image's bytes, and the first row that bears it.
    captions
        The unique captions, in order of first appearance.
    captions_of
        Each row's captions, without repeats, the row's first caption first; may be empty.
    """

    image_of_N: IntArray
    image_ids: list[str]
    image_rows: list[int]
    captions: list[str]
    captions_of: list[list[int]]


@dataclass(frozen=True)
class Embedded:
    """Unit-length embeddings and features of `Items`, and class probabilities of the rows.

    `classified_N` tells which rows of `probabilities_NC` hold an answer; the others are zero.
    """

    images_ID: FloatArray
    captions_MD: FloatArray
    probabilities_NC: FloatArray
    classified_N: npt.NDArray[np.bool_]


def unique_items(
    samples: Sequence[Sample], *, languages: list[str] | None, caption_choice: Literal["all", "first"]
) -> Items:
    """Find the unique images and captions; captions of other languages, and empty ones, are left out."""
    image_of: list[int] = []
    images: dict[str, int] = {}
    image_rows: list[int] = []
    captions: dict[str, int] = {}
    captions_of: list[list[int]] = []
    for row, sample in enumerate(samples):
        image_of.append(-1)
        if sample.image is not None:
            key = hashlib.sha256(sample.image).hexdigest()
            image_of[-1] = images.setdefault(key, len(images))
            if len(images) > len(image_rows):
                image_rows.append(row)
        texts = [
            clean(caption["text"] or "")
            for caption in sample.captions
            if languages is None or caption["language"] in languages
        ]
        chosen = [text for text in texts if text][: 1 if caption_choice == "first" else None]
        captions_of.append([captions.setdefault(text, len(captions)) for text in dict.fromkeys(chosen)])
    return Items(np.array(image_of, dtype=np.int64), list(images), image_rows, list(captions), captions_of)


def embed(
    predictor: Predictor,
    tokenizer: TextTokenizer,
    samples: Sequence[Sample],
    items: Items,
    *,
    batch_size: int,
) -> Embedded:
    """Ask the model for every unique image and caption once, and for each row's class.

    A row's class is answered from its image and its first caption. With a head that sees both, an absent one
    is marked as such; a row that lacks all that the head sees is not classified.

    Raises
    ------
    MediaError
        An image cannot be decoded; the message names its row.
    TrainingError
        The model answers NaN or infinity.
    """
    images, image_features = _embed_images(predictor, samples, items, batch_size)
    captions, caption_features = _embed_captions(predictor, tokenizer, items, batch_size)
    caption_of_N = np.array([of[0] if of else -1 for of in items.captions_of], dtype=np.int64)
    present_N2 = np.stack([items.image_of_N >= 0, caption_of_N >= 0], axis=1)
    column: dict[str, npt.NDArray[np.bool_]] = {
        "image": present_N2[:, 0],
        "text": present_N2[:, 1],
        "both": np.asarray(present_N2.any(axis=1)),
    }
    width = max(image_features.shape[1], caption_features.shape[1])
    classes = len(predictor.classes)
    classified_N: npt.NDArray[np.bool_] = np.zeros(len(samples), dtype=bool)
    if classes > 1:
        classified_N = column[predictor.sees]
    probabilities = np.zeros((len(samples), classes), dtype=np.float32)
    for rows in _batches(np.flatnonzero(classified_N), batch_size):
        probabilities[rows] = predictor.classify(
            _take(image_features, items.image_of_N[rows], width),
            _take(caption_features, caption_of_N[rows], width),
            present_N2[rows].astype(np.float32),
        )
    for name, values in (("image", images), ("caption", captions), ("class", probabilities)):
        _finite(name, values)
    return Embedded(images, captions, probabilities, classified_N)


def _embed_images(
    predictor: Predictor, samples: Sequence[Sample], items: Items, batch_size: int
) -> tuple[FloatArray, FloatArray]:
    parts = []
    for rows in _batches(np.array(items.image_rows, dtype=np.int64), batch_size):
        pixels = np.stack([_decode(samples[row], predictor) for row in rows])
        parts.append(predictor.images(normalise(pixels, predictor.image_spec)))
    return _joined(parts, predictor)


def _embed_captions(
    predictor: Predictor, tokenizer: TextTokenizer, items: Items, batch_size: int
) -> tuple[FloatArray, FloatArray]:
    # Captions of like length share a batch, so that little of it is padding.
    order = np.array(sorted(range(len(items.captions)), key=lambda i: len(items.captions[i])), dtype=np.int64)
    parts = [
        predictor.texts(tokenizer.encode([items.captions[i] for i in chosen]))
        for chosen in _batches(order, batch_size)
    ]
    embeddings, features = _joined(parts, predictor)
    back = np.argsort(order)
    return embeddings[back], features[back]


def _decode(sample: Sample, predictor: Predictor) -> npt.NDArray[np.uint8]:
    assert sample.image is not None
    try:
        return decode_image_uint8(sample.image, predictor.image_spec)
    except MediaDecodeError as error:
        raise MediaError(
            f"the image of sample {sample.id!r} cannot be decoded: {error}. The stage `validate` quarantines "
            "such rows; set its checks accordingly and run `dvc repro`."
        ) from error


def _batches(rows: IntArray, size: int) -> Iterator[IntArray]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _joined(
    parts: list[tuple[FloatArray, FloatArray]], predictor: Predictor
) -> tuple[FloatArray, FloatArray]:
    if not parts:
        return np.zeros((0, predictor.embedding_size), dtype=np.float32), np.zeros((0, 0), dtype=np.float32)
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _take(features: FloatArray, index_B: IntArray, width: int) -> FloatArray:
    """Rows of `features`, zeros where the index is -1: float32 [B, width]."""
    if not len(features):
        return np.zeros((len(index_B), width), dtype=np.float32)
    taken: FloatArray = np.where(index_B[:, None] >= 0, features[index_B], np.float32(0))
    return taken


def _finite(name: str, values: FloatArray) -> None:
    bad = int(np.count_nonzero(~np.isfinite(values).all(axis=1)))
    if bad:
        raise TrainingError(
            f"the model gives NaN or infinity for {bad} of {len(values)} rows ({name}); expected numbers. "
            "Lower train.lr and run `dvc repro train`."
        )
