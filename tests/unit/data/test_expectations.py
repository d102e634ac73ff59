"""The suite: which rows break which expectation, and pages that stay beside the tracked files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

from polyweft.data.checks import FLAT, ValidateParams
from polyweft.data.expectations import Outcome, run_suite, suite_rules, table_rules

HASH = "a" * 64


def columns(**changes: list[Any]) -> dict[str, list[Any]]:
    """A flat view of three good rows, with some columns replaced."""
    good: dict[str, list[Any]] = {
        "row": [0, 1, 2],
        "id": ["a", "b", "c"],
        "image": [f"image/{HASH}.png"] * 3,
        "audio": [None] * 3,
        "video": [None] * 3,
        "graph": [None] * 3,
        "label": ["x", "y", None],
        "target": [None] * 3,
        "group": [None] * 3,
        "split": ["train", "test", None],
        "source": ["s:1", "s:2", "s:3"],
        "content_hash": [HASH] * 3,
        "labels": [None, 2, None],
        "captions": [1, 2, None],
        "caption_characters": [5, 6, None],
        "caption_invalid": [0, 0, None],
        "image_width": [32, 32, 32],
        "image_height": [32, 32, 32],
        "image_aspect": [1.0, 1.0, 1.0],
        "audio_seconds": [None] * 3,
        "audio_rate": [None] * 3,
        "video_seconds": [None] * 3,
        "graph_nodes": [None] * 3,
    }
    assert tuple(good) == FLAT
    return {**good, **changes}


def ask(tmp_path: Path, params: ValidateParams, **changes: list[Any]) -> dict[str, Outcome]:
    rules = [*suite_rules(params), *table_rules(params)]
    outcomes = run_suite(columns(**changes), rules, name="test", docs=tmp_path / "docs")
    return {outcome.rule.check: outcome for outcome in outcomes}


def test_good_rows_meet_every_expectation_and_the_pages_are_written(tmp_path: Path) -> None:
    found = ask(tmp_path, ValidateParams())
    assert all(outcome.success for outcome in found.values())
    assert (tmp_path / "docs" / "index.html").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["docs"]


def test_each_fault_is_found_on_its_rows(tmp_path: Path) -> None:
    found = ask(
        tmp_path,
        ValidateParams(required=["label"], labels=["x"]),
        id=["a", "b", "b"],
        split=["train", "trian", None],
        image_width=[32, 4, 32],
        caption_characters=[5, 10_000, None],
        caption_invalid=[0, 0, 2],
        audio_seconds=[None, None, 3600.0],
    )
    rows = {check: outcome.rows for check, outcome in found.items() if not outcome.success}
    assert rows == {
        "id_unique": [1, 2],
        "label_filled": [2],
        "label_allowed": [1],
        "split_allowed": [1],
        "image_width_range": [1],
        "caption_characters_range": [1],
        "caption_invalid_range": [2],
        "audio_seconds_range": [2],
    }
    assert found["caption_characters_range"].values == [10_000]


def test_nothing_is_left_in_the_folder_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    ask(tmp_path, ValidateParams())
    assert list((tmp_path / "temporary").iterdir()) == []


def test_rules_about_the_table_blame_no_row(tmp_path: Path) -> None:
    params = ValidateParams.model_validate({"min_rows": 4, "min_labels": 3, "max_missing": {"captions": 0.3}})
    found = ask(tmp_path, params)
    broken = {check for check, outcome in found.items() if not outcome.success}
    assert broken == {"rows_enough", "labels_enough", "captions_missing"}
    assert all(found[check].rows == [] for check in broken)
    assert found["captions_missing"].observed == "1 of 3 rows without it"


def test_what_may_be_missing_is_a_share(tmp_path: Path) -> None:
    params = ValidateParams.model_validate({"max_missing": {"captions": 0.34, "label": 0.34}})
    found = ask(tmp_path, params)
    assert found["captions_missing"].success
    assert found["label_missing"].success


def test_an_expectation_that_cannot_be_asked_is_an_error_not_a_pass(tmp_path: Path) -> None:
    broken = columns()
    del broken["image_width"]
    with pytest.raises(KeyError, match="image_width_range"):
        run_suite(broken, suite_rules(ValidateParams()), name="test", docs=tmp_path / "docs")
