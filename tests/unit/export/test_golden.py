"""Golden queries are chosen to hold what serving must cope with, and hold what PyTorch answered."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from polyweft.data.text import TextTokenizer
from polyweft.errors import ExportError
from polyweft.export.golden import answers, choose, largest_difference, read_golden, write_golden
from polyweft.export.onnx import OnnxPredictor
from polyweft.models.build import load_trained
from tests.unit.export.tiny_export import CLASSES, sample, samples


def test_rows_with_chinese_text_and_with_a_modality_absent_are_among_them(exported: Path) -> None:
    queries = read_golden(exported / "golden").queries
    assert len(queries) == 6
    assert any(query.image is None for query in queries)
    assert any(query.text is None for query in queries)
    assert any("红" in (query.text or "") for query in queries)
    assert any((query.text or "").isascii() and query.text for query in queries)


def test_classes_that_were_not_seen_come_first() -> None:
    rows = [sample(0), sample(3), sample(6), sample(1), sample(2)]
    assert [picked.label for picked, _ in choose(rows, 3)] == CLASSES


@pytest.mark.parametrize("count", [1, 2, 3, 50])
def test_no_more_are_chosen_than_asked_for(count: int) -> None:
    picked = choose(samples(), count)
    assert len(picked) == min(count, 10)
    assert len({row.id for row, _ in picked}) == len(picked)


@pytest.mark.parametrize("count", [1, 4])
def test_data_without_any_image_or_any_text_has_golden_queries_too(count: int) -> None:
    texts = [sample(number, image=False) for number in range(3)]
    images = [sample(number, text=False) for number in range(3)]
    assert all(text for _, text in choose(texts, count))
    assert all(row.image for row, _ in choose(images, count))
    assert len(choose(texts, count)) == len(choose(images, count)) == min(count, 3)


def test_expected_answers_are_those_of_pytorch_row_by_row(exported: Path, trained: Path) -> None:
    golden = read_golden(exported / "golden")
    predictor, tokenizer = load_trained(trained, threads=1), TextTokenizer.load(trained)
    for number, query in enumerate(golden.queries):
        alone = answers(predictor, tokenizer, [query], [golden.images[number]])
        for name, array in alone.items():
            assert np.abs(array[0] - golden.expected[name][number]).max() < 1e-6, (query.id, name)


def test_an_absent_modality_has_a_zero_embedding_and_a_class_all_the_same(exported: Path) -> None:
    golden = read_golden(exported / "golden")
    for number, query in enumerate(golden.queries):
        assert golden.expected["image_embedding"][number].any() == (query.image is not None)
        assert golden.expected["text_embedding"][number].any() == (query.text is not None)
        assert golden.expected["probabilities"][number].sum() == pytest.approx(1, abs=1e-5)


def test_onnx_answers_them_from_raw_bytes_as_pytorch_does(exported: Path) -> None:
    golden = read_golden(exported / "golden")
    predictor = OnnxPredictor.load(exported, threads=1)
    found = answers(predictor, TextTokenizer.load(exported), golden.queries, golden.images)
    assert largest_difference(golden.expected, found) < 1e-5


def test_writing_them_again_gives_the_same_bytes(exported: Path, trained: Path, tmp_path: Path) -> None:
    predictor, tokenizer = load_trained(trained, threads=1), TextTokenizer.load(trained)
    write_golden(predictor, tokenizer, samples(), tmp_path, count=6)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(path.name for path in (exported / "golden").iterdir())
    for name in names:
        assert (tmp_path / name).read_bytes() == (exported / "golden" / name).read_bytes()


def test_differences_of_shape_name_and_finiteness_are_infinite() -> None:
    one = {"a": np.ones((2, 3), np.float32)}
    assert largest_difference(one, {"a": np.full((2, 3), 1.5, np.float32)}) == 0.5
    assert largest_difference(one, {"a": np.ones((2, 4), np.float32)}) == float("inf")
    assert largest_difference(one, {"b": one["a"]}) == float("inf")
    assert largest_difference(one, {"a": np.full((2, 3), np.nan, np.float32)}) == float("inf")


@pytest.mark.parametrize("name", ["golden.json", "golden.safetensors", "img-000.png"])
def test_what_is_missing_or_broken_is_named(exported: Path, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(exported / "golden", tmp_path / "golden")
    (copy / name).unlink()
    with pytest.raises(ExportError, match=name):
        read_golden(copy)
    (copy / name).write_bytes(b"x")
    if name != "img-000.png":
        with pytest.raises(ExportError, match=name):
            read_golden(copy)


def test_a_split_with_nothing_to_ask_is_an_error(trained: Path, tmp_path: Path) -> None:
    predictor, tokenizer = load_trained(trained, threads=1), TextTokenizer.load(trained)
    with pytest.raises(ExportError, match="nothing to ask"):
        write_golden(predictor, tokenizer, [sample(0, image=False, text=False)], tmp_path, count=3)
