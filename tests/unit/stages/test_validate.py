"""The validate stage on the built-in scenes and on rows made to fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from polyweft.config import RuntimeParams
from polyweft.data.checks import ValidateParams
from polyweft.data.media import MediaWriter
from polyweft.data.records import manifest, quarantine
from polyweft.data.sources import IngestParams
from polyweft.errors import CheckFailedError
from polyweft.io import read_table, write_table
from stages import ingest, validate

RUNTIME = RuntimeParams(seed=5, threads=2)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pages go beside the current folder: stand in an empty one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "ingest"
    content = {"source": "scenes", "path": ".", "scenes": {"samples": 120, "broken_images": 0.05}}
    ingest.run(IngestParams.model_validate(content), RUNTIME, out=out)
    return out


def made(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """An ingest folder of rows without media."""
    with MediaWriter(folder):
        pass
    full = [{"source": f"test:{place}", **row} for place, row in enumerate(rows)]
    write_table(folder / "manifest.parquet", manifest(full))
    write_table(folder / "quarantine.parquet", quarantine([]))
    return folder


def said(*texts: str) -> list[dict[str, str]]:
    return [{"text": text, "language": "en"} for text in texts]


def test_every_broken_medium_of_the_scenes_is_set_aside(scenes: Path, tmp_path: Path) -> None:
    report = validate.run(ValidateParams(), ingested=scenes, out=tmp_path / "out")
    truth = read_table(scenes / "truth" / "faults.parquet").to_pylist()
    broken = {t["id"] for t in truth if t["fault"] in ("broken_image", "broken_audio", "missing_file")}
    aside = read_table(tmp_path / "out" / "quarantine.parquet").to_pylist()
    assert {entry["id"] for entry in aside} == broken
    assert {entry["stage"] for entry in aside} == {"ingest", "validate"}
    kept = read_table(tmp_path / "out" / "manifest.parquet")
    assert kept.num_rows == report.facts["rows_clean"] == 120 - len(broken)
    assert report.pages[0].joinpath("rows", "index.html").is_file()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "manifest.parquet",
        "quarantine.parquet",
    ]
    json.dumps(report.facts, allow_nan=False)


def test_the_same_bytes_again(scenes: Path, tmp_path: Path) -> None:
    reports = [validate.run(ValidateParams(), ingested=scenes, out=tmp_path / name) for name in ("a", "b")]
    assert reports[0].facts == reports[1].facts
    for name in ("manifest.parquet", "quarantine.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_rows_that_break_an_expectation_are_named_with_it(tmp_path: Path) -> None:
    rows = [{"id": f"r{i}", "captions": said("fine")} for i in range(10)]
    rows[3] = {"id": "long", "captions": said("x" * 10_000)}
    rows[4] = {"id": "r1", "captions": said("a second row of this id")}
    rows[5] = {"id": "mangled", "captions": said("caf\ufffd")}
    ingested = made(tmp_path / "in", rows)
    params = ValidateParams(max_quarantined_fraction=0.5)
    report = validate.run(params, ingested=ingested, out=tmp_path / "out")
    aside = read_table(tmp_path / "out" / "quarantine.parquet").to_pylist()
    assert [(entry["id"], entry["check"]) for entry in aside] == [
        ("long", "caption_characters_range"),
        ("mangled", "caption_invalid_range"),
        ("r1", "id_unique"),
    ]
    assert "ExpectColumnValuesToBeBetween: caption_characters is 10000, expected from 0 to 2000" in str(aside)
    assert read_table(tmp_path / "out" / "manifest.parquet").column("id").to_pylist().count("r1") == 1
    assert report.facts["quarantined"] == 3


def test_too_much_set_aside_fails_naming_the_worst_check(tmp_path: Path) -> None:
    rows = [{"id": f"r{i}", "captions": said("x" * (3000 if i < 4 else 5))} for i in range(10)]
    rows[9] = {"id": "odd", "captions": said("\x00")}
    ingested = made(tmp_path / "in", rows)
    with pytest.raises(
        CheckFailedError, match=r"5 of 10 rows fail \(50\.0%\).*caption_characters_range \(4 rows\).*'r0'"
    ):
        validate.run(ValidateParams(), ingested=ingested, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ({"min_labels": 2}, "labels_enough .*at least 2 distinct labels, found 1"),
        ({"max_missing": {"image": 0.5}}, "image_missing .*at most 50.0% .*found 10 of 10"),
        ({"min_rows": 11}, "rows_enough .*at least 11 rows, found 10"),
    ],
)
def test_what_the_table_lacks_fails_the_stage(tmp_path: Path, content: dict[str, Any], word: str) -> None:
    ingested = made(
        tmp_path / "in", [{"id": f"r{i}", "captions": said("fine"), "label": "only"} for i in range(10)]
    )
    with pytest.raises(CheckFailedError, match=word):
        validate.run(ValidateParams.model_validate(content), ingested=ingested, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
