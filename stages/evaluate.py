"""Evaluate the trained model on a split: metrics with intervals, tables for `dvc plots`, a page to read."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from polyweft.config import RuntimeParams
from polyweft.data.shards import read_split
from polyweft.data.text import TokenizerError
from polyweft.errors import DataError
from polyweft.evaluation.evaluator import EvaluateParams, Evaluation, evaluate_split
from polyweft.evaluation.report import page
from polyweft.io import write_table, write_text
from polyweft.report import Report
from stages.entry import enter

PAGES = Path("reports/html/evaluate")
_DIGITS = 6


def run(
    params: EvaluateParams, runtime: RuntimeParams, *, prepared: Path, trained: Path, out: Path
) -> Report:
    """Measure the model of `trained` on the split of `prepared` that `evaluate.split` names.

    Raises
    ------
    DataError
        The split has no rows, or none that can be measured; a file of `trained` is missing or malformed.
    MediaError, TrainingError
        A content cannot be decoded; the model answers NaN or infinity.
    """
    from polyweft.models.build import load_trained

    samples = list(read_split(prepared, params.split))
    try:
        predictor = load_trained(trained, threads=runtime.threads)
    except TokenizerError as error:
        raise DataError(f"the model's tokenizer cannot be loaded: {error}") from error
    begin = time.perf_counter()
    evaluation = evaluate_split(predictor, samples, params, seed=runtime.seed)
    seconds = time.perf_counter() - begin
    _write_tables(evaluation, out)
    write_text(PAGES / "index.html", page(evaluation, samples, split=params.split))
    facts: dict[str, Any] = {name: _rounded(value) for name, value in evaluation.metrics.items()}
    return Report(
        facts={**facts, "split": params.split},
        run_facts={"samples_per_second": round(len(samples) / seconds, 1)},
        pages=[PAGES / "index.html"],
    )


def _write_tables(evaluation: Evaluation, out: Path) -> None:
    """`predictions.parquet`, and as CSV `confusion` (a line a row), `per_class`, `recall` and `missing`."""
    import pyarrow as pa

    types: dict[str, pa.DataType] = {
        "id": pa.string(),
        "leak": pa.bool_(),
        "label": pa.string(),
        "predicted": pa.string(),
        "probability": pa.float64(),
        "labels": pa.list_(pa.string()),
        "predicted_labels": pa.list_(pa.string()),
        "target": pa.float64(),
        "value": pa.float64(),
        "generated": pa.string(),
    }
    columns = evaluation.predictions
    schema = pa.schema({name: types.get(name, pa.int64()) for name in columns})
    table = {name: [_rounded(value) for value in values] for name, values in columns.items()}
    write_table(out / "predictions.parquet", pa.table(table, schema=schema))
    rows = evaluation.rows
    pairs = zip(rows["actual"], rows["predicted"], strict=True) if "actual" in rows else ()
    _write_csv(out / "confusion.csv", ["actual", "predicted"], pairs)
    reports = [*evaluation.class_reports, *evaluation.label_reports]
    classes = [[_rounded(value) for value in asdict(line).values()] for line in reports]
    _write_csv(out / "per_class.csv", ["class", "precision", "recall", "f1", "support"], classes)
    names = ["direction", "k", "recall", "low", "high"]
    curve = [[_rounded(line[name]) for name in names] for line in evaluation.recall_curve]
    _write_csv(out / "recall.csv", names, curve)
    lost = [
        [line.modality, line.metric, name, line.samples, *map(_rounded, values)]
        for line in evaluation.removals
        for name, values in line.values.items()
    ]
    _write_csv(
        out / "missing.csv", ["modality", "metric", "presence", "samples", "value", "low", "high"], lost
    )


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


def _rounded(value: Any) -> Any:
    # Digits below these are noise of floating-point sums and would move with the number of threads.
    return round(value, _DIGITS) if isinstance(value, float) else value


if __name__ == "__main__":
    enter(run)
