"""The stage `export`: what it leaves and says, and what makes it fail."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from polyweft.config import parse_section
from polyweft.errors import ConfigError, DataError, ExportError
from polyweft.export.acceptance import (
    ExportParams,
    Sides,
    accept_golden,
    accept_metrics,
    accept_outputs,
    speeds,
)
from polyweft.export.onnx import OnnxPredictor
from polyweft.export.quantize import quantize_graph
from polyweft.models.build import load_trained
from polyweft.models.predictor import FloatArray
from stages.export import run
from tests.unit.export.tiny_export import (
    PARAMS,
    RUNTIME,
    made,
    sample,
    samples,
    write_prepared,
    write_trained,
)


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_it_leaves_the_whole_export_and_says_how_near_it_is() -> None:
    folder, facts = made().exported, made().report.facts
    assert names(folder) == {
        "image.onnx", "text.onnx", "head.onnx", "image.int8.onnx", "text.int8.onnx", "model.json",
        "text.json", "parity.csv", "golden/golden.json", "golden/golden.safetensors", "golden/image-000.png",
        "golden/image-001.jpg", "golden/image-002.png", "golden/image-003.jpg", "golden/image-005.jpg",
    }  # fmt: skip
    json.dumps(facts, allow_nan=False)
    assert facts["export_hash"] == json.loads((folder / "model.json").read_text())["export_hash"]
    assert 0 <= facts["max_abs_error"] < 1e-5
    assert 0 <= facts["golden_max_abs_error"] < 1e-5
    assert facts["metric_difference"] <= PARAMS.max_metric_difference
    assert facts["image_bytes"] == (folder / "image.onnx").stat().st_size
    assert {"int8_accuracy", "int8_text_to_image_recall_at_1", "int8_metric_loss"} <= set(facts)
    assert facts["tensorrt"]["status"] in ("built", "not built")


def test_speed_is_said_of_this_run_alone() -> None:
    report = made().report
    assert not any("second" in name for name in report.facts)
    assert {f"{side}_image_rows_per_second" for side in ("torch", "onnx", "int8")} <= set(report.run_facts)
    assert min(report.run_facts.values()) > 0


def test_a_cnn_without_classes_and_without_int8(tmp_path: Path) -> None:
    trained = write_trained(tmp_path / "trained", tower="cnn", classes=[])
    prepared = write_prepared(tmp_path / "prepared", [sample(number) for number in range(4)])
    plain = PARAMS.model_copy(update={"int8": False, "tensorrt": False, "batch_sizes": [2], "opset": 20})
    out = tmp_path / "out"
    facts = run(plain, RUNTIME, prepared=prepared, trained=trained, out=out).facts
    assert not any("int8" in name for name in (*facts, *names(out)))
    assert "head.onnx" not in names(out)
    assert facts["tensorrt"] == {"status": "not built", "reason": "export.tensorrt is false"}
    # A CNN has one matrix product, the projection; its convolutions would stay float32.
    assert quantize_graph(out / "image.onnx", tmp_path / "image.int8.onnx") == 1


class Noisy(OnnxPredictor):
    """An export that answers one embedding for every text: ties count against a model."""

    def encode(self, modality: str, inputs: np.ndarray) -> tuple[FloatArray, FloatArray]:
        embedding, features = super().encode(modality, inputs)
        if modality == "text":
            embedding = np.repeat(embedding[:1], len(embedding), axis=0)
        return embedding, features


@pytest.fixture
def noisy() -> Sides:
    folder, trained = made().exported, made().trained
    return Sides(
        torch=load_trained(trained, threads=1),
        onnx=Noisy.load(folder, threads=1),
        int8=None,
        samples=samples(),
    )


def test_wrong_outputs_fail_and_are_named(noisy: Sides, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"text_embedding by .* batch"):
        accept_outputs(noisy, PARAMS, seed=0, table=tmp_path / "parity.csv")


def test_metrics_that_moved_fail_and_are_named(noisy: Sides) -> None:
    with pytest.raises(ExportError, match=r"the exported model's .* on the same 10 rows"):
        accept_metrics(noisy, PARAMS, seed=0)


def test_golden_answers_that_differ_fail(noisy: Sides, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"text_embedding differs from PyTorch.*golden queries"):
        accept_golden(noisy, PARAMS, samples(), tmp_path, generation=None)


def test_a_wrong_int8_variant_is_reported_and_not_accepted(noisy: Sides) -> None:
    good = OnnxPredictor.load(made().exported, threads=1)
    strict = PARAMS.model_copy(update={"int8_max_loss": 0.0})
    facts = accept_metrics(replace(noisy, onnx=good, int8=noisy.onnx), strict, seed=0)
    assert facts["int8_metric_loss"] > 0
    assert facts["int8_accepted"] is False


def test_data_of_one_modality_has_speeds_for_it_alone(noisy: Sides) -> None:
    found = speeds(replace(noisy, samples=[sample(1, lacks=["text"])]))
    assert set(found) == {"torch_image_rows_per_second", "onnx_image_rows_per_second"}


def test_a_split_without_rows_is_named(tmp_path: Path) -> None:
    other = PARAMS.model_copy(update={"metric_split": "validation"})
    with pytest.raises(DataError, match=r"'validation' .* has no rows"):
        run(other, RUNTIME, prepared=made().prepared, trained=made().trained, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_model_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"config\.json is missing.*dvc repro"):
        run(PARAMS, RUNTIME, prepared=made().prepared, trained=tmp_path, out=tmp_path / "out")


@pytest.mark.parametrize(
    ("key", "value"),
    [("batch_sizes", [0]), ("batch_sizes", []), ("text_lengths", [1]), ("opset", 11), ("max_abs_error", 0)],
)
def test_parameters_out_of_range_are_named(key: str, value: object) -> None:
    content = {**PARAMS.model_dump(), key: value}
    with pytest.raises(ConfigError, match=f"export.{key}"):
        parse_section(ExportParams, "export", content, where="params.yaml")
