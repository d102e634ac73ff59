"""The align stage on the built-in scenes: what it finds, what each action does, and the truth last."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from polyweft.config import RuntimeParams, parse_section
from polyweft.data.align_rows import CHECKS, AlignParams
from polyweft.data.checks import ValidateParams
from polyweft.data.sources import IngestParams
from polyweft.errors import CheckFailedError, ConfigError, DataError
from polyweft.io import read_table, write_table
from polyweft.report import Report
from stages import align, ingest, validate

RUNTIME = RuntimeParams(seed=5, threads=2)
FAULTS = {"exact_duplicates": 0.03, "near_duplicates": 0.03, "leaks": 0.03}
QUICK = {"epochs": 1, "width": 8}
STRICT = {
    "exact_duplicates": "quarantine",
    "near_duplicates": "quarantine",
    "leaks": "quarantine",
    "near": {"max_difference": 12.0, "max_block_difference": 24.0},
    "mismatch": QUICK,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Ingested and validated scenes, 200 of them."""
    folder = tmp_path_factory.mktemp("scenes")
    content = {"source": "scenes", "path": ".", "scenes": {"samples": 200, **FAULTS}}
    ingest.run(IngestParams.model_validate(content), RUNTIME, out=folder / "ingest")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        validate.run(ValidateParams(), ingested=folder / "ingest", out=folder / "validate")
    return folder / "ingest", folder / "validate"


def run(data: tuple[Path, Path], out: Path, **content: Any) -> Report:
    params = parse_section(AlignParams, "align", content, where="test")
    return align.run(params, RUNTIME, ingested=data[0], validated=data[1], out=out)


def test_copies_and_leaks_are_found_and_set_aside(data: tuple[Path, Path], tmp_path: Path) -> None:
    facts = run(data, tmp_path, **STRICT).facts
    rates = {
        name: facts[name] for name in facts if name.startswith(("duplicates_", "leaks_", "broken_"))
    }  # of the images too
    assert set(rates.values()) == {1.0}
    assert len(rates) == 8
    aside = {entry["id"] for entry in read_table(tmp_path / "quarantine.parquet").to_pylist()}
    kept = set(read_table(tmp_path / "manifest.parquet").column("id").to_pylist())
    assert not aside & kept
    assert len(aside | kept) == 200
    assert facts["rows_aligned"] == len(kept)
    assert 0.0 <= facts["swapped_captions_average_precision"] <= 1.0
    json.dumps(facts, allow_nan=False)


def test_leaks_keep_the_evaluation_side_by_default(data: tuple[Path, Path], tmp_path: Path) -> None:
    run(data, tmp_path, **STRICT)
    splits = {row["id"]: row["split"] for row in read_table(data[1] / "manifest.parquet").to_pylist()}
    leaks = [f for f in read_table(tmp_path / "findings.parquet").to_pylist() if f["check"] == "leaks"]
    assert leaks
    assert {splits[leak["id"]] for leak in leaks} == {"train"}
    assert "train" not in {splits[leak["other_id"]] for leak in leaks}


def test_report_sets_nothing_aside(data: tuple[Path, Path], tmp_path: Path) -> None:
    facts = run(data, tmp_path, captions_empty="report", mismatch=QUICK).facts
    assert facts["quarantined"] == 0
    assert facts["rows_aligned"] == facts["rows"]
    assert facts["findings_exact_duplicates"] > 0


def test_fail_names_the_check_and_writes_nothing(data: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckFailedError, match=r"exact_duplicates \(6 findings, for example 'scene-"):
        run(data, tmp_path / "out", exact_duplicates="fail", mismatch=QUICK)
    assert not (tmp_path / "out").exists()


def test_the_same_bytes_again_and_the_truth_changes_none(data: tuple[Path, Path], tmp_path: Path) -> None:
    run(data, tmp_path / "a", **STRICT)
    blind = tmp_path / "ingest"
    shutil.copytree(data[0], blind)
    shutil.rmtree(blind / "truth")
    facts = run((blind, data[1]), tmp_path / "b", **STRICT).facts
    assert not any(name.endswith(("_recall", "_average_precision")) for name in facts)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 6
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_captions_that_are_the_label_are_reported_or_refused(data: tuple[Path, Path], tmp_path: Path) -> None:
    rows = read_table(data[1] / "manifest.parquet").to_pylist()
    for row in rows:
        row["captions"] = [{"text": f"this is {row['label']}", "language": "en"}]
    told = tmp_path / "validate"
    shutil.copytree(data[1], told)
    schema = read_table(data[1] / "manifest.parquet").schema
    write_table(told / "manifest.parquet", pa.Table.from_pylist(rows, schema=schema))
    facts = run((data[0], told), tmp_path / "out", max_rows_per_caption=5, mismatch=QUICK).facts
    assert facts["findings_label_from_text"] == 1
    assert facts["findings_captions_repeated"] > 100
    with pytest.raises(CheckFailedError, match=r"tell the label of 100\.0%"):
        run((data[0], told), tmp_path / "no", label_from_text="fail", mismatch=QUICK)


def test_a_check_that_takes_every_row_fails(data: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckFailedError, match=r"no row is left.*pairs_complete alone"):
        run(data, tmp_path, pairs_complete="quarantine", required=["video"], mismatch=QUICK)


def test_rows_of_text_alone_are_aligned_too(data: tuple[Path, Path], tmp_path: Path) -> None:
    rows = read_table(data[1] / "manifest.parquet")
    bare = [{**row, "image": None, "audio": None} for row in rows.to_pylist()]
    folder = tmp_path / "validate"
    shutil.copytree(data[1], folder)
    write_table(folder / "manifest.parquet", pa.Table.from_pylist(bare, schema=rows.schema))
    facts = run((data[0], folder), tmp_path / "out", mismatch=QUICK).facts
    assert facts["findings_pairs_complete"] == facts["rows"] == facts["rows_aligned"]
    assert facts["pairs_scored"] == 0


def test_no_rows_at_all_is_said(data: tuple[Path, Path], tmp_path: Path) -> None:
    empty = tmp_path / "validate"
    shutil.copytree(data[1], empty)
    write_table(empty / "manifest.parquet", read_table(empty / "manifest.parquet").slice(0, 0))
    with pytest.raises(DataError, match="has no rows"):
        run((data[0], empty), tmp_path / "out")


def test_every_check_has_an_action_and_other_words_are_refused() -> None:
    assert set(CHECKS) <= set(AlignParams.model_fields)
    with pytest.raises(ConfigError, match=r"align\.leaks"):
        parse_section(AlignParams, "align", {"leaks": "delete"}, where="params.yaml")


def test_recordings_of_digits_that_stand_in_two_splits_leak(shared_data: Path, tmp_path: Path) -> None:
    content = {"source": "metadata", "path": str(shared_data / "digits")}
    ingest.run(IngestParams.model_validate(content), RUNTIME, out=tmp_path / "ingest")
    facts = run(
        (tmp_path / "ingest", tmp_path / "ingest"),
        tmp_path / "out",
        leak_media=["audio"],
        mismatch={**QUICK, "max_rows": 64},
    ).facts
    assert facts["findings_leaks"] > 60
    assert facts["findings_label_from_text"] == 1
