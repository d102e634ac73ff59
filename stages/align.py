"""Check the rows across modalities: complete, unrepeated, leaking, told by the text, wrongly paired."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from polyweft.config import RuntimeParams
from polyweft.data.align_rows import CHECKS, Aligned, AlignParams, align_rows
from polyweft.data.fault_scores import fault_facts
from polyweft.data.grams import canonical
from polyweft.data.media import MediaStore
from polyweft.data.pair_checks import findings_table
from polyweft.data.records import SCHEMA, quarantine
from polyweft.errors import DataError
from polyweft.io import read_table, write_bytes, write_table
from polyweft.report import Report
from stages.entry import enter

_FIELDS: list[pa.Field[Any]] = [
    pa.field("id", pa.string(), nullable=False),
    pa.field("score", pa.float64(), nullable=False),
]
SCORES = pa.schema(_FIELDS)


def run(params: AlignParams, runtime: RuntimeParams, *, ingested: Path, validated: Path, out: Path) -> Report:
    """Leave manifest.parquet, quarantine.parquet, findings.parquet, scores.parquet and plots in `out`.

    The truth about the built-in data is opened last, after everything else is written.

    Raises
    ------
    CheckFailedError
        A check set to `fail` found something, or no row is left; nothing is written.
    """
    rows = read_table(validated / "manifest.parquet").to_pylist()
    before = read_table(validated / "quarantine.parquet").to_pylist()
    if not rows:
        raise DataError(
            f"{validated}/manifest.parquet has no rows. See {validated}/quarantine.parquet for why."
        )
    aligned = align_rows(rows, MediaStore(ingested), params, runtime)
    findings = findings_table(aligned.findings)
    write_table(out / "manifest.parquet", pa.Table.from_pylist(aligned.rows, schema=SCHEMA))
    write_table(out / "quarantine.parquet", quarantine([*before, *aligned.quarantined]))
    write_table(out / "findings.parquet", findings)
    scores = [{"id": name, "score": score} for name, score in aligned.scores.items()]
    write_table(out / "scores.parquet", pa.Table.from_pylist(scores, schema=SCORES))
    _write_plots(out / "plots", aligned)
    facts = _facts(rows, aligned)
    truth = ingested / "truth" / "faults.parquet"
    if truth.exists():
        set_aside = {entry["id"] for entry in before} | {row["id"] for row in rows if row["masked"]}
        facts |= fault_facts(read_table(truth).to_pylist(), findings.to_pylist(), set_aside, aligned.scores)
    return Report(facts)


def _facts(rows: list[dict[str, Any]], aligned: Aligned) -> dict[str, Any]:
    found = Counter(finding.check for finding in aligned.findings)
    aside = Counter(entry["check"] for entry in aligned.quarantined)
    captions = {canonical(caption["text"]) for row in rows for caption in row["captions"]}
    told, pairs = aligned.told, aligned.pairs
    assert told is not None
    assert pairs is not None
    return {
        "rows": len(rows),
        "rows_aligned": len(aligned.rows),
        "captions_distinct": len(captions - {""}),
        **{f"findings_{check}": found[check] for check in CHECKS},
        "quarantined": len({entry["id"] for entry in aligned.quarantined}),
        **{f"quarantined_{check}": number for check, number in sorted(aside.items())},
        "label_from_text_lookup": round(told.lookup, 6),
        "label_from_text_classifier": round(told.classifier, 6),
        "label_from_text_chance": round(told.chance, 6),
        "pairs_scored": len(aligned.scores),
        "pairs_separation": round(pairs.separation, 6),
        "pairs_words": pairs.words,
    }


def _write_plots(folder: Path, aligned: Aligned) -> None:
    counts, edges = np.histogram(list(aligned.scores.values()), bins=20, range=(0.0, 1.0))
    _write_csv(
        folder / "mismatch_scores.csv", {"score": edges[:-1].round(2).tolist(), "rows": counts.tolist()}
    )
    found = Counter(finding.check for finding in aligned.findings)
    _write_csv(folder / "findings.csv", {"check": list(CHECKS), "rows": [found[check] for check in CHECKS]})


def _write_csv(path: Path, columns: dict[str, list[Any]]) -> None:
    out = io.BytesIO()
    pyarrow.csv.write_csv(pa.table(columns), out)
    write_bytes(path, out.getvalue())


if __name__ == "__main__":
    enter(run)
