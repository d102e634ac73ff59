"""WebDataset tar archives: members that share a key (the path up to the first dot of its name) are a row.

Archives are read member by member, each with a size limit, and nothing is unpacked to disk.
"""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import IO, Any

from polyweft.data.sources.metadata import source_folder
from polyweft.data.sources.rows import (
    ColumnsParams,
    IngestParams,
    Medium,
    SourceRow,
    checked_text,
    require_columns,
    row_from_record,
)
from polyweft.errors import DataError
from polyweft.modalities import MEDIA, MODALITIES

_KINDS = {extension: kind for kind in MEDIA for extension in MODALITIES[kind].extensions}
_KINDS["graph.json"] = "graph"
_TEXTS = ("txt", "cls", "json")


def read_webdataset(params: IngestParams, path: Path) -> Iterator[SourceRow]:
    """Rows of a tar, or of all tars of a folder in the order of their names.

    `.txt` is a caption, `.cls` the label, `.json` a record as in `metadata.jsonl`, `.graph.json` a scene
    graph; the id is `<archive>/<key>`.
    """
    archives = [path] if path.is_file() else sorted(source_folder(path).glob("*.tar"))
    if not archives:
        raise DataError(f"{path} holds no .tar archive. Put one there, or correct ingest.path.")
    # Media are members of their own here; a path in the record (as img2dataset writes) is not one.
    columns = params.columns.model_copy(update=dict.fromkeys(MEDIA))
    seen: dict[str, None] = {}
    for archive in archives:
        keys: set[str] = set()
        for key, members in _samples(archive, int(params.max_media_mib * 2**20)):
            if key in keys:
                raise DataError(
                    f"{archive.name}: key {key!r} comes twice, apart. Members of a sample must stand "
                    "together, and every sample needs a key of its own."
                )
            keys.add(key)
            yield _row(archive, key, members, columns, seen)
    if seen:
        require_columns(columns, seen, "the archives' .json members")


def _samples(archive: Path, limit: int) -> Iterator[tuple[str, dict[str, Medium]]]:
    key, members = "", dict[str, Medium]()
    for name, content, fault in _members(archive, limit):
        place = PurePosixPath(name)
        stem, _, extension = place.name.partition(".")
        extension = extension.lower()
        at = str(place.with_name(stem)) if stem else str(place)
        if at != key and members:
            yield key, members
            members = {}
        key = at
        if extension not in _KINDS and extension not in _TEXTS:
            continue
        if extension in members:
            raise DataError(f"{archive.name}: {name} comes twice in one sample. Remove one.")
        members[extension] = Medium(name, content=content, fault=fault)
    if members:
        yield key, members


def _members(archive: Path, limit: int) -> Iterator[tuple[str, bytes | None, str | None]]:
    try:
        with tarfile.open(archive, "r|*") as tar:
            for member in tar:
                if member.isdir():
                    continue
                if not member.isfile():
                    raise DataError(
                        f"{archive.name}: {member.name} is a link or device; expected plain files."
                    )
                name = checked_text(member.name, archive.name)
                if member.size > limit:
                    yield name, None, f"{member.size} bytes are over ingest.max_media_mib ({limit} bytes)"
                    continue
                handle: IO[bytes] | None = tar.extractfile(member)
                yield name, handle.read() if handle else b"", None
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{archive.name} is not a whole tar archive: {error}. Copy it again.") from None


def _row(
    archive: Path, key: str, members: dict[str, Medium], columns: ColumnsParams, seen: dict[str, None]
) -> SourceRow:
    place = f"{archive.name}:{key}"
    record = _record(members["json"], place) if "json" in members else {}
    seen.update(dict.fromkeys(record))
    row = row_from_record(record, columns, place)
    media: dict[str, Medium] = {}
    for extension, medium in members.items():
        kind = _KINDS.get(extension)
        if kind and kind in media:
            raise DataError(
                f"{place}: two members are an {kind}: {media[kind].name}, {medium.name}. Keep one."
            )
        if kind:
            media[kind] = medium
    captions = list(row.captions)
    if "txt" in members and (text := _text(members["txt"], place).strip()) not in {t for t, _ in captions}:
        captions.insert(0, (text, None))
    label = _text(members["cls"], place).strip() if "cls" in members else row.label
    return replace(
        row,
        id=row.id or f"{archive.name.partition('.')[0]}/{key}",
        media=media,
        captions=captions,
        label=label or None,
    )


def _text(member: Medium, place: str) -> str:
    if member.fault or member.content is None:
        raise DataError(f"{place}: {member.name}: {member.fault}")
    try:
        return member.content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: {member.name} has invalid UTF-8 at byte {error.start}.") from None


def _record(member: Medium, place: str) -> dict[str, Any]:
    try:
        record = json.loads(_text(member, place))
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{place}: {member.name} is malformed JSON ({error}).") from None
    if not isinstance(record, dict):
        raise DataError(f"{place}: {member.name} must hold a JSON object {{...}}.")
    return record
