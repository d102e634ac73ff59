"""Parity finds a difference, names it, and looks at every output, batch and length."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyweft.data.text import TextTokenizer
from polyweft.errors import ExportError
from polyweft.export.onnx import GRAPHS, OnnxPredictor
from polyweft.export.parity import Inputs, Measurement, check, measure, metric_difference, write_parity
from polyweft.models.build import load_trained
from polyweft.models.predictor import FloatArray, Predictor


class Off:
    """A predictor that adds `by` to one output of another."""

    def __init__(self, inner: Predictor, output: str, by: float) -> None:
        self.inner, self.output, self.by = inner, output, by
        self.image_spec, self.classes = inner.image_spec, inner.classes
        self.sees, self.embedding_size = inner.sees, inner.embedding_size

    def images(self, pixels_B3HW: FloatArray) -> tuple[FloatArray, FloatArray]:
        return self._shift("image", self.inner.images(pixels_B3HW))

    def texts(self, input_ids_BT: np.ndarray) -> tuple[FloatArray, FloatArray]:
        return self._shift("text", self.inner.texts(input_ids_BT))

    def classify(self, image: FloatArray, text: FloatArray, present: FloatArray) -> FloatArray:
        answer = self.inner.classify(image, text, present)
        return answer + np.float32(self.by) if self.output == "probabilities" else answer

    def _shift(self, side: str, pair: tuple[FloatArray, FloatArray]) -> tuple[FloatArray, FloatArray]:
        first, second = (
            array + np.float32(self.by) if name == self.output else array
            for name, array in zip(GRAPHS[side].outputs, pair, strict=True)
        )
        return first, second


@pytest.fixture(scope="module")
def inputs(trained: Path) -> Inputs:
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 3, 16, 16)).astype(np.float32)
    return Inputs(pixels, ["a red circle", "一个红色的圆"], TextTokenizer.load(trained))


@pytest.fixture(scope="module")
def sides(trained: Path, exported: Path) -> tuple[Predictor, Predictor]:
    return load_trained(trained, threads=1), OnnxPredictor.load(exported, threads=1)


def parity(sides: tuple[Predictor, Predictor], inputs: Inputs) -> list[Measurement]:
    return measure(*sides, inputs, batch_sizes=[1, 3], text_lengths=[2, 5, 99], seed=3)


def test_the_export_is_the_trained_model(sides: tuple[Predictor, Predictor], inputs: Inputs) -> None:
    assert check(parity(sides, inputs), 1e-5) < 1e-5


def test_every_output_batch_and_length_is_measured_with_real_and_random_input(
    sides: tuple[Predictor, Predictor], inputs: Inputs
) -> None:
    found = parity(sides, inputs)
    assert {row.output for row in found} == {name for names in GRAPHS.values() for name in names.outputs}
    texts = {(row.inputs, row.batch, row.length) for row in found if row.output == "text_embedding"}
    assert texts == {(kind, b, n) for kind in ("real", "random") for b in (1, 3) for n in (2, 5, 12)}
    images = {(row.inputs, row.batch) for row in found if row.output == "image_embedding"}
    assert images == {("real", 1), ("real", 3), ("random", 1), ("random", 3)}


def test_the_same_seed_gives_the_same_figures(sides: tuple[Predictor, Predictor], inputs: Inputs) -> None:
    assert parity(sides, inputs) == parity(sides, inputs)


@pytest.mark.parametrize("output", [name for names in GRAPHS.values() for name in names.outputs])
def test_an_output_that_is_off_is_named(
    sides: tuple[Predictor, Predictor], inputs: Inputs, output: str
) -> None:
    found = parity((sides[0], Off(sides[1], output, 0.01)), inputs)
    with pytest.raises(ExportError, match=rf"{output} by .* batch \d, length \d"):
        check(found, 1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(
    sides: tuple[Predictor, Predictor], inputs: Inputs, value: float
) -> None:
    with pytest.raises(ExportError, match="text_embedding"):
        parity((sides[0], Off(sides[1], "text_embedding", value)), inputs)


def test_a_nan_among_the_measurements_is_over_any_limit() -> None:
    with pytest.raises(ExportError):
        check([Measurement("text_embedding", "real", 1, 2, float("nan"))], 1.0)


def test_without_real_input_random_input_remains(sides: tuple[Predictor, Predictor], inputs: Inputs) -> None:
    empty = Inputs(np.zeros((0, 3, 16, 16), np.float32), [], inputs.tokenizer)
    assert {row.inputs for row in parity(sides, empty)} == {"random"}


def test_the_table_holds_every_measurement(tmp_path: Path) -> None:
    rows = [
        Measurement("text_embedding", "real", 1, 2, 1e-7),
        Measurement("probabilities", "random", 7, 0, 0.0),
    ]
    write_parity(tmp_path / "parity.csv", rows)
    with (tmp_path / "parity.csv").open() as handle:
        read = [
            Measurement(
                r["output"], r["inputs"], int(r["batch"]), int(r["length"]), float(r["max_abs_error"])
            )
            for r in csv.DictReader(handle)
        ]
    assert read == rows


metrics = st.dictionaries(st.sampled_from("abcd"), st.floats(0, 1), min_size=1)


@given(metrics)
def test_an_evaluation_does_not_differ_from_itself(found: dict[str, float]) -> None:
    assert metric_difference(found, found)[0] == 0


@given(metrics, st.data())
def test_the_metric_that_moved_is_named(found: dict[str, float], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(found)))
    difference, which = metric_difference(found, {**found, name: found[name] + 2})
    assert which == name
    assert difference == pytest.approx(2)


def test_a_metric_that_one_side_lacks_is_an_error() -> None:
    with pytest.raises(ExportError, match="mrr"):
        metric_difference({"accuracy": 1.0, "mrr": 0.5}, {"accuracy": 1.0})
    with pytest.raises(ExportError):
        metric_difference({}, {})
