"""Read a source into one manifest and store the media it names; repair lost paths, set broken media aside."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa

from polyweft.config import RuntimeParams
from polyweft.data.media import MediaWriter
from polyweft.data.records import SPLITS, manifest, quarantine
from polyweft.data.sources import IngestParams, read_source
from polyweft.data.sources.collect import Collected, collect
from polyweft.errors import DataError
from polyweft.io import write_table
from polyweft.modalities import MEDIA
from polyweft.report import Report
from polyweft.workspace import workspace
from stages.entry import enter

REPAIRS = pa.schema(
    [pa.field(name, pa.string(), nullable=False) for name in ("id", "column", "given", "used", "rule")]
)
TRUTH = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("id", "fault", "detail")])


def run(params: IngestParams, runtime: RuntimeParams, *, out: Path) -> Report:
    """Leave manifest.parquet, the media store, quarantine.parquet and repairs.parquet in `out`.

    Of the built-in scenes, also truth/faults.parquet. On an error `out` is removed: nothing half-written
    is left.

    Raises
    ------
    DataError
        The source is missing, empty or malformed, or the disk is full.
    """
    began = time.perf_counter()
    source = read_source(params, _found(params.path), seed=runtime.seed)
    others = [_found(root) for root in params.repair_roots]
    for given, other in zip(params.repair_roots, others, strict=True):
        if not other.is_dir():
            raise DataError(
                f"ingest.repair_roots names {given!r}, which is not a folder. Correct or remove it."
            )
    try:
        with MediaWriter(out) as store:
            collected = collect(source, params, store, others=others, threads=runtime.threads)
        write_table(out / "manifest.parquet", manifest(collected.rows))
        write_table(out / "quarantine.parquet", quarantine(collected.quarantined))
        write_table(out / "repairs.parquet", pa.Table.from_pylist(collected.repairs, schema=REPAIRS))
        if params.source == "scenes":
            _write_truth(params, runtime.seed, out)
    except OSError as error:
        shutil.rmtree(out, ignore_errors=True)
        raise DataError(
            f"could not write {out}: {error.strerror or error}. Free some space and run again."
        ) from error
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    seconds = time.perf_counter() - began
    count = len(collected.rows) + len(collected.quarantined)
    return Report(_facts(params, collected), {"rows_per_second": round(count / seconds, 1)})


def _found(path: str) -> Path:
    """A relative path from here or, where an experiment's copy lacks it, from the main workspace."""
    here = Path(path)
    return here if here.is_absolute() or here.exists() else workspace() / path


def _write_truth(params: IngestParams, seed: int, out: Path) -> None:
    from polyweft.data.scene_faults import truth

    write_table(
        out / "truth" / "faults.parquet", pa.Table.from_pylist(truth(params.scenes, seed), schema=TRUTH)
    )


def _facts(params: IngestParams, collected: Collected) -> dict[str, Any]:
    rows = collected.rows
    captions = [caption for row in rows for caption in row["captions"]]
    languages = Counter(caption["language"] or "unknown" for caption in captions)
    checks = Counter(entry["check"] for entry in collected.quarantined)
    rules = Counter(repair["rule"] for repair in collected.repairs)
    return {
        "source": params.source,
        "rows": len(rows),
        "rows_without_split": sum(row["split"] is None for row in rows),
        **{f"rows_{split}": sum(row["split"] == split for row in rows) for split in SPLITS},
        "labels": len({row["label"] for row in rows} - {None}),
        "labels_at_once": len({name for row in rows for name in row["labels"]}),
        "rows_without_label": sum(row["label"] is None for row in rows),
        **{f"rows_with_{kind}": sum(row.get(kind) is not None for row in rows) for kind in MEDIA},
        "rows_with_text": sum(bool(row["captions"]) for row in rows),
        "rows_masked": sum(bool(row["masked"]) for row in rows),
        "captions": len(captions),
        **{f"captions_{language}": number for language, number in sorted(languages.items())},
        "repairs": len(collected.repairs),
        **{f"repairs_{rule.replace('+', '_')}": number for rule, number in sorted(rules.items())},
        "quarantined": len(collected.quarantined),
        **{f"quarantined_{check}": number for check, number in sorted(checks.items())},
        "media_files": len(collected.media),
        "media_bytes": sum(collected.media.values()),
    }


if __name__ == "__main__":
    enter(run)
