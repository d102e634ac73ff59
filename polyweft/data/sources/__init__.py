"""Readers of sources: each turns one layout into rows whose media are names or bytes, not yet opened."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from polyweft.data.sources.rows import ColumnsParams, IngestParams, Medium, SourceRow

__all__ = ["ColumnsParams", "IngestParams", "Medium", "SourceRow", "read_source"]


def read_source(params: IngestParams, path: Path, *, seed: int) -> Iterator[SourceRow]:
    """Read the source at `path` row by row, in an order that the same source gives again.

    Parameters
    ----------
    path
        `params.path`, resolved. The built-in scenes do not read it.
    seed
        Of the built-in scenes.

    Raises
    ------
    DataError
        The source is missing, empty or malformed; the message names the file and the line or row.
    """
    match params.source:
        case "scenes":
            from polyweft.data.sources.scenes import read_scenes

            return read_scenes(params, seed)
        case "metadata":
            from polyweft.data.sources.metadata import read_metadata

            return read_metadata(params, path)
        case "table":
            from polyweft.data.sources.table import read_table_of_paths

            return read_table_of_paths(params, path)
        case "coco":
            from polyweft.data.sources.coco import read_coco

            return read_coco(params, path)
        case "webdataset":
            from polyweft.data.sources.webdataset import read_webdataset

            return read_webdataset(params, path)
        case "class_folders":
            from polyweft.data.sources.class_folders import read_class_folders

            return read_class_folders(params, path)
