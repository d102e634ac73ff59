"""Prepared samples as WebDataset shards: plain tar files, one group of members a sample.

A sample's members, in this order: `<key>.json` (id, captions, label, ...), then `<key>.<png|jpg|...>` with
the image's original bytes and `<key>.<wav|flac|...>` with the clip's, where it has them. Members carry no
time and no owner, so the same samples give the same bytes.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from polyweft.errors import DataError
from polyweft.io import atomic_file, read_json

AUDIO_EXTENSIONS = frozenset({"wav", "flac", "ogg", "oga", "opus", "mp3", "aif", "aiff", "au", "w64"})
DATASET_FILE = "dataset.json"
_KEY_DIGITS = 8


@dataclass(frozen=True)
class Sample:
    """One prepared row.

    Attributes
    ----------
    id
        As in the manifest.
    captions
        Each with `text` (cleaned, not empty) and `language` (ISO 639-1 or None).
    label, class_index
        The class's name and its place in `Dataset.classes`; None and -1 where there is no label.
    target
        A number to regress, or None.
    group
        Rows that must share a split share it; None: alone.
    leak
        True for a row of validation or test whose content also stands in train.
    image, audio
        The medium's original bytes, or None.
    image_extension, audio_extension
        Name the tar member; without a dot.
    """

    id: str
    captions: list[dict[str, str | None]]
    label: str | None
    class_index: int
    target: float | None
    group: str | None
    leak: bool
    image: bytes | None
    audio: bytes | None
    image_extension: str = "png"
    audio_extension: str = "wav"


@dataclass(frozen=True)
class Dataset:
    """What `dataset.json` says of prepared data.

    Attributes
    ----------
    classes
        Sorted names; a sample's `class_index` points into it. Empty where nothing has a label.
    counts
        Samples per split.
    shards
        File names per split, in order.
    modalities
        Samples that have an `image`, an `audio` clip, `text` (a caption at least).
    languages
        The captions' languages, sorted.
    """

    classes: list[str]
    counts: dict[str, int]
    shards: dict[str, list[str]]
    modalities: dict[str, int]
    languages: list[str]


def open_dataset(prepared: Path) -> Dataset:
    """Read `prepared/dataset.json`.

    Raises
    ------
    DataError
        The file is missing, malformed or lacks a key.
    """
    content = read_json(prepared / DATASET_FILE)
    try:
        return Dataset(
            classes=content["classes"],
            counts=content["splits"],
            shards=content["shards"],
            modalities=content["modalities"],
            languages=content["languages"],
        )
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{prepared / DATASET_FILE} lacks {error}. Remove the folder and run `dvc repro prepare`."
        ) from error


def write_split(folder: Path, split: str, samples: Iterable[Sample], *, shard_samples: int) -> list[str]:
    """Write `samples` in their order to `<split>-00000.tar`, ... with `shard_samples` each; return the names.

    Each shard appears whole or not at all. The same samples give the same bytes.
    """
    names: list[str] = []
    batch: list[tuple[str, Sample]] = []
    for number, sample in enumerate(samples):
        batch.append((f"{number:0{_KEY_DIGITS}d}", sample))
        if len(batch) == shard_samples:
            names.append(_write_shard(folder, split, len(names), batch))
            batch = []
    if batch:
        names.append(_write_shard(folder, split, len(names), batch))
    return names


def read_split(prepared: Path, split: str) -> Iterator[Sample]:
    """Yield the samples of one split in the order they were written.

    Raises
    ------
    DataError
        The split is unknown, or a shard is missing, ends early, is damaged or lacks samples: the message
        names the shard and the last good sample.
    """
    dataset = open_dataset(prepared)
    if split not in dataset.shards:
        raise DataError(
            f"{prepared} has no split {split!r}; it has {sorted(dataset.shards)}. Name one of these."
        )
    count = 0
    for name in dataset.shards[split]:
        for sample in read_shard(prepared / name):
            count += 1
            yield sample
    if count != dataset.counts[split]:
        raise DataError(
            f"split {split!r} of {prepared} holds {count} samples; {DATASET_FILE} says "
            f"{dataset.counts[split]}. Remove the folder and run `dvc repro prepare`."
        )


def read_shard(path: Path) -> Iterator[Sample]:
    """Yield the samples of one shard; see `read_split` for what is raised."""
    last: str | None = None
    try:
        with path.open("rb") as handle:
            key = ""
            parts: dict[str, bytes] = {}
            for name, content in _members(handle):
                stem, _, extension = name.partition(".")
                if stem != key and parts:
                    sample = _decode(parts)
                    yield sample
                    last, parts = sample.id, {}
                key = stem
                parts[extension] = content
            if parts:
                yield _decode(parts)
    except FileNotFoundError as error:
        raise DataError(f"shard {path} is missing. Remove its folder and run `dvc repro prepare`.") from error
    except (EOFError, tarfile.HeaderError, KeyError, TypeError, ValueError) as error:
        after = f"the last good sample is {last!r}" if last is not None else "no sample in it is good"
        raise DataError(
            f"shard {path} is damaged or ends early ({error}); {after}. "
            "Remove its folder and run `dvc repro prepare`."
        ) from error


def _write_shard(folder: Path, split: str, number: int, batch: list[tuple[str, Sample]]) -> str:
    name = f"{split}-{number:05d}.tar"
    with atomic_file(folder / name) as handle:
        for key, sample in batch:
            _write_member(handle, f"{key}.json", _encode(sample))
            if sample.image is not None:
                _write_member(handle, f"{key}.{_checked(sample, 'image')}", sample.image)
            if sample.audio is not None:
                _write_member(handle, f"{key}.{_checked(sample, 'audio')}", sample.audio)
        handle.write(b"\0" * (2 * tarfile.BLOCKSIZE))
    return name


def _checked(sample: Sample, kind: str) -> str:
    extension = (sample.image_extension if kind == "image" else sample.audio_extension).lower()
    if (extension in AUDIO_EXTENSIONS) != (kind == "audio") or not extension.isalnum() or extension == "json":
        raise DataError(
            f"sample {sample.id!r}: {kind} with the extension {extension!r} cannot stand in a shard. "
            f"Audio takes one of {sorted(AUDIO_EXTENSIONS)}, images any other plain one; rename the file."
        )
    return extension


def _write_member(handle: IO[bytes], name: str, content: bytes) -> None:
    header = tarfile.TarInfo(name)
    header.size = len(content)
    handle.write(header.tobuf(tarfile.USTAR_FORMAT))
    handle.write(content)
    handle.write(b"\0" * (-len(content) % tarfile.BLOCKSIZE))


def _encode(sample: Sample) -> bytes:
    content = {
        "id": sample.id,
        "captions": sample.captions,
        "label": sample.label,
        "class_index": sample.class_index,
        "target": sample.target,
        "group": sample.group,
        "leak": sample.leak,
    }
    return json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False).encode("utf-8")


def _decode(parts: dict[str, bytes]) -> Sample:
    fields: dict[str, Any] = json.loads(parts.pop("json"))
    media: dict[str, Any] = {"image": None, "audio": None}
    for extension, content in parts.items():
        kind = "audio" if extension in AUDIO_EXTENSIONS else "image"
        media |= {kind: content, f"{kind}_extension": extension}
    return Sample(**fields, **media)


def _members(handle: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    """Name and content of each member. Not `tarfile.open`: it takes a cut at a member's end for the end."""
    while True:
        block = _exactly(handle, tarfile.BLOCKSIZE)
        if not block.strip(b"\0"):
            return
        header = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        content = _exactly(handle, header.size)
        _exactly(handle, -header.size % tarfile.BLOCKSIZE)
        yield header.name, content


def _exactly(handle: IO[bytes], size: int) -> bytes:
    content = handle.read(size)
    if len(content) != size:
        raise EOFError(f"{len(content)} of {size} bytes")
    return content
