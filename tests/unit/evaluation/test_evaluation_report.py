"""The page says what was measured, escapes what comes from the data, and is the same each time."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from polyweft.evaluation.evaluator import evaluate_split
from polyweft.evaluation.figures import confusion, recall_curve
from polyweft.evaluation.report import page
from tests.unit.evaluation.table_model import TableModel, params, readers, sample

CLASSES = ["<b>ant</b>", "蜜蜂"]


def written(tmp_path: Path) -> str:
    words = readers(tmp_path)
    vectors = np.eye(12, dtype=np.float32)
    texts = {f"<script>{i}": vectors[i] for i in range(12)}
    rows = [
        sample(i, i, [f"<script>{i}"], label=CLASSES[i % 2], classes=CLASSES, leak=i == 0) for i in range(12)
    ]
    model = TableModel(words, vectors, texts, classes=CLASSES, answers=np.eye(2)[np.arange(12) % 2])
    return page(evaluate_split(model, rows, params(), seed=0), rows, split="test")


def test_the_page_shows_the_metrics_and_needs_no_other_file(tmp_path: Path) -> None:
    html = written(tmp_path)
    HTMLParser().feed(html)
    assert "100.0%" in html
    assert "text_to_image_recall_at_10" in html
    assert "Without leaks" in html
    assert "蜜蜂" in html
    assert not re.search(r'(src|href)="(?!data:)', html)
    assert html == written(tmp_path)


def test_text_from_the_data_is_escaped(tmp_path: Path) -> None:
    html = written(tmp_path)
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "<b>ant" not in html


@pytest.mark.parametrize("classes", [1, 2, 16, 17, 40, 41, 81])
def test_a_confusion_matrix_of_any_size_has_a_cell_for_each_count(classes: int) -> None:
    matrix = np.diag(np.arange(1, classes + 1))
    svg = confusion(matrix, [f"class {i}" for i in range(classes)])
    assert svg.count("<title>") == classes
    assert f"class {classes - 1} taken for class {classes - 1}: {classes} (100%)" in svg


def test_the_curve_rises_on_the_page_where_recall_rises() -> None:
    lines = [
        {"direction": "text_to_image", "k": k, "recall": recall, "low": recall / 2, "high": recall}
        for k, recall in ((1, 0.2), (5, 0.5), (10, 0.9))
    ]
    heights = [
        float(y)
        for y in re.findall(
            r'<circle cx="[\d.]+" cy="([\d.]+)" r="4" fill="[^"]+" class', recall_curve(lines)
        )
    ]
    assert heights == sorted(heights, reverse=True)
    assert len(set(heights)) == 3
