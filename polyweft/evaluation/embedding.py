"""A split's samples as arrays: who bears which content of each modality, and what a model makes of them.

Contents with equal bytes are one content, and captions that are equal after cleaning are one caption, so that
a manifest with a row a caption and one with a row an image give the same metrics.

Shape suffixes: N rows, I unique contents of a modality, B rows of a batch, M modalities, L positions,
D embedding size, F feature size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from polyweft.data.shards import Sample
from polyweft.data.text import clean
from polyweft.errors import MediaError, TrainingError
from polyweft.models.predictor import FloatArray, Predictor

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Contents:
    """The unique contents of one modality, in order of first appearance.

    Attributes
    ----------
    contents
        Their bytes; of captions, the cleaned text.
    first_rows
        The first row that bears each.
    of_rows
        Each row's contents, without repeats, its first one first: none, one, or several captions.
    """

    contents: list[bytes]
    first_rows: list[int]
    of_rows: list[list[int]]

    @property
    def first_N(self) -> IntArray:
        """Each row's first content, or -1."""
        return np.array([of[0] if of else -1 for of in self.of_rows], dtype=np.int64)

    def text(self, item: int) -> str:
        """A caption."""
        return self.contents[item].decode("utf-8")


@dataclass(frozen=True)
class Embedded:
    """Unit-length embeddings [I, D] and features [I, F] or [I, L, F] of each modality's contents."""

    embeddings: dict[str, FloatArray]
    features: dict[str, FloatArray]


@dataclass(frozen=True)
class Answers:
    """The head's outputs by name, [N, ...], and the rows that have an answer; the others are zero."""

    outputs: dict[str, FloatArray]
    answered_N: BoolArray


def unique_contents(
    samples: Sequence[Sample],
    modality: str,
    *,
    languages: list[str] | None,
    caption_choice: Literal["all", "first"],
) -> Contents:
    """Find a modality's unique contents; captions of other languages, and empty ones, are left out."""
    places: dict[bytes, int] = {}
    contents: list[bytes] = []
    first_rows: list[int] = []
    of_rows: list[list[int]] = []
    for row, sample in enumerate(samples):
        if modality == "text":
            given = [(text, text) for text in _captions(sample, languages, caption_choice)]
        else:
            content = sample.contents(modality)
            given = [] if content is None else [(hashlib.sha256(content).digest(), content)]
        borne = []
        for key, content in given:
            borne.append(places.setdefault(key, len(places)))
            if len(places) > len(contents):
                contents.append(content)
                first_rows.append(row)
        of_rows.append(list(dict.fromkeys(borne)))
    return Contents(contents, first_rows, of_rows)


def _captions(sample: Sample, languages: list[str] | None, choice: Literal["all", "first"]) -> list[bytes]:
    texts = [
        clean(caption["text"] or "")
        for caption in sample.captions
        if languages is None or caption["language"] in languages
    ]
    return [text.encode("utf-8") for text in texts if text][: 1 if choice == "first" else None]


def embed(
    predictor: Predictor, samples: Sequence[Sample], contents: Mapping[str, Contents], *, batch_size: int
) -> Embedded:
    """Ask the model for every unique content once.

    Raises
    ------
    MediaError
        A content cannot be decoded; the message names its row.
    TrainingError
        The model answers NaN or infinity.
    """
    embeddings: dict[str, FloatArray] = {}
    features: dict[str, FloatArray] = {}
    for modality, found in contents.items():
        if found.contents:
            embeddings[modality], features[modality] = _encode(
                predictor, samples, modality, found, batch_size=batch_size
            )
            finite(modality, embeddings[modality])
        else:
            embeddings[modality] = np.zeros((0, predictor.embedding_size), dtype=np.float32)
            features[modality] = _feature_shape(predictor, modality)
    return Embedded(embeddings, features)


def answer(
    predictor: Predictor,
    contents: Mapping[str, Contents],
    features: Mapping[str, FloatArray],
    *,
    batch_size: int,
    without: str | None = None,
    impute: bool | None = None,
) -> Answers:
    """Ask the model's head for each row, by its media and its first caption.

    An absent modality is marked as such, and so is `without` in every row; a row that then lacks all that the
    head sees has no answer. `impute` tells a head that can do both how absent features are stood in for;
    None leaves it as it is served.

    Raises
    ------
    TrainingError
        The model answers NaN or infinity.
    """
    item = {name: contents[name].first_N for name in predictor.modalities}
    if without is not None:
        item[without] = np.full_like(item[without], -1)
    present_NM = np.stack([item[name] >= 0 for name in predictor.modalities], axis=1)
    seen = [predictor.modalities.index(name) for name in predictor.sees]
    answered_N: BoolArray = np.asarray(present_NM[:, seen].any(axis=1))
    outputs: dict[str, FloatArray] = {
        name: np.zeros((len(answered_N), *shape), dtype=np.float32)
        for name, shape in predictor.outputs.items()
    }
    how = {} if impute is None else {"impute": impute}
    for rows in _batches(np.flatnonzero(answered_N), batch_size):
        given = {name: _take(features[name], item[name][rows]) for name in predictor.modalities}
        found = predictor.answer(given, present_NM[rows].astype(np.float32), **how)
        for name, values in outputs.items():
            values[rows] = found[name]
    for name, values in outputs.items():
        finite(name, values)
    return Answers(outputs, answered_N)


def finite(name: str, values: FloatArray) -> None:
    """Raise `TrainingError` where the model answered NaN or infinity."""
    bad = int(np.count_nonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1)))
    if bad:
        raise TrainingError(
            f"the model gives NaN or infinity for {bad} of {len(values)} rows ({name}); expected numbers. "
            "Lower train.lr and run `dvc repro train`."
        )


def _encode(
    predictor: Predictor, samples: Sequence[Sample], modality: str, found: Contents, *, batch_size: int
) -> tuple[FloatArray, FloatArray]:
    order = np.arange(len(found.contents))
    if modality == "text":
        # Captions of like length share a batch, so that little of it is padding.
        lengths = np.array([len(found.text(i)) for i in range(len(order))])
        order = np.argsort(lengths, kind="stable")
    parts = [
        predictor.encode(modality, _read(predictor, samples, modality, found, chosen))
        for chosen in _batches(order, batch_size)
    ]
    back = np.argsort(order)
    embeddings, features = (_joined([part[side] for part in parts])[back] for side in (0, 1))
    return embeddings, features


def _read(
    predictor: Predictor, samples: Sequence[Sample], modality: str, found: Contents, chosen: IntArray
) -> npt.NDArray[Any]:
    reader = predictor.readers[modality]
    try:
        return reader.read([found.contents[i] for i in chosen])
    except ValueError:
        for i in chosen:
            _readable(predictor, samples[found.first_rows[i]], modality, found.contents[i])
        raise


def _readable(predictor: Predictor, sample: Sample, modality: str, content: bytes) -> None:
    try:
        predictor.readers[modality].read([content])
    except ValueError as error:
        raise MediaError(
            f"the {modality} of sample {sample.id!r} cannot be decoded: {error}. The stage `validate` "
            "quarantines such rows; set its checks accordingly and run `dvc repro`."
        ) from error


def _feature_shape(predictor: Predictor, modality: str) -> FloatArray:
    """No features, of the shape that the model gives for this modality: float32 [0, F] or [0, L, F]."""
    reader = predictor.readers[modality]
    row = [1, *(size if size > 0 else 16 for size in reader.shape)]
    return predictor.encode(modality, np.zeros(row, dtype=reader.dtype))[1][:0]


def _joined(parts: list[FloatArray]) -> FloatArray:
    """Batches as one; those of fewer positions get zeros at their end, which stand for padding."""
    if parts[0].ndim == 3:
        longest = max(part.shape[1] for part in parts)
        parts = [np.pad(part, ((0, 0), (0, longest - part.shape[1]), (0, 0))) for part in parts]
    return np.concatenate(parts)


def _batches(rows: IntArray, size: int) -> Iterator[IntArray]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _take(features: FloatArray, index_B: IntArray) -> FloatArray:
    """Rows of `features`, zeros where the index is -1."""
    taken = np.zeros((len(index_B), *features.shape[1:]), dtype=np.float32)
    there_B = index_B >= 0
    taken[there_B] = features[index_B[there_B]]
    return taken
