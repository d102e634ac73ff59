"""The INT8 variant: it is int8, near float32, the same bytes each time, and judged by its worst metric."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from polyweft.errors import ExportError
from polyweft.export.onnx import OnnxPredictor
from polyweft.export.quantize import QUANTISED, compared, loss_facts, quantize_graph


def test_weights_of_matrix_products_are_int8_and_the_file_is_smaller(exported: Path) -> None:
    small, large = exported / "text.int8.onnx", exported / "text.onnx"
    types = {tensor.data_type for tensor in onnx.load(small).graph.initializer}
    assert onnx.TensorProto.INT8 in types
    assert small.stat().st_size < large.stat().st_size


def test_the_number_of_quantised_products_is_told(exported: Path, tmp_path: Path) -> None:
    weights = {
        tensor.name: len(tensor.dims) for tensor in onnx.load(exported / "text.onnx").graph.initializer
    }
    nodes = [node for node in onnx.load(exported / "text.onnx").graph.node if node.op_type in QUANTISED]
    matrices = [node for node in nodes if weights.get(node.input[1]) == 2]
    # Of a block's attention two products are stacked by head; those stay float32.
    assert 3 <= len(matrices) < len(nodes)
    assert quantize_graph(exported / "text.onnx", tmp_path / "text.int8.onnx") == len(matrices)


def test_the_same_graph_gives_the_same_bytes(exported: Path, tmp_path: Path) -> None:
    quantize_graph(exported / "image.onnx", tmp_path / "image.int8.onnx")
    assert (tmp_path / "image.int8.onnx").read_bytes() == (exported / "image.int8.onnx").read_bytes()


def test_its_answers_are_near_those_of_float32_but_not_equal(exported: Path) -> None:
    ids = np.array([[1, 9, 30, 12, 2], [1, 40, 2, 0, 0]], dtype=np.int64)
    full = OnnxPredictor.load(exported, threads=1).encode("text", ids)[0]
    small = OnnxPredictor.load(exported, threads=1, variant="int8").encode("text", ids)[0]
    assert (full * small).sum(axis=1).min() > 0.99
    assert np.abs(full - small).max() > 0


def test_a_file_that_is_no_graph_is_an_export_error(tmp_path: Path) -> None:
    (tmp_path / "image.onnx").write_bytes(b"\x00garbage")
    with pytest.raises(ExportError, match=r"image\.onnx"):
        quantize_graph(tmp_path / "image.onnx", tmp_path / "image.int8.onnx")
    with pytest.raises(ExportError, match=r"text\.onnx"):
        quantize_graph(tmp_path / "text.onnx", tmp_path / "text.int8.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["image.onnx"]


def test_the_worst_metric_decides() -> None:
    full = {"accuracy": 0.9, "mrr": 0.5, "accuracy_low": 0.8}
    facts = loss_facts(full, {"accuracy": 0.95, "mrr": 0.45, "accuracy_low": 0.1}, max_loss=0.04)
    assert facts["int8_metric_loss"] == pytest.approx(0.05)
    assert facts["int8_accuracy_loss"] == pytest.approx(-0.05)
    assert facts["int8_accepted"] is False
    assert "int8_accuracy_low" not in facts
    assert loss_facts(full, full, max_loss=0)["int8_accepted"] is True


def test_metrics_where_more_is_better_are_compared_and_intervals_are_not() -> None:
    names = ["accuracy", "audio_to_text_recall_at_1", "mrr", "label_micro_f1", "r2", "cider"]
    others = ["accuracy_low", "mrr_without_leaks", "image_to_text_true_recall_at_1", "samples", "mae"]
    assert set(compared(dict.fromkeys([*names, *others], 0.5))) == set(names)


def test_without_a_metric_nothing_is_accepted() -> None:
    with pytest.raises(ExportError, match="no metric"):
        loss_facts({}, {}, max_loss=1)
