"""A prepared split in memory, and the batches of an epoch.

Every content is decoded once and kept compact (uint8 pixels, token ids); equal contents share a place, whose
number is also the key that tells positives. Shape suffixes: N rows of a split, U unique contents of a
modality, B rows of a batch, M modalities, K labels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from polyweft.data.reader import Reader
from polyweft.data.shards import Sample, open_dataset, read_split
from polyweft.data.text import clean
from polyweft.errors import DataError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Positives = Literal["content", "group", "label"]


@dataclass(frozen=True)
class Contents:
    """The unique contents of one modality.

    Attributes
    ----------
    values
        Raw rows (U, ...), filled up to the longest where they differ in length.
    length_U
        The length of each along the first axis.
    first_N1, item
        Row i's contents are `item[first[i]:first[i + 1]]`, places in `values`: none, one, several captions.
    """

    values: npt.NDArray[Any]
    length_U: Ints
    first_N1: Ints
    item: Ints

    @property
    def has_N(self) -> npt.NDArray[np.bool_]:
        """True for rows with at least one content."""
        return np.diff(self.first_N1) > 0


@dataclass(frozen=True)
class Arrays:
    """A split in memory.

    Attributes
    ----------
    contents
        By modality, in the model's order.
    class_N, labels_NK, value_N
        Class index (-1: none), labels borne (NaN in rows without any), number to regress (NaN: none).
    group_N
        Equal numbers are equal groups; a row of no group has a number of its own.
    difficulty_N
        For a curriculum; NaN where unknown.
    """

    ids: list[str]
    contents: dict[str, Contents]
    class_N: Ints
    labels_NK: Floats
    value_N: Floats
    group_N: Ints
    difficulty_N: Floats

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Batch:
    """Some rows: raw contents (zeros or padding where absent), presence, keys and targets; see `Arrays`."""

    rows_B: Ints
    raw: dict[str, npt.NDArray[Any]]
    present_BM: Floats
    keys: dict[str, Ints]
    class_B: Ints
    labels_BK: Floats
    value_B: Floats


def load_arrays(
    prepared: Path,
    split: str,
    readers: Mapping[str, Reader],
    reading: Callable[[str], None] = lambda sample: None,
) -> Arrays:
    """Decode a prepared split; `reading` is told each sample's id before its bytes are touched.

    Raises
    ------
    DataError
        A shard is damaged, or a content cannot be decoded; the message names the sample.
    """
    labels = open_dataset(prepared).labels
    return to_arrays(list(read_split(prepared, split)), readers, labels, reading)


def to_arrays(
    samples: Sequence[Sample],
    readers: Mapping[str, Reader],
    labels: Sequence[str],
    reading: Callable[[str], None] = lambda sample: None,
) -> Arrays:
    """Decode samples; see `load_arrays`."""
    groups = [sample.group if sample.group is not None else f"\0{i}" for i, sample in enumerate(samples)]
    seen: dict[str, int] = {}
    return Arrays(
        ids=[sample.id for sample in samples],
        contents={name: _contents(samples, name, reader, reading) for name, reader in readers.items()},
        class_N=np.array([sample.class_index for sample in samples], np.int64),
        labels_NK=_multi_hot(samples, labels),
        value_N=_floats([sample.target for sample in samples]),
        group_N=np.array([seen.setdefault(group, len(seen)) for group in groups], np.int64),
        difficulty_N=_floats([sample.difficulty for sample in samples]),
    )


def choose_contents(arrays: Arrays, *, seed: int, epoch: int | None) -> dict[str, Ints]:
    """By modality, the place (of the U) of the content that each row shows, -1 where it has none: (N,).

    Of several captions each epoch draws one; `epoch` None takes the first. Every row draws its own number,
    so the choice depends on neither the batch nor the number of processes.
    """
    chosen: dict[str, Ints] = {}
    for name, contents in arrays.contents.items():
        counts = np.diff(contents.first_N1)
        place_N = contents.first_N1[:-1].copy()
        if epoch is not None and counts.max(initial=0) > 1:
            draws_N = np.random.Generator(np.random.Philox(key=[seed + 2**32, epoch])).random(len(arrays))
            place_N += np.floor(draws_N * np.maximum(counts, 1)).astype(np.int64)
        if not len(contents.item):
            chosen[name] = np.full(len(arrays), -1, np.int64)
            continue
        item_N = contents.item[np.minimum(place_N, len(contents.item) - 1)]
        chosen[name] = np.where(counts > 0, item_N, -1)
    return chosen


def epoch_order(
    rows: int, *, seed: int, epoch: int, difficulty_N: Floats | None = None, curriculum_epochs: int = 0
) -> Ints:
    """A permutation of the rows that depends on the seed and the epoch alone.

    With a difficulty, the first `curriculum_epochs` epochs go from easy to hard, ever less strictly: rows are
    ordered by `(1 - t) rank + t noise`, t growing from 0 to 1 (after Bengio et al., 2009, Curriculum
    Learning). Each row is seen once an epoch all the same. Rows of unknown difficulty stand in the middle.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    if difficulty_N is None or epoch >= curriculum_epochs:
        return generator.permutation(rows).astype(np.int64)
    known = difficulty_N[~np.isnan(difficulty_N)]
    filled_N = np.nan_to_num(difficulty_N, nan=float(np.median(known)) if len(known) else 0.0)
    rank_N = np.argsort(np.argsort(filled_N, kind="stable"), kind="stable") / max(rows, 1)
    share = epoch / curriculum_epochs
    return np.argsort((1 - share) * rank_N + share * generator.random(rows), kind="stable").astype(np.int64)


def together(order_N: Ints, group_N: Ints) -> Ints:
    """The same rows with those of a group side by side, groups in the order of their first rows.

    A batch then holds several rows of a concept, which a contrastive loss draws together.
    """
    _, group_of_N = np.unique(group_N[order_N], return_inverse=True)
    first_G = np.full(group_of_N.max(initial=-1) + 1, len(order_N), np.int64)
    np.minimum.at(first_G, group_of_N, np.arange(len(order_N)))
    return order_N[np.argsort(first_G[group_of_N], kind="stable")]


def batch_bounds(rows: int, batch_size: int) -> list[tuple[int, int]]:
    """Divide an epoch's rows into batches of at most `batch_size`, whose sizes differ by one at most.

    No row is dropped or repeated, and no batch is left with a few rows, on which contrast teaches nothing.
    """
    count = -(-rows // batch_size)
    edges = [index * rows // count for index in range(count + 1)]
    return list(itertools.pairwise(edges))


def share_of(rows_B: Ints, rank: int, size: int) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """A process's rows, equally many for each, and which are real.

    Where the rows do not divide, a process takes its last row again, marked as not real: `take` then gives
    it no modality and no target, so that no loss counts it.
    """
    each = -(-len(rows_B) // size)
    places = np.arange(rank * each, (rank + 1) * each)
    return rows_B[np.minimum(places, len(rows_B) - 1)], places < len(rows_B)


def take(
    arrays: Arrays,
    rows_B: Ints,
    chosen: Mapping[str, Ints],
    *,
    real_B: npt.NDArray[np.bool_] | None = None,
    positives: Positives = "content",
) -> Batch:
    """The batch of `rows`, each with the contents that `chosen` names, cut to the longest of the batch.

    `positives`: rows are positives of each other when they show the same content in a modality, or are of
    the same group, or of the same class.
    """
    real_B = np.ones(len(rows_B), np.bool_) if real_B is None else real_B
    own_B = -1 - np.arange(len(rows_B)) - rows_B.astype(np.int64) * 2**20
    shared_N = {"group": arrays.group_N, "label": arrays.class_N}.get(positives)
    raw: dict[str, npt.NDArray[Any]] = {}
    keys: dict[str, Ints] = {}
    present: list[npt.NDArray[np.bool_]] = []
    for name, contents in arrays.contents.items():
        place_B = np.where(real_B, chosen[name][rows_B], -1)
        there_B = place_B >= 0
        raw[name] = _rows(contents, place_B)
        key_B = place_B if shared_N is None else shared_N[rows_B]
        keys[name] = np.where(there_B & (key_B >= 0), key_B, own_B)
        present.append(there_B)
    return Batch(
        rows_B=rows_B,
        raw=raw,
        present_BM=np.stack(present, axis=1).astype(np.float32),
        keys=keys,
        class_B=np.where(real_B, arrays.class_N[rows_B], -1),
        labels_BK=np.where(real_B[:, None], arrays.labels_NK[rows_B], np.float32("nan")),
        value_B=np.where(real_B, arrays.value_N[rows_B], np.float32("nan")),
    )


def drop_modalities(
    present_BM: Floats, draws_BM: Floats, probability: float, *, seen_M: npt.NDArray[np.bool_]
) -> Floats:
    """Presence after modality dropout (Neverova et al., 2016, ModDrop): each is dropped alone, never all.

    `draws` are numbers in [0, 1); of a row that would lose everything that the head sees (True in `seen`),
    the largest draw among that stays.
    """
    kept_BM = present_BM * (draws_BM >= probability)
    seen_BM = present_BM * seen_M
    lost_B = (kept_BM * seen_M).sum(axis=1) == 0
    last_BM = np.eye(present_BM.shape[1], dtype=np.float32)[((1 + draws_BM) * seen_BM).argmax(axis=1)]
    return np.where(lost_B[:, None], np.maximum(kept_BM, last_BM * seen_BM), kept_BM).astype(np.float32)


def _rows(contents: Contents, place_B: Ints) -> npt.NDArray[Any]:
    if not len(contents.values):
        return np.zeros((len(place_B), *contents.values.shape[1:]), contents.values.dtype)
    rows = contents.values[np.maximum(place_B, 0)]
    if (contents.length_U != contents.length_U[0]).any():
        rows = rows[:, : int(contents.length_U[np.maximum(place_B, 0)].max(initial=2))]
    absent_B = place_B < 0
    if absent_B.any() and rows.ndim > 2:  # text keeps a whole text in place of none: its end is looked for
        rows[absent_B] = 0
    return rows


def _contents(
    samples: Sequence[Sample], name: str, reader: Reader, reading: Callable[[str], None]
) -> Contents:
    places: dict[bytes, int] = {}
    raws: list[npt.NDArray[Any]] = []
    item: list[int] = []
    first = [0]
    for sample in samples:
        reading(sample.id)
        for content in _of_sample(sample, name):
            if content not in places:
                places[content] = len(places)
                try:
                    raws.append(reader.raw(content))
                except ValueError as error:
                    raise DataError(
                        f"sample {sample.id!r}, {name}: {error}. Run `dvc repro validate`: it sets such rows "
                        "aside."
                    ) from error
            item.append(places[content])
        first.append(len(item))
    lengths = np.array([len(raw) for raw in raws], np.int64)
    return Contents(
        _stack(raws, lengths, reader), lengths, np.array(first, np.int64), np.array(item, np.int64)
    )


def _of_sample(sample: Sample, name: str) -> list[bytes]:
    if name == "text":
        texts = [clean(str(caption["text"])).encode("utf-8") for caption in sample.captions]
        return list(dict.fromkeys(texts))
    content = sample.contents(name)
    return [] if content is None else [content]


def _stack(raws: list[npt.NDArray[Any]], lengths: Ints, reader: Reader) -> npt.NDArray[Any]:
    if not raws:
        shape = tuple(2 if axis < 0 else axis for axis in reader.raw_shape)
        return np.zeros((0, *shape), reader.raw_dtype)
    values = np.full((len(raws), int(lengths.max()), *raws[0].shape[1:]), reader.pad, raws[0].dtype)
    for row, raw in zip(values, raws, strict=True):
        row[: len(raw)] = raw
    return values


def _multi_hot(samples: Sequence[Sample], labels: Sequence[str]) -> Floats:
    place = {name: column for column, name in enumerate(labels)}
    hot = np.zeros((len(samples), len(labels)), np.float32)
    for row, sample in zip(hot, samples, strict=True):
        row[[place[name] for name in sample.labels if name in place]] = 1
        if not sample.labels:
            row[:] = np.nan
    return hot


def _floats(values: Sequence[float | None]) -> Floats:
    return np.array([np.nan if value is None else value for value in values], np.float32)
