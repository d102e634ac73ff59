"""Reading and writing files: atomic, deterministic, and confined to their folder."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from polyweft.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path`, and put it in `path`'s place when the block ends well.

    A reader sees the old content or the new, never a part. On an error (a full disk too) the temporary
    file is removed and `path` is untouched.

    Raises
    ------
    DataError
        The bytes could not be written; the message names the file and the system's reason.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(
            f"could not write {path}: {error.strerror or error}. Free some space or check the folder's "
            "permissions, then run the same command again; the old content is untouched."
        ) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    with atomic_file(path) as handle:
        handle.write(content)


def write_text(path: Path, content: str) -> None:
    """Write `content` to `path` as UTF-8, atomically."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON with sorted keys and a final newline, atomically.

    Raises `ValueError` for NaN and infinity: JSON has neither, and a metric that is one is a defect.
    """
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or malformed one is a `DataError` that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing. Run the stage that writes it (`dvc repro`).") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is not valid JSON: {error}. Remove it and run `dvc repro`.") from error


def write_table(path: Path, table: pa.Table) -> None:
    """Write an Arrow table as Parquet, atomically; the same table gives the same bytes."""
    import pyarrow.parquet as pq

    with atomic_file(path) as handle:
        pq.write_table(table, handle, compression="zstd", write_statistics=True)


def read_table(path: Path) -> pa.Table:
    """Read a Parquet file as an Arrow table; a missing or malformed one is a `DataError` that names it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path)
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing. Run the stage that writes it (`dvc repro`).") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error


def inside(root: Path, relative: str) -> Path:
    """Join `relative` to `root`, and refuse a result outside `root` (symbolic links resolved).

    Raises
    ------
    DataError
        The path is absolute, climbs out with `..`, or leaves through a link.
    """
    joined = (root / relative).resolve()
    if Path(relative).is_absolute() or not joined.is_relative_to(root.resolve()):
        raise DataError(
            f"path {relative!r} leaves its folder {root}. Paths must be relative to it and stay inside; "
            "move the file into the folder, or point the source at a folder that holds both."
        )
    return joined
