"""Prepared samples as arrays in memory, and the batches of an epoch.

Shape suffixes: N rows of a split, M captions of a split, B rows of a batch, S pixels a side, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from polyweft.data.decode import ImageSpec, MediaDecodeError, decode_image_uint8
from polyweft.data.shards import Sample, read_split
from polyweft.data.text import TextTokenizer
from polyweft.errors import DataError

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Arrays:
    """A split in memory.

    Attributes
    ----------
    ids
        The samples' ids.
    pixels_NSS3
        uint8; zeros where a row has no image (`has_image` False).
    tokens_MT
        int64 token ids of every caption, padded to the split's longest.
    first_caption_N1
        Row i's captions are `first_caption[i]` to `first_caption[i + 1]` of the M.
    text_key_M, image_key_N, group_key_N
        Equal numbers are equal captions, images, groups; a row of no group has a number of its own.
    class_N
        Class index, -1 where there is none.
    end_id
        The end token's id.
    """

    ids: list[str]
    pixels_NSS3: npt.NDArray[np.uint8]
    has_image_N: npt.NDArray[np.bool_]
    tokens_MT: Ints
    first_caption_N1: Ints
    text_key_M: Ints
    image_key_N: Ints
    group_key_N: Ints
    class_N: Ints
    end_id: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def has_text_N(self) -> npt.NDArray[np.bool_]:
        """True for rows with at least one caption."""
        return np.diff(self.first_caption_N1) > 0


@dataclass(frozen=True)
class Batch:
    """One batch: rows' pixels, one caption each, keys and classes; see `Arrays` for the fields."""

    rows_B: Ints
    pixels_BSS3: npt.NDArray[np.uint8]
    ids_BT: Ints
    present_B2: npt.NDArray[np.float32]
    image_key_B: Ints
    text_key_B: Ints
    class_B: Ints


def load_arrays(prepared: Path, split: str, spec: ImageSpec, tokenizer: TextTokenizer) -> Arrays:
    """Decode and tokenize a prepared split.

    Raises
    ------
    DataError
        A shard is damaged, or an image cannot be decoded; the message names the sample.
    """
    return to_arrays(list(read_split(prepared, split)), spec, tokenizer)


def to_arrays(samples: Sequence[Sample], spec: ImageSpec, tokenizer: TextTokenizer) -> Arrays:
    """Decode and tokenize samples; see `load_arrays`."""
    pixels = np.zeros((len(samples), spec.size, spec.size, 3), np.uint8)
    for row, sample in enumerate(samples):
        if sample.image is not None:
            try:
                pixels[row] = decode_image_uint8(sample.image, spec)
            except MediaDecodeError as error:
                raise DataError(
                    f"sample {sample.id!r}: {error}. Run `dvc repro validate`: it sets such rows aside."
                ) from error
    texts = [str(caption["text"]) for sample in samples for caption in sample.captions]
    counts = [len(sample.captions) for sample in samples]
    groups = [sample.group if sample.group is not None else f"\0{i}" for i, sample in enumerate(samples)]
    return Arrays(
        ids=[sample.id for sample in samples],
        pixels_NSS3=pixels,
        has_image_N=np.array([sample.image is not None for sample in samples], np.bool_),
        tokens_MT=tokenizer.encode(texts) if texts else np.zeros((0, 2), np.int64),
        first_caption_N1=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64),
        text_key_M=_keys(texts),
        image_key_N=_keys([sample.image or f"\0{i}".encode() for i, sample in enumerate(samples)]),
        group_key_N=_keys(groups),
        class_N=np.array([sample.class_index for sample in samples], np.int64),
        end_id=tokenizer.end_id,
    )


def epoch_order(rows: int, *, seed: int, epoch: int) -> Ints:
    """A permutation of `rows` rows that depends on the seed and the epoch alone."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(rows).astype(np.int64)


def caption_choice(arrays: Arrays, *, seed: int, epoch: int) -> Ints:
    """For each row the caption (of the M) that this epoch shows, -1 where it has none.

    Every row draws its own number, so the choice depends on neither the batch nor the number of processes.
    """
    draws = np.random.Generator(np.random.Philox(key=[seed + 2**32, epoch])).random(len(arrays))
    counts = np.diff(arrays.first_caption_N1)
    chosen = arrays.first_caption_N1[:-1] + np.floor(draws * np.maximum(counts, 1)).astype(np.int64)
    return np.where(counts > 0, chosen, -1)


def take(arrays: Arrays, rows_B: Ints, caption_N: Ints, *, positives: str = "caption") -> Batch:
    """The batch of `rows`, each with the caption that `caption_N` names.

    Token ids are cut to the batch's longest caption. `positives`: what makes two rows' texts equal for a
    contrastive loss, the same `caption` or the same `group`.
    """
    caption_B = caption_N[rows_B]
    has_text_B = caption_B >= 0
    if len(arrays.tokens_MT):
        ids_BT = arrays.tokens_MT[np.maximum(caption_B, 0)]
    else:
        ids_BT = np.full((len(rows_B), 2), arrays.end_id, np.int64)
    longest = int((ids_BT == arrays.end_id).argmax(axis=1).max()) + 1
    if positives == "group":
        text_key_B = arrays.group_key_N[rows_B]
    else:
        text_key_B = arrays.text_key_M[np.maximum(caption_B, 0)] if len(arrays.text_key_M) else rows_B
        text_key_B = np.where(has_text_B, text_key_B, -1 - rows_B)
    has_image_B = arrays.has_image_N[rows_B]
    return Batch(
        rows_B=rows_B,
        pixels_BSS3=arrays.pixels_NSS3[rows_B],
        ids_BT=ids_BT[:, : max(longest, 2)],
        present_B2=np.stack([has_image_B, has_text_B], axis=1).astype(np.float32),
        image_key_B=arrays.image_key_N[rows_B],
        text_key_B=text_key_B,
        class_B=arrays.class_N[rows_B],
    )


def _keys(values: Sequence[str] | Sequence[bytes]) -> Ints:
    seen: dict[str | bytes, int] = {}
    return np.array([seen.setdefault(value, len(seen)) for value in values], np.int64)
