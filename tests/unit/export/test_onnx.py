"""ONNX graphs: dynamic, named, free of paths, and read back as the model they came from."""

from __future__ import annotations

import copy
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
from polyweft.export.bundle import read_spec
from polyweft.export.graphs import describe, export_graphs, save_graph, strip
from polyweft.export.onnx import OnnxPredictor
from polyweft.export.signature import graphs
from polyweft.models.build import TorchPredictor, load_trained
from tests.unit.export.tiny_export import CLASSES, Made, made

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def torch_side(trained: Path) -> TorchPredictor:
    return load_trained(trained, threads=1)


@pytest.fixture(scope="module")
def onnx_side(exported: Path) -> OnnxPredictor:
    return OnnxPredictor.load(exported, threads=1, check_hash=True)


def test_names_types_and_axes_are_those_that_model_json_states(each: Made) -> None:
    known = graphs(read_spec(each.exported))
    assert {f"{name}.onnx" for name in known} <= {path.name for path in each.exported.iterdir()}
    for name, stated in known.items():
        graph = onnx.load(each.exported / f"{name}.onnx").graph
        assert [value.name for value in graph.input] == list(stated.inputs)
        assert [value.name for value in graph.output] == list(stated.outputs)
        for value in (*graph.input, *graph.output):
            tensor = {**stated.inputs, **stated.outputs}[value.name]
            batch, *row = value.type.tensor_type.shape.dim
            assert batch.dim_param == "batch"
            kinds = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.INT64: "int64"}
            assert kinds[value.type.tensor_type.elem_type] == tensor.dtype
            for axis, size in zip(row, tensor.shape, strict=True):
                assert axis.dim_value == size or (size == -1 and (axis.dim_param or value.name == "logits"))


def test_nothing_of_the_machine_stands_in_a_graph(each: Made) -> None:
    for path in sorted(each.exported.glob("*.onnx")):
        content = path.read_bytes()
        assert os.fsencode(ROOT) not in content
        assert b"site-packages" not in content
        assert b"stack_trace" not in content


def test_padding_does_not_change_a_text(onnx_side: OnnxPredictor) -> None:
    short = np.array([[1, 7, 9, 2]], dtype=np.int64)
    long = np.array([[1, 7, 9, 2, 0, 0, 0, 0, 0, 0, 0, 0]], dtype=np.int64)
    assert np.abs(onnx_side.encode("text", short)[0] - onnx_side.encode("text", long)[0]).max() < 1e-6


def test_embeddings_have_unit_length_and_probabilities_sum_to_one(onnx_side: OnnxPredictor) -> None:
    rng = np.random.default_rng(0)
    embedding, features = onnx_side.encode("image", rng.standard_normal((3, 3, 16, 16)).astype(np.float32))
    assert np.allclose(np.linalg.norm(embedding, axis=1), 1, atol=1e-6)
    found = onnx_side.answer({"image": features, "text": features}, np.ones((3, 2), np.float32))
    assert found["probabilities"].shape == (3, len(CLASSES))
    assert np.allclose(found["probabilities"].sum(axis=1), 1, atol=1e-6)


def test_an_absent_modality_is_not_looked_at(onnx_side: OnnxPredictor) -> None:
    rng = np.random.default_rng(1)
    image, text, other = rng.standard_normal((3, 2, 16)).astype(np.float32)
    alone = np.array([[1, 0], [1, 0]], np.float32)
    one, two = (onnx_side.answer({"image": image, "text": part}, alone) for part in (text, other))
    assert np.array_equal(one["probabilities"], two["probabilities"])


def test_a_non_contiguous_batch_is_taken(onnx_side: OnnxPredictor) -> None:
    pixels = np.random.default_rng(2).standard_normal((2, 16, 16, 3)).astype(np.float32)
    turned = pixels.transpose(0, 3, 1, 2)
    assert np.array_equal(onnx_side.encode("image", turned)[0], onnx_side.encode("image", turned.copy())[0])


def test_no_rows_in_no_rows_out(each: Made) -> None:
    side = OnnxPredictor.load(each.exported, threads=1)
    features = {}
    for name in side.modalities:
        embedding, features[name] = side.encode(name, side.readers[name].read([]))
        assert embedding.shape == (0, side.embedding_size)
        assert len(features[name]) == 0
    if side.outputs:
        found = side.answer(features, np.zeros((0, len(side.modalities)), np.float32))
        assert {name: list(array.shape) for name, array in found.items()} == {
            name: [0, *shape] for name, shape in side.outputs.items()
        }


def test_input_of_another_shape_is_refused_with_both_named(onnx_side: OnnxPredictor) -> None:
    with pytest.raises(ExportError, match=r"image\.onnx does not run on .*\(2, 3, 8, 8\)"):
        onnx_side.encode("image", np.zeros((2, 3, 8, 8), np.float32))


def test_what_it_cannot_do_is_said(onnx_side: OnnxPredictor) -> None:
    with pytest.raises(ExportError, match="writes no captions"):
        onnx_side.decode(np.zeros((1, 2), np.int64), np.zeros((1, 4, 16), np.float32))
    headless = OnnxPredictor.load(made("captioner").exported, threads=1)
    with pytest.raises(ExportError, match="no head"):
        headless.answer({}, np.ones((1, 2), np.float32))


def test_it_says_what_the_trained_model_is(each: Made) -> None:
    one, two = load_trained(each.trained, threads=1), OnnxPredictor.load(each.exported, threads=1)
    names = ("family", "modalities", "classes", "labels", "sees", "outputs", "embedding_size", "generates")
    for name in names:
        assert getattr(one, name) == getattr(two, name), name
    for modality in one.modalities:
        assert one.readers[modality].shape == two.readers[modality].shape


@pytest.mark.parametrize("damage", ["garbage", "cut", "empty"])
def test_a_corrupt_graph_is_named(exported: Path, tmp_path: Path, damage: str) -> None:
    folder = shutil.copytree(exported, tmp_path / "copy")
    content = (folder / "text.onnx").read_bytes()
    broken = {"garbage": b"not a graph", "cut": content[: len(content) // 2], "empty": b""}[damage]
    (folder / "text.onnx").write_bytes(broken)
    with pytest.raises(ExportError, match=r"text\.onnx is corrupt"):
        OnnxPredictor.load(folder, threads=1)
    with pytest.raises(ExportError, match=r"text\.onnx is not the file"):
        OnnxPredictor.load(folder, threads=1, check_hash=True)


def test_a_missing_graph_is_named(exported: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exported, tmp_path / "copy")
    (folder / "image.int8.onnx").unlink()
    with pytest.raises(ExportError, match=r"image\.int8\.onnx is missing"):
        OnnxPredictor.load(folder, threads=1, variant="int8")


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

    module = copy.deepcopy(torch_side.module)
    module.towers["image"] = Fixed()
    broken = TorchPredictor(module, torch_side.params, torch_side.context)
    with pytest.raises(ExportError, match="image"):
        export_graphs(broken, describe(torch_side, opset=18), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_cannot_be_made_is_an_export_error(exported: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exported, tmp_path / "copy")
    (folder / "text.json").write_text("{")
    with pytest.raises(ExportError, match=r"text\.json is malformed"):
        OnnxPredictor.load(folder, threads=1)


SCRIPT = """
import json, sys
from pathlib import Path
from stages.export import run
import tests.unit.export.tiny_family
from tests.unit.export.tiny_export import PARAMS, RUNTIME
prepared, trained, out = map(Path, sys.argv[1:])
print(json.dumps(run(PARAMS, RUNTIME, prepared=prepared, trained=trained, out=out).facts))
"""


def test_the_same_model_from_another_folder_gives_the_same_bytes_and_facts(tmp_path: Path) -> None:
    """The source is copied and its lines moved: the exporter would write path and lines into the graphs."""
    one, source, out = made(), tmp_path / "elsewhere", tmp_path / "out"
    for name in ("polyweft", "stages", "tests/unit/export"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    models = source / "polyweft/models/tower.py"
    models.write_text(models.read_text().replace("from torch import", "\n\nfrom torch import"))
    # The copy is no part of what coverage measures.
    kept = {key: value for key, value in os.environ.items() if not key.startswith("COV")}
    environment = {**kept, "PYTHONPATH": str(source), "PYTHONHASHSEED": "5"}
    command = [sys.executable, "-c", SCRIPT, str(one.prepared), str(one.trained), str(out)]
    done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == one.report.facts
    expected = sorted(path.relative_to(one.exported) for path in one.exported.rglob("*"))
    assert sorted(path.relative_to(out) for path in out.rglob("*")) == expected
    for name in expected:
        if (out / name).is_file():
            assert (out / name).read_bytes() == (one.exported / name).read_bytes(), name
