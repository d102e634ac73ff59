"""Prepared samples as WebDataset shards: plain tar files, one group of members a sample.

A sample's members, in this order: `<key>.json` (id, captions, label, ...), then the original bytes of each
medium that it has, as `<key>.<extension>`; the extension tells the modality (see `polyweft.modalities`).
Members carry no time and no owner, so the same samples give the same bytes.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from polyweft.errors import DataError
from polyweft.io import atomic_file, read_json
from polyweft.modalities import MEDIA, MODALITIES

DATASET_FILE = "dataset.json"
_KEY_DIGITS = 8
_KINDS = {end: name for name, modality in MODALITIES.items() for end in modality.extensions}


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
    labels
        Names of `Dataset.labels` that it bears, sorted; empty where none are known.
    target
        A number to regress, or None.
    difficulty
        Its place in a curriculum, easy ones low, or None.
    group
        Rows that must share a split share it; None: alone.
    leak
        True for a row of validation or test whose content also stands in train.
    media
        The original bytes of each medium that it has, by modality.
    extensions
        Of each medium, without a dot; names the tar member and tells the modality.
    """

    id: str
    captions: list[dict[str, str | None]]
    label: str | None
    class_index: int
    target: float | None
    group: str | None
    leak: bool
    labels: list[str] = field(default_factory=list)
    difficulty: float | None = None
    media: dict[str, bytes] = field(default_factory=dict)
    extensions: dict[str, str] = field(default_factory=dict)

    @property
    def image(self) -> bytes | None:
        """The image's original bytes, or None."""
        return self.media.get("image")

    def contents(self, modality: str) -> bytes | None:
        """The modality's bytes, or None: of text, the first caption as UTF-8."""
        if modality == "text":
            return str(self.captions[0]["text"]).encode() if self.captions else None
        return self.media.get(modality)


@dataclass(frozen=True)
class Dataset:
    """What `dataset.json` says of prepared data.

    Attributes
    ----------
    classes
        Sorted names; a sample's `class_index` points into it. Empty where nothing has a label.
    labels
        Sorted names of which a sample may bear several; empty where nothing has any.
    counts
        Samples per split.
    shards
        File names per split, in order.
    modalities
        Samples that have each modality; of `text`, a caption at least.
    languages
        The captions' languages, sorted.
    """

    classes: list[str]
    counts: dict[str, int]
    shards: dict[str, list[str]]
    modalities: dict[str, int]
    languages: list[str]
    labels: list[str] = field(default_factory=list)


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
            labels=content["labels"],
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
            for modality in MEDIA:
                if modality in sample.media:
                    member = f"{key}.{_extension(sample, modality)}"
                    _write_member(handle, member, sample.media[modality])
        handle.write(b"\0" * (2 * tarfile.BLOCKSIZE))
    return name


def _extension(sample: Sample, modality: str) -> str:
    extension = sample.extensions.get(modality, "").lower()
    if extension not in MODALITIES[modality].extensions:
        raise DataError(
            f"sample {sample.id!r}: {modality} with the extension {extension!r} cannot stand in a shard. "
            f"It takes one of {sorted(MODALITIES[modality].extensions)}; rename the file."
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
        "labels": sample.labels,
        "target": sample.target,
        "difficulty": sample.difficulty,
        "group": sample.group,
        "leak": sample.leak,
    }
    return json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False).encode("utf-8")


def _decode(parts: dict[str, bytes]) -> Sample:
    fields: dict[str, Any] = json.loads(parts.pop("json"))
    extensions = {_KINDS[extension]: extension for extension in parts}
    media = {_KINDS[extension]: content for extension, content in parts.items()}
    return Sample(**fields, media=media, extensions=extensions)


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
