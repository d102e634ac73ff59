"""Golden queries are chosen to hold what serving must cope with, and hold what PyTorch answered."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from polyweft.errors import ExportError
from polyweft.export.bundle import read_spec
from polyweft.export.golden import (
    ask,
    ask_export,
    choose,
    difference,
    differences,
    read_golden,
    write_golden,
)
from polyweft.io import read_json, write_json
from polyweft.models.build import load_trained
from tests.unit.export.tiny_export import CLASSES, ENCODERS, Made, sample, samples

BOTH = ["image", "text"]
FLOATS = st.floats(-0.5, 0.5, width=32)


def test_rows_with_chinese_text_and_with_each_modality_absent_are_among_them(each: Made) -> None:
    golden = read_golden(each.exported / "golden")
    assert len(golden) == 6
    for name, contents in golden.contents.items():
        assert None in contents, name
        assert any(contents), name
    texts = [text.decode() for text in golden.contents["text"] if text]
    assert any("红" in text for text in texts)
    assert any(text.isascii() for text in texts)


def test_classes_that_were_not_seen_come_first() -> None:
    rows = [sample(0), sample(3), sample(6), sample(1), sample(2)]
    assert [row["sample"].label for row in choose(rows, BOTH, 3)] == CLASSES


@pytest.mark.parametrize("count", [1, 2, 3, 50])
@pytest.mark.parametrize("modalities", [BOTH, list(ENCODERS)])
def test_no_more_are_chosen_than_asked_for(count: int, modalities: list[str]) -> None:
    rows = samples(modalities)
    picked = choose(rows, modalities, count)
    assert len(picked) == min(count, len(rows))
    assert len({row["sample"].id for row in picked}) == len(picked)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("lacks", BOTH)
def test_data_without_any_image_or_any_text_has_golden_queries_too(count: int, lacks: str) -> None:
    picked = choose([sample(number, lacks=[lacks]) for number in range(3)], BOTH, count)
    assert len(picked) == min(count, 3)
    assert all(row["contents"][lacks] is None for row in picked)
    assert all(content for row in picked for name, content in row["contents"].items() if name != lacks)


def test_expected_answers_are_those_of_pytorch_row_by_row(each: Made) -> None:
    golden = read_golden(each.exported / "golden")
    predictor, generation = load_trained(each.trained, threads=1), read_spec(each.exported)["generation"]
    for row, name in enumerate(golden.ids):
        contents = {modality: [found[row]] for modality, found in golden.contents.items()}
        alone = ask(predictor, [name], contents, generation)
        for output, array in alone.expected.items():
            assert np.abs(array[0] - golden.expected[output][row]).max() < 1e-5, (name, output)
        assert alone.captions == golden.captions[row : row + 1]


def test_an_absent_modality_has_a_zero_embedding_and_answers_all_the_same(made: Made) -> None:
    golden = read_golden(made.exported / "golden")
    for name, contents in golden.contents.items():
        there = golden.expected[f"{name}_embedding"].any(axis=1)
        assert there.tolist() == [content is not None for content in contents]
    assert golden.expected["probabilities"].sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_captions_stand_with_images_alone(each: Made) -> None:
    golden = read_golden(each.exported / "golden")
    if not read_spec(each.exported)["generates"]:
        assert golden.captions == []
        return
    for caption, image in zip(golden.captions, golden.contents["image"], strict=True):
        assert bool(caption) == (image is not None)
    assert len(set(golden.captions)) > 2


def test_onnx_answers_them_from_raw_bytes_as_pytorch_does(each: Made) -> None:
    assert ask_export(each.exported, read_golden(each.exported / "golden"), threads=1) < 1e-5


def test_writing_them_again_gives_the_same_bytes(each: Made, tmp_path: Path) -> None:
    predictor, generation = load_trained(each.trained, threads=1), read_spec(each.exported)["generation"]
    write_golden(predictor, samples(predictor.modalities), tmp_path, generation=generation, count=6)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(path.name for path in (each.exported / "golden").iterdir())
    for name in names:
        assert (tmp_path / name).read_bytes() == (each.exported / "golden" / name).read_bytes()


@given(arrays(np.float32, (3, 2), elements=FLOATS), st.floats(1e-3, 1), st.integers(0, 5))
def test_the_difference_is_the_largest_component(array: np.ndarray, shift: float, place: int) -> None:
    moved = array.astype(np.float64)
    moved.flat[place] += shift
    assert difference(array, moved) == pytest.approx(shift, rel=1e-9)
    assert difference(array, array) == 0.0
    scaled, by = (array + 1).astype(np.float64) * 1000, np.abs(array + 1).max() * 1000
    assert difference(scaled, scaled + shift) == pytest.approx(shift / by, rel=1e-6)


@pytest.mark.parametrize(
    "found",
    [None, np.zeros((2, 3)), np.array([[np.nan, 0], [0, 0]]), np.full((2, 2), np.inf)],
    ids=["missing", "shape", "nan", "infinite"],
)
def test_what_cannot_be_compared_is_infinitely_far(found: np.ndarray | None) -> None:
    assert difference(np.zeros((2, 2), np.float32), found) == float("inf")


def test_another_caption_is_infinitely_far(each: Made) -> None:
    golden = read_golden(each.exported / "golden")
    same = differences(golden, golden.expected, golden.captions)
    assert max(same.values()) == 0
    if golden.captions:
        other = differences(golden, golden.expected, ["another", *golden.captions[1:]])
        assert other["caption"] == float("inf")


@pytest.mark.parametrize("name", ["golden.json", "golden.safetensors", "image-000.png"])
def test_what_is_missing_or_broken_is_named(exported: Path, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(exported / "golden", tmp_path / "golden")
    (copy / name).unlink()
    with pytest.raises(ExportError, match=name):
        read_golden(copy)
    (copy / name).write_bytes(b"x")
    if name != "image-000.png":
        with pytest.raises(ExportError, match=name):
            read_golden(copy)


def test_rows_that_lack_answers_are_refused(exported: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(exported / "golden", tmp_path / "golden")
    write_json(copy / "golden.json", read_json(copy / "golden.json")[:3])
    with pytest.raises(ExportError, match="3 rows"):
        read_golden(copy)
    write_json(copy / "golden.json", [])
    with pytest.raises(ExportError, match="cannot be read"):
        read_golden(copy)


def test_a_split_with_nothing_to_ask_is_an_error(trained: Path, tmp_path: Path) -> None:
    nothing = [sample(0, lacks=list(ENCODERS))]
    with pytest.raises(ExportError, match="nothing to ask"):
        write_golden(load_trained(trained, threads=1), nothing, tmp_path, generation=None, count=3)
