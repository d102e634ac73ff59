"""ONNX graphs: dynamic, named, free of paths, and read back as the model they came from."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from polyweft.errors import ExportError
from polyweft.export.graphs import export_graphs, save_graph, strip
from polyweft.export.onnx import GRAPHS, OnnxPredictor
from polyweft.models.build import TorchPredictor, load_trained
from tests.unit.export.tiny_export import CLASSES, Made

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def torch_side(trained: Path) -> TorchPredictor:
    return load_trained(trained, threads=1)


@pytest.fixture(scope="module")
def onnx_side(exported: Path) -> OnnxPredictor:
    return OnnxPredictor.load(exported, threads=1, check_hash=True)


@pytest.mark.parametrize("name", list(GRAPHS))
def test_names_and_dynamic_axes_are_those_that_serving_expects(exported: Path, name: str) -> None:
    graph = onnx.load(exported / f"{name}.onnx").graph
    assert tuple(value.name for value in graph.input) == GRAPHS[name].inputs
    assert tuple(value.name for value in graph.output) == GRAPHS[name].outputs
    for value in (*graph.input, *graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    if name == "text":
        assert graph.input[0].type.tensor_type.shape.dim[1].dim_param == "tokens"


def test_nothing_of_the_machine_stands_in_a_graph(exported: Path) -> None:
    for path in sorted(exported.glob("*.onnx")):
        content = path.read_bytes()
        assert os.fsencode(ROOT) not in content
        assert b"site-packages" not in content
        assert b"stack_trace" not in content


def test_padding_does_not_change_a_text(onnx_side: OnnxPredictor) -> None:
    short = np.array([[1, 7, 9, 2]], dtype=np.int64)
    long = np.array([[1, 7, 9, 2, 0, 0, 0, 0, 0, 0, 0, 0]], dtype=np.int64)
    assert np.abs(onnx_side.texts(short)[0] - onnx_side.texts(long)[0]).max() < 1e-6


def test_embeddings_have_unit_length_and_probabilities_sum_to_one(onnx_side: OnnxPredictor) -> None:
    rng = np.random.default_rng(0)
    embedding, features = onnx_side.images(rng.standard_normal((3, 3, 16, 16)).astype(np.float32))
    assert np.allclose(np.linalg.norm(embedding, axis=1), 1, atol=1e-6)
    probabilities = onnx_side.classify(features, features, np.ones((3, 2), np.float32))
    assert probabilities.shape == (3, len(CLASSES))
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-6)


def test_an_absent_modality_is_not_looked_at(onnx_side: OnnxPredictor) -> None:
    rng = np.random.default_rng(1)
    image, text, other = rng.standard_normal((3, 2, 16)).astype(np.float32)
    alone = np.array([[1, 0], [1, 0]], np.float32)
    assert np.array_equal(onnx_side.classify(image, text, alone), onnx_side.classify(image, other, alone))


def test_a_non_contiguous_batch_is_taken(onnx_side: OnnxPredictor) -> None:
    pixels = np.random.default_rng(2).standard_normal((2, 16, 16, 3)).astype(np.float32)
    turned = pixels.transpose(0, 3, 1, 2)
    assert np.array_equal(onnx_side.images(turned)[0], onnx_side.images(turned.copy())[0])


def test_no_rows_in_no_rows_out(onnx_side: OnnxPredictor) -> None:
    embedding, features = onnx_side.texts(np.zeros((0, 2), np.int64))
    assert embedding.shape == (0, 8)
    assert features.shape == (0, 16)
    assert onnx_side.classify(features, features, np.zeros((0, 2), np.float32)).shape == (0, 3)


def test_input_of_another_shape_is_refused_with_both_named(onnx_side: OnnxPredictor) -> None:
    with pytest.raises(ExportError, match=r"image\.onnx does not run on .*\(2, 3, 8, 8\)"):
        onnx_side.images(np.zeros((2, 3, 8, 8), np.float32))


def test_it_says_what_the_trained_model_is(onnx_side: OnnxPredictor, torch_side: TorchPredictor) -> None:
    assert onnx_side.image_spec == torch_side.image_spec
    assert (onnx_side.classes, onnx_side.sees) == (torch_side.classes, torch_side.sees)
    assert onnx_side.embedding_size == torch_side.embedding_size


@pytest.mark.parametrize("damage", ["garbage", "cut", "empty"])
def test_a_corrupt_graph_is_named(exported: Path, tmp_path: Path, damage: str) -> None:
    copy = shutil.copytree(exported, tmp_path / "copy")
    content = (copy / "text.onnx").read_bytes()
    broken = {"garbage": b"not a graph", "cut": content[: len(content) // 2], "empty": b""}[damage]
    (copy / "text.onnx").write_bytes(broken)
    with pytest.raises(ExportError, match=r"text\.onnx is corrupt"):
        OnnxPredictor.load(copy, threads=1)
    with pytest.raises(ExportError, match=r"text\.onnx is not the file"):
        OnnxPredictor.load(copy, threads=1, check_hash=True)


def test_a_missing_graph_is_named(exported: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(exported, tmp_path / "copy")
    (copy / "image.int8.onnx").unlink()
    with pytest.raises(ExportError, match=r"image\.int8\.onnx is missing"):
        OnnxPredictor.load(copy, threads=1, variant="int8")


def test_a_graph_that_the_checker_refuses_is_not_written(tmp_path: Path) -> None:
    node = onnx.helper.make_node("NoSuchOperator", ["x"], ["y"])
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch"])
    other = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch"])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], [other]))
    with pytest.raises(ExportError, match=r"bad\.onnx is not valid ONNX"):
        save_graph(tmp_path / "bad.onnx", model)
    assert list(tmp_path.iterdir()) == []


def test_strip_reaches_the_graphs_inside_nodes() -> None:
    inner = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["a"], ["b"], doc_string="p")], "i", [], []
    )
    branch = onnx.helper.make_node("If", ["c"], ["d"], then_branch=inner, else_branch=inner)
    model = onnx.helper.make_model(onnx.helper.make_graph([branch], "g", [], [], doc_string="/a/path"))
    onnx.helper.set_model_props(model, {"source": "/a/path"})
    assert b"/a/path" not in strip(model).SerializeToString()
    assert all(attribute.g.node[0].doc_string == "" for attribute in model.graph.node[0].attribute)


def test_a_model_that_depends_on_the_batch_is_refused(torch_side: TorchPredictor, tmp_path: Path) -> None:
    import torch
    from torch import nn

    class Fixed(nn.Module):
        def forward(self, pixels_B3HW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            flat = pixels_B3HW.mean(dim=(2, 3)).reshape(2, 3)
            return flat, flat

    module = load_broken(torch_side, Fixed())
    with pytest.raises(ExportError, match="image"):
        export_graphs(module, tmp_path, opset=18)
    assert list(tmp_path.iterdir()) == []


def load_broken(good: TorchPredictor, image: object) -> TorchPredictor:
    import copy

    module = copy.deepcopy(good.module)
    module.image = image  # type: ignore[assignment]
    return TorchPredictor(module, good.config)


SCRIPT = """
import json, sys
from pathlib import Path
from stages.export import run
from tests.unit.export.tiny_export import PARAMS, RUNTIME
prepared, trained, out = map(Path, sys.argv[1:])
print(json.dumps(run(PARAMS, RUNTIME, prepared=prepared, trained=trained, out=out).facts))
"""


def test_the_same_model_from_another_folder_gives_the_same_bytes_and_facts(
    made: Made, tmp_path: Path
) -> None:
    """The source is copied and its lines moved: the exporter would write path and lines into the graphs."""
    source, out = tmp_path / "elsewhere", tmp_path / "out"
    for name in ("polyweft", "stages", "tests/unit/export"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    models = source / "polyweft/models/dual_tower.py"
    models.write_text(models.read_text().replace("import math", "\n\nimport math"))
    # The copy is no part of what coverage measures.
    kept = {key: value for key, value in os.environ.items() if not key.startswith("COV")}
    environment = {**kept, "PYTHONPATH": str(source), "PYTHONHASHSEED": "5"}
    command = [sys.executable, "-c", SCRIPT, str(made.prepared), str(made.trained), str(out)]
    done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == made.report.facts
    expected = sorted(path.relative_to(made.exported) for path in made.exported.rglob("*"))
    assert sorted(path.relative_to(out) for path in out.rglob("*")) == expected
    for name in expected:
        if (out / name).is_file():
            assert (out / name).read_bytes() == (made.exported / name).read_bytes(), name
