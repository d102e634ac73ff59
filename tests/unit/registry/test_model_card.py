"""The model card states what it is given, and the same facts give the same text."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from polyweft.data.shards import Dataset
from polyweft.io import write_json
from registry.model_card import read_reports, write_card

SPEC: dict[str, Any] = {
    "family": "trimodal",
    "modalities": ["image", "text"],
    "inputs": {
        "image": {
            "tensor": "pixel_values",
            "dtype": "float32",
            "largest": [3, 64, 64],
            "spec": {"resize": "pad"},
        },
        "text": {"tensor": "input_ids", "dtype": "int64", "largest": [77], "spec": {}},
    },
    "classes": [f"class {number}" for number in range(30)],
    "labels": ["round"],
    "embedding_size": 8,
    "export_hash": "abc123",
    "sees": ["image", "text"],
    "outputs": {"probabilities": [30], "value": [1]},
    "generates": False,
    "generation": None,
}
DATASET = Dataset(["a"], {"train": 80, "test": 20}, {}, {"image": 100, "text": 90}, ["en", "zh"])
RECORD = {
    "commit": "c0ffee",
    "order": ["train"],
    "stages": {
        "train": {
            "params": {"params.yaml": {"train": {"lr": 0.001}}},
            "outs": [{"path": "data/train", "md5": "77.dir"}],
        }
    },
}


def card(**changes: Any) -> str:
    given: dict[str, Any] = {
        "name": "scenes",
        "description": "Finds scenes.",
        "spec": SPEC,
        "dataset": DATASET,
        "metrics": {"accuracy": 0.91, "accuracy_low": 0.9, "accuracy_high": 0.92, "rows": 20.0},
        "bars": {"accuracy": {"bar": 0.8, "value": 0.91, "pass": True}},
        "record": RECORD,
        "reports": {"align": {"quarantined": 3, "tokenizer": "bpe", "nested": {"a": 1}}},
    }
    return write_card(**(given | changes))


def test_card_holds_metrics_with_intervals_data_checks_params_and_lineage() -> None:
    text = card()
    for line in (
        "| accuracy | 0.9100 | 0.9000 to 0.9200 | 0.8000 |",
        "| rows in test | 20 |",
        "| rows | 20 |",
        "| align | quarantined | 3 |",
        '| train | train | `{"lr": 0.001}` |',
        "| commit | c0ffee |",
        "| data/train | 77.dir |",
    ):
        assert line in text
    assert "and 10 more" in text
    assert card() == text


def test_card_says_what_the_model_takes_and_is_for() -> None:
    text = card()
    for line in (
        "| image as | pixel_values, float32, 3 x 64 x 64; resize pad |",
        "| text as | input_ids, int64, 77 |",
        "| head answers with | probabilities, value |",
        "telling 30 classes apart, naming which of 1 labels apply, estimating a number",
    ):
        assert line in text
    captioner = SPEC | {"generates": True, "generation": {"strategy": "greedy"}, "sees": [], "outputs": {}}
    assert "describing images" in card(spec=captioner)
    assert "head" not in card(spec=captioner).split("## Metrics")[0]


def test_text_of_a_fact_cannot_break_the_table() -> None:
    assert r"| align | odd | a\|b c |" in card(reports={"align": {"odd": "a|b\nc"}})


def test_metric_that_is_no_number_is_said_to_be_none() -> None:
    assert "| accuracy | not a number |" in card(metrics={"accuracy": math.nan})


def test_model_without_classes_and_checks_has_a_card() -> None:
    text = card(spec=SPEC | {"classes": []}, reports={}, record={})
    assert "classes" not in text.split("## Metrics")[0]
    assert "Checks of the data" not in text


def test_reports_that_are_absent_are_left_out(tmp_path: Path) -> None:
    write_json(tmp_path / "align.json", {"a": 1})
    assert read_reports(tmp_path) == {"align": {"a": 1}}
