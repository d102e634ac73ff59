"""The media store: every image, clip and graph of a source, once, in plain tar shards with an index.

Layout of a store's folder: `media-00000.tar`, `media-00001.tar`, ... and `media.parquet` with a row a
medium: its key `<kind>/<sha256>.<extension>`, its shard, and where its bytes begin and how many they are.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path
from types import TracebackType
from typing import IO

import pyarrow as pa

from polyweft.errors import DataError
from polyweft.io import read_table, write_table

_COLUMNS: list[tuple[str, pa.DataType]] = [
    ("key", pa.string()),
    ("shard", pa.int32()),
    ("offset", pa.int64()),
    ("size", pa.int64()),
]
INDEX = pa.schema(_COLUMNS)


class MediaWriter:
    """Writes a media store; use as a context manager. Equal content is stored once.

    Parameters
    ----------
    folder
        Where the shards and the index go.
    shard_bytes
        A new shard is begun once the current one holds this many bytes.
    """

    def __init__(self, folder: Path, *, shard_bytes: int = 256 * 2**20) -> None:
        self._folder, self._shard_bytes = folder, shard_bytes
        self._rows: dict[str, tuple[int, int, int]] = {}
        self._shard, self._offset = -1, 0
        self._handle: IO[bytes] | None = None

    def __enter__(self) -> MediaWriter:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self

    def add(self, kind: str, content: bytes, extension: str) -> str:
        """Store `content` and return its key; `extension` comes without a dot."""
        key = f"{kind}/{hashlib.sha256(content).hexdigest()}.{extension.lower()}"
        if key not in self._rows:
            if self._handle is None or self._offset >= self._shard_bytes:
                self._begin_shard()
            assert self._handle is not None
            header = tarfile.TarInfo(key)
            header.size = len(content)
            head = header.tobuf(tarfile.USTAR_FORMAT)
            self._handle.write(head + content + b"\0" * (-len(content) % tarfile.BLOCKSIZE))
            self._rows[key] = (self._shard, self._offset + len(head), len(content))
            self._offset += len(head) + len(content) + (-len(content) % tarfile.BLOCKSIZE)
        return key

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self._end_shard()
        if kind is None:
            rows = [{"key": k, "shard": s, "offset": o, "size": n} for k, (s, o, n) in self._rows.items()]
            write_table(self._folder / "media.parquet", pa.Table.from_pylist(rows, schema=INDEX))

    def _begin_shard(self) -> None:
        self._end_shard()
        self._shard, self._offset = self._shard + 1, 0
        self._handle = (self._folder / f"media-{self._shard:05d}.tar").open("wb")

    def _end_shard(self) -> None:
        if self._handle is not None:
            self._handle.write(b"\0" * (2 * tarfile.BLOCKSIZE))
            self._handle.close()
            self._handle = None


class MediaStore:
    """Reads a media store by key. Safe to open in several processes at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        index = read_table(folder / "media.parquet").to_pydict()
        places = zip(index["shard"], index["offset"], index["size"], strict=True)
        self._places: dict[str, tuple[int, int, int]] = dict(zip(index["key"], places, strict=True))
        self._handles: dict[int, io.BufferedReader] = {}

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def size(self, key: str) -> int:
        """The medium's size in bytes; an unknown key is a `DataError`."""
        return self._place(key)[2]

    def read(self, key: str) -> bytes:
        """The medium's bytes; an unknown key or a shard that ends early is a `DataError`."""
        shard, offset, size = self._place(key)
        if shard not in self._handles:
            self._handles[shard] = (self._folder / f"media-{shard:05d}.tar").open("rb")
        handle = self._handles[shard]
        handle.seek(offset)
        content = handle.read(size)
        if len(content) != size:
            raise DataError(
                f"{self._folder}/media-{shard:05d}.tar ends early: {key} has {len(content)} of {size} bytes. "
                "Remove the folder and run `dvc repro ingest`."
            )
        return content

    def _place(self, key: str) -> tuple[int, int, int]:
        if key not in self._places:
            raise DataError(f"media key {key!r} is not in {self._folder}. Run `dvc repro ingest`.")
        return self._places[key]
