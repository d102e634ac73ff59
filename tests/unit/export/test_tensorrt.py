"""TensorRT: the report says what there is; engines are keyed; the build itself is tried where a GPU is."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from polyweft.export.bundle import file_hash, read_spec
from polyweft.export.onnx import OnnxPredictor
from polyweft.export.signature import graphs
from polyweft.export.tensorrt import (
    Device,
    engine_name,
    example_feed,
    find_device,
    profile_shapes,
    tensorrt_facts,
)
from tests.unit.export.tiny_export import Made

DEVICE = find_device()


@pytest.mark.skipif(not isinstance(DEVICE, str), reason="TensorRT and a GPU are present")
def test_where_it_cannot_be_built_the_report_says_why_each_time_the_same(
    exported: Path, tmp_path: Path
) -> None:
    facts = tensorrt_facts(exported, tmp_path, DEVICE)
    assert facts == {"status": "not built", "reason": DEVICE}
    assert facts == tensorrt_facts(exported, tmp_path, find_device())
    assert list(tmp_path.iterdir()) == []


def test_engines_of_another_gpu_version_or_graph_have_other_names() -> None:
    device = Device("NVIDIA H200 SXM/2", "10.3.0")
    name = engine_name("image", device, "a" * 64)
    assert name == "image-nvidia-h200-sxm-2-trt10.3.0-aaaaaaaaaaaaaaaa.engine"
    others = {
        engine_name("text", device, "a" * 64),
        engine_name("image", Device("NVIDIA A100", "10.3.0"), "a" * 64),
        engine_name("image", Device(device.gpu, "10.4.0"), "a" * 64),
        engine_name("image", device, "b" * 64),
    }
    assert len({name, *others}) == 5


def test_profiles_name_every_input_of_every_graph_with_growing_shapes(each: Made) -> None:
    for graph in graphs(read_spec(each.exported)).values():
        shapes = profile_shapes(graph)
        assert list(shapes) == list(graph.inputs)
        for smallest, usual, largest in shapes.values():
            assert all(0 < a <= b <= c for a, b, c in zip(smallest, usual, largest, strict=True))
            assert smallest[0] == 1


def test_what_an_engine_is_tried_with_is_what_the_graphs_take(each: Made) -> None:
    predictor = OnnxPredictor.load(each.exported, threads=1)
    for name, graph in predictor.graphs.items():
        answers = predictor.run(name, example_feed(graph))
        assert list(answers) == list(graph.outputs)
        assert all(len(answer) == 16 and np.isfinite(answer).all() for answer in answers.values())


@pytest.mark.skipif(not isinstance(DEVICE, str), reason="TensorRT and a GPU are present")
def test_an_engine_that_cannot_be_built_or_run_is_a_line_in_the_report_and_not_kept(
    exported: Path, tmp_path: Path
) -> None:
    """Polygraphy is there and TensorRT is not: it fails at its first call, as a broken installation does."""
    device = Device("NVIDIA H200", "10.3.0")
    facts = tensorrt_facts(exported, tmp_path, device)
    assert facts["status"] == "not built"
    assert facts["reason"] == "TensorRT cannot build image.onnx; the log says why"
    source = exported / "image.onnx"
    left = tmp_path / "engines" / engine_name("image", device, file_hash(source))
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"not an engine")
    assert "cannot be run" in tensorrt_facts(exported, tmp_path, device)["reason"]
    assert not left.exists()


@pytest.mark.gpu
@pytest.mark.skipif(isinstance(DEVICE, str), reason=f"no TensorRT here: {DEVICE}")
def test_engines_are_built_once_kept_and_answer_as_onnx_runtime_does(exported: Path, tmp_path: Path) -> None:
    assert isinstance(DEVICE, Device)
    facts = tensorrt_facts(exported, tmp_path, DEVICE)
    assert facts["status"] == "built", facts
    engines = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "engines").iterdir()}
    assert set(engines) == set(facts["engines"].values())
    assert tensorrt_facts(exported, tmp_path, DEVICE) == facts
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "engines").iterdir()} == engines
    broken = tmp_path / "engines" / facts["engines"]["image"]
    shutil.copyfile(exported / "image.onnx", broken)
    assert tensorrt_facts(exported, tmp_path, DEVICE)["status"] == "not built"
    assert not broken.exists()
