"""What every reader gives: rows whose media are names or bytes, not yet opened; and their parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from polyweft.config import Section
from polyweft.data.records import SPLITS
from polyweft.data.scenes import ScenesParams
from polyweft.errors import DataError
from polyweft.modalities import MEDIA, MODALITIES

EXTENSIONS = {kind: MODALITIES[kind].extensions for kind in MEDIA} | {"graph": frozenset({"graph", "json"})}
"""File name extensions by which a medium of each kind goes in sources."""

_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


class ColumnsParams(Section):
    """Which column or key of the source is what. One that is named here must be in the source; null: none.

    A default that the source does not have is simply absent. A modality without a key here stands in the
    column of its own name.
    """

    id: str | None = Field(default=None, min_length=1, description="null: made from the image's path")
    image: str | None = Field(default="file_name", min_length=1)
    audio: str | None = Field(default="audio", min_length=1)
    video: str | None = Field(default="video", min_length=1)
    graph: str | None = Field(default="graph", min_length=1)
    text: str | list[str] | None = Field(
        default="text", min_length=1, description="several columns: all of them"
    )
    label: str | None = Field(default="label", min_length=1, description="one class; a list: as in labels")
    labels: str | None = Field(
        default="labels", min_length=1, description="several at once: a list, or text parted by |"
    )
    target: str | None = Field(default="target", min_length=1, description="a number to regress")
    difficulty: str | None = Field(default="difficulty", min_length=1, description="for a curriculum")
    group: str | None = Field(default=None, min_length=1)
    split: str | None = Field(default="split", min_length=1)

    def names(self) -> dict[str, list[str]]:
        """Each role's columns, without the roles that have none."""
        given = {name: name for name in MEDIA if name not in type(self).model_fields}
        given |= {role: getattr(self, role) for role in type(self).model_fields}
        return {role: [c] if isinstance(c, str) else list(c) for role, c in given.items() if c}

    def required(self) -> list[str]:
        """The columns that `params.yaml` names itself."""
        return [c for role, columns in self.names().items() if role in self.model_fields_set for c in columns]


class IngestParams(Section):
    """Section `ingest`: the source, its columns, and what becomes of what is broken."""

    source: Literal["scenes", "metadata", "table", "coco", "webdataset", "class_folders"]
    path: str = Field(
        min_length=1,
        description="folder or file, from the workspace's root; for scenes, the generator's own file",
    )
    metadata: str | None = Field(
        default=None, min_length=1, description="the manifest's name in the folder; null: the only one there"
    )
    media_root: str = Field(
        default=".", min_length=1, description="where media paths begin, below the folder"
    )
    repair_roots: list[str] = Field(
        default=[],
        max_length=32,
        description="other folders, from the workspace's root, to look for lost files in",
    )
    broken_media: Literal["quarantine", "mask"] = "quarantine"
    caption_languages: str = Field(
        default="auto", pattern="^(auto|none|[a-z]{2,3})$", description="auto: zh by its characters, else en"
    )
    max_media_mib: float = Field(default=64, gt=0, le=4096, description="a larger file counts as broken")
    columns: ColumnsParams = ColumnsParams()
    scenes: ScenesParams = ScenesParams()


@dataclass(frozen=True)
class Medium:
    """One medium of a row, as its source gives it: a path below `root`, or bytes that were read already.

    With neither `root` nor `content` the source names a file that it does not have.
    """

    name: str
    root: Path | None = None
    content: bytes | None = None
    fault: str | None = None
    """Why the reader refused the content (too large); it counts as broken."""


@dataclass(frozen=True)
class SourceRow:
    """One row of a source. `place` says where it stands, for messages and for the manifest's `source`.

    `captions` holds (text, language or None). `id` is None where the source has none.
    """

    place: str
    id: str | None = None
    media: dict[str, Medium] = field(default_factory=dict)
    captions: list[tuple[str, str | None]] = field(default_factory=list)
    label: str | None = None
    labels: list[str] = field(default_factory=list)
    target: float | None = None
    difficulty: float | None = None
    group: str | None = None
    split: str | None = None


def row_from_record(
    record: dict[str, Any], columns: ColumnsParams, place: str, root: Path | None = None
) -> SourceRow:
    """Make a row from a mapping of column to value, such as a JSON line or a CSV line.

    Raises
    ------
    DataError
        A value has the wrong type; the message names the place, the column and the value.
    """
    names = columns.names()

    def value(role: str) -> Any:
        found = record.get(names[role][0]) if role in names else None
        return None if found == "" else found

    if columns.id and value("id") is None:
        raise DataError(
            f"{place}: {columns.id} is empty; expected an id. Fill it in, or set ingest.columns.id to null."
        )
    media = {
        kind: _medium(value(kind), place, names[kind][0], root) for kind in MEDIA if value(kind) is not None
    }
    texts = [
        entry for column in names.get("text", []) for entry in _captions(record.get(column), place, column)
    ]
    label, labels = value("label"), _words(value("labels"), place, "labels")
    if isinstance(label, list):
        label, labels = None, _words(label, place, "label") + labels
    return SourceRow(
        place=place,
        id=_word(value("id"), place, "id"),
        media=media,
        captions=texts,
        label=_word(label, place, "label"),
        labels=sorted(set(labels)),
        target=_number(value("target"), place, "target"),
        difficulty=_number(value("difficulty"), place, "difficulty"),
        group=_word(value("group"), place, "group"),
        split=split_name(value("split"), place),
    )


def split_name(value: Any, place: str) -> str | None:
    """`train`, `validation` or `test` from the names in use for them; another one is a `DataError`."""
    if value is None:
        return None
    name = _SPLIT_NAMES.get(str(value).strip().lower())
    if name is None:
        raise DataError(
            f"{place}: split is {value!r}; expected one of {', '.join(SPLITS)} (or train, val, dev, test as "
            "others write them), or null. Correct it, or set ingest.columns.split to null."
        )
    return name


def checked_text(value: str, place: str) -> str:
    """The text itself; half of a surrogate pair, which no file can hold as UTF-8, is a `DataError`."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{place}: text {value[:40]!r} holds half of a surrogate pair at character {error.start}; "
            "expected valid Unicode. Write the whole character."
        ) from None
    return value


def require_columns(columns: ColumnsParams, seen: Iterable[str], source: str) -> None:
    """Refuse a column that params name and no row has: it would silently be empty."""
    known = sorted(set(seen))
    for column in columns.required():
        if column not in known:
            raise DataError(
                f"{source} has no column {column!r}, which ingest.columns names; it has {', '.join(known)}. "
                "Correct the name, or set it to null."
            )


def _medium(value: Any, place: str, column: str, root: Path | None) -> Medium:
    if isinstance(value, dict) and set(value) <= {
        "bytes",
        "path",
    }:  # an image column of Hugging Face's datasets
        content, path = value.get("bytes"), value.get("path")
        if isinstance(content, bytes):
            return Medium(name=str(path or f"{place} {column}"), content=content)
        value = path
    if isinstance(value, bytes):
        return Medium(name=f"{place} {column}", content=value)
    if not isinstance(value, str) or "\0" in value:
        raise DataError(f"{place}: {column} is {value!r}; expected a file's path as text, or null.")
    return Medium(name=checked_text(value, place), root=root)


def _captions(value: Any, place: str, column: str) -> list[tuple[str, str | None]]:
    out: list[tuple[str, str | None]] = []
    for entry in value if isinstance(value, list) else [value]:
        text, language = (
            (entry.get("text"), entry.get("language")) if isinstance(entry, dict) else (entry, None)
        )
        if entry is None:
            continue
        if not isinstance(text, str) or not isinstance(language, str | None):
            raise DataError(
                f"{place}: {column} holds {entry!r}; expected text, a list of texts, or "
                '{"text": ..., "language": "en"}.'
            )
        out.append((checked_text(text, place), language))
    return out


def _word(value: Any, place: str, role: str) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"{place}: {role} is {value!r}; expected text or a number, or null.")
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas writes a column of whole numbers with gaps as 3.0
    return checked_text(str(value), place)


def _words(value: Any, place: str, role: str) -> list[str]:
    parts = value.split("|") if isinstance(value, str) else value
    if parts is None or (isinstance(parts, float) and math.isnan(parts)):
        return []
    if not isinstance(parts, list):
        raise DataError(f"{place}: {role} is {value!r}; expected a list of words, or text parted by |.")
    words = [_word(part.strip() if isinstance(part, str) else part, place, role) for part in parts]
    return [word for word in words if word]


def _number(value: Any, place: str, role: str) -> float | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    try:
        number = float(value) if isinstance(value, str | int | float) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{place}: {role} is {value!r}; expected a finite number, or null.")
    return number
