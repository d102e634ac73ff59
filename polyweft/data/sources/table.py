"""A CSV or Parquet table of paths (or, in Parquet, of media bytes)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polyweft.data.sources.metadata import csv_records, locate, rows_of
from polyweft.data.sources.rows import IngestParams, SourceRow
from polyweft.errors import DataError

_BATCH = 512  # rows read at a time: media bytes may stand in the table itself


def read_table_of_paths(params: IngestParams, path: Path) -> Iterator[SourceRow]:
    """Rows of the table; `columns` says what its columns are."""
    table, root = locate(params, path, ("*.csv", "*.parquet"))
    records = _parquet_records(table) if table.suffix.lower() == ".parquet" else csv_records(table)
    return rows_of(records, params, table.name, root)


def _parquet_records(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        number = 0
        with pq.ParquetFile(table) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{table.name} is not a readable Parquet file: {error}") from None
