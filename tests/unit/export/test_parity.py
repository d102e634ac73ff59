"""Parity finds a difference, names it, and looks at every output, batch and length."""

from __future__ import annotations

import csv
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyweft.errors import ExportError
from polyweft.export.bundle import read_spec
from polyweft.export.golden import read_golden
from polyweft.export.onnx import OnnxPredictor
from polyweft.export.parity import Measurement, check, measure, metric_difference, write_parity
from polyweft.export.signature import graphs
from polyweft.models.build import load_trained
from polyweft.models.predictor import FloatArray, Predictor
from tests.unit.export.tiny_export import KINDS, made


class Off:
    """A predictor that adds `by` to one output of another."""

    def __init__(self, inner: Predictor, output: str, by: float) -> None:
        self.inner, self.output, self.by = inner, output, by

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def encode(self, modality: str, inputs: Any) -> tuple[FloatArray, FloatArray]:
        embedding, features = self.inner.encode(modality, inputs)
        return self._off(f"{modality}_embedding", embedding), self._off(f"{modality}_features", features)

    def answer(self, features: Any, present_BM: FloatArray) -> dict[str, FloatArray]:
        found = self.inner.answer(features, present_BM)
        return {name: self._off(name, array) for name, array in found.items()}

    def decode(self, input_ids_BT: Any, image_features_BLF: FloatArray) -> FloatArray:
        return self._off("logits", self.inner.decode(input_ids_BT, image_features_BLF))

    def _off(self, name: str, array: FloatArray) -> FloatArray:
        return array + np.float32(self.by) if name == self.output else array


def outputs(kind: str) -> list[str]:
    """All outputs of an export but `image_embedding` where there is no joint space."""
    known = graphs(read_spec(made(kind).exported))
    return [name for graph in known.values() for name in graph.outputs]


def contents(kind: str) -> dict[str, list[bytes]]:
    rows = read_golden(made(kind).exported / "golden").contents
    return {name: [content for content in found if content is not None] for name, found in rows.items()}


@functools.cache
def sides(kind: str) -> tuple[Predictor, Predictor]:
    export = made(kind)
    return load_trained(export.trained, threads=1), OnnxPredictor.load(export.exported, threads=1)


def parity(kind: str, candidate: Predictor | None = None) -> list[Measurement]:
    reference, exported = sides(kind)
    other = candidate or exported
    return measure(reference, other, contents(kind), batch_sizes=[1, 3], lengths=[2, 5, 99], seed=3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_export_is_the_trained_model_in_every_output(kind: str) -> None:
    found = parity(kind)
    assert check(found, 1e-5) < 1e-5
    assert {row.output for row in found} == set(outputs(kind))


def test_every_batch_and_length_is_measured_with_real_and_random_input() -> None:
    found = parity("joint")
    texts = {(row.inputs, row.batch, row.length) for row in found if row.output == "text_embedding"}
    assert texts == {(kind, b, n) for kind in ("real", "random") for b in (1, 3) for n in (2, 5, 12)}
    images = {(row.inputs, row.batch) for row in found if row.output == "image_embedding"}
    assert images == {("real", 1), ("real", 3), ("random", 1), ("random", 3)}


def test_the_same_seed_gives_the_same_figures() -> None:
    assert parity("joint") == parity("joint")


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_that_is_off_is_named(kind: str) -> None:
    for output in outputs(kind):
        found = parity(kind, Off(sides(kind)[1], output, 0.01))
        with pytest.raises(ExportError, match=rf"{output} by .* batch \d, length \d"):
            check(found, 1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ExportError, match="text_embedding"):
        parity("joint", Off(sides("joint")[1], "text_embedding", value))


def test_a_nan_among_the_measurements_is_over_any_limit() -> None:
    with pytest.raises(ExportError):
        check([Measurement("text_embedding", "real", 1, 2, float("nan"))], 1.0)


def test_without_real_input_random_input_remains() -> None:
    found = measure(*sides("fused"), {}, batch_sizes=[2], lengths=[4], seed=0)
    assert {row.inputs for row in found} == {"random"}
    assert {row.output for row in found} == set(outputs("fused"))


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
