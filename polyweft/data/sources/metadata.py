"""A folder with `metadata.jsonl` or `metadata.csv`, the layout of image and audio folder loaders.

Also home to what finds a source's manifest in its folder and reads JSON lines and CSV line by line.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polyweft.data.sources.rows import IngestParams, SourceRow, require_columns, row_from_record
from polyweft.errors import DataError
from polyweft.io import inside

_MAX_CELL = 16 * 2**20  # characters; csv's own limit of 131,072 is below a long document


def read_metadata(params: IngestParams, path: Path) -> Iterator[SourceRow]:
    """Rows of the folder's manifest; `columns` says what its keys are."""
    manifest, root = locate(params, path, ("metadata.jsonl", "metadata.csv"))
    records = csv_records(manifest) if manifest.suffix.lower() == ".csv" else json_lines(manifest)
    return rows_of(records, params, manifest.name, root)


def rows_of(
    records: Iterator[tuple[int, dict[str, Any]]], params: IngestParams, name: str, root: Path
) -> Iterator[SourceRow]:
    """Rows of numbered records; after the last one, columns that no record had are refused."""
    seen: dict[str, None] = {}
    for line, record in records:
        seen.update(dict.fromkeys(record))
        yield row_from_record(record, params.columns, f"{name}:{line}", root)
    if seen:
        require_columns(params.columns, seen, name)


def locate(params: IngestParams, path: Path, patterns: tuple[str, ...]) -> tuple[Path, Path]:
    """The source's manifest and the folder in which its media paths begin.

    `path` may be the manifest itself, or a folder that holds the one that `params.metadata` names or
    exactly one that fits `patterns`.
    """
    folder = source_folder(path) if not path.is_file() else path.parent
    if path.is_file():
        manifest = path
    elif params.metadata:
        manifest = inside(folder, params.metadata)
        if not manifest.is_file():
            raise DataError(f"{folder} has no file {params.metadata!r}, which ingest.metadata names.")
    else:
        found = sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})
        if len(found) != 1:
            held = ", ".join(file.name for file in found) or "none"
            raise DataError(
                f"{folder} should hold exactly one of {', '.join(patterns)}, and holds {held}. Add it, or "
                "name the one to read in ingest.metadata."
            )
        manifest = found[0]
    root = inside(folder, params.media_root)
    if not root.is_dir():
        raise DataError(f"ingest.media_root {params.media_root!r} is not a folder in {folder}.")
    return manifest, root


def source_folder(path: Path) -> Path:
    """The folder itself; one that is missing or empty is a `DataError`."""
    if not path.is_dir():
        raise DataError(f"source folder {path} is missing. Correct ingest.path, or put the data there.")
    if not any(path.iterdir()):
        raise DataError(f"source folder {path} is empty. Put the data there, or correct ingest.path.")
    return path


def json_lines(manifest: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and objects of a JSON lines file; blank lines are passed over."""
    offset = 0
    with manifest.open("rb") as handle:
        for line, raw in enumerate(handle, start=1):
            text = _utf8(raw, manifest.name, line, offset)
            offset += len(raw)
            if not text.strip():
                continue
            try:
                record = json.loads(text.removeprefix("\ufeff"))
            except (json.JSONDecodeError, RecursionError) as error:
                raise DataError(
                    f"{manifest.name}:{line}: malformed JSON ({error}). Each line must be one JSON object."
                ) from None
            if not isinstance(record, dict):
                raise DataError(f"{manifest.name}:{line}: {text[:60]!r} is not a JSON object {{...}}.")
            yield line, record


def csv_records(manifest: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and records of a CSV file with a header; empty cells are null."""
    content, line, offset = [], 0, 0
    with manifest.open("rb") as handle:
        for line, raw in enumerate(handle, start=1):
            content.append(_utf8(raw, manifest.name, line, offset))
            offset += len(raw)
    csv.field_size_limit(_MAX_CELL)
    reader = csv.reader(io.StringIO("".join(content).removeprefix("\ufeff"), newline=""), strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) != len(header):
            raise DataError(f"{manifest.name}:1: the header names a column twice: {', '.join(header)}.")
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{manifest.name}:{reader.line_num}: {len(cells)} cells; the header has {len(header)}. "
                    "Quote cells that hold commas."
                )
            yield reader.line_num, {key: cell or None for key, cell in zip(header, cells, strict=True)}
    except csv.Error as error:
        raise DataError(f"{manifest.name}:{reader.line_num}: malformed CSV ({error}).") from None


def _utf8(raw: bytes, name: str, line: int, offset: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name}:{line}: invalid UTF-8 at byte {offset + error.start} of the file "
            f"(0x{raw[error.start]:02x}). Save the file as UTF-8."
        ) from None
