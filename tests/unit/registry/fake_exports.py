"""A tiny export that really classifies colours, and an empty MLflow: for tests of registry and gate."""

from __future__ import annotations

import functools
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from polyweft.data.decode import ImageSpec
from polyweft.data.shards import Sample, write_split
from polyweft.export.bundle import write_spec
from polyweft.io import write_json
from registry.lineage import record_hash
from registry.packaging import Registration

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}
SIZE = 4
VOCABULARY = 512
TEXT = {
    "kind": "hash",
    "max_tokens": 16,
    "pad_id": 0,
    "start_id": 1,
    "end_id": 2,
    "vocabulary_size": VOCABULARY,
    "lowercase": True,
}


def picture(colour: tuple[int, int, int]) -> bytes:
    """PNG of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), colour).save(buffer, "PNG")
    return buffer.getvalue()


def write_prepared(folder: Path, *, rows: int = 60, noise: int = 60, seed: int = 0) -> Path:
    """Prepared data with one split `test`: noisy colours, the colour's name as caption and label."""
    generator = np.random.default_rng(seed)
    classes = sorted(COLOURS)
    samples = []
    for number in range(rows):
        label = classes[number % 3]
        colour = np.clip(np.array(COLOURS[label]) + generator.integers(-noise, noise + 1, 3), 0, 255)
        samples.append(
            Sample(
                id=f"row-{number:03d}",
                captions=[{"text": f"{label} number {number}", "language": "en"}],
                label=label,
                class_index=classes.index(label),
                target=None,
                group=None,
                leak=False,
                media={"image": picture(tuple(int(value) for value in colour))},
                extensions={"image": "png"},
            )
        )
    names = write_split(folder, "test", samples, shard_samples=100)
    write_json(
        folder / "dataset.json",
        {
            "classes": classes,
            "labels": [],
            "splits": {"test": rows},
            "shards": {"test": names},
            "modalities": {"image": rows, "text": rows},
            "languages": ["en"],
        },
    )
    _write_text(folder)
    return folder


def write_export(
    folder: Path, *, shift: int = 0, sharpness: float = 8.0, classes: list[str] | None = None
) -> Path:
    """An export whose class head names the colour `shift` places further: with 0 it is right."""
    folder.mkdir(parents=True, exist_ok=True)
    classes = sorted(COLOURS) if classes is None else classes
    order = np.eye(3, dtype=np.float32)[:, [2, 1, 0]]  # pixels come as red, green, blue
    _save(folder / "image.onnx", *_image(order))
    _save(folder / "text.onnx", *_text())
    _save(folder / "head.onnx", *_head(np.roll(np.eye(3, dtype=np.float32), shift, 1) * sharpness))
    _write_text(folder)
    spec = ImageSpec(
        size=SIZE,
        resize="squash",
        mean=[0.5, 0.5, 0.5],
        std=[0.5, 0.5, 0.5],
        background=[255, 255, 255],
        max_pixels=1000,
    )
    write_spec(
        folder,
        {
            "family": "colours",
            "modalities": ["image", "text"],
            "inputs": {
                "image": {
                    **{"tensor": "pixel_values", "dtype": "float32", "module": "decode.py"},
                    **{"shape": [3, SIZE, SIZE], "largest": [3, SIZE, SIZE], "spec": spec.to_dict()},
                },
                "text": {
                    **{"tensor": "input_ids", "dtype": "int64", "module": "text.py"},
                    **{"shape": [-1], "largest": [TEXT["max_tokens"]], "spec": {}},
                },
            },
            "embedding_size": 3,
            "features": {"image": [3], "text": [3]},
            "sees": ["image"],
            "outputs": {"probabilities": [3]},
            "generates": False,
            "generation": None,
            "classes": classes,
            "labels": [],
            "opset": 18,
        },
    )
    golden = folder / "golden"
    golden.mkdir(exist_ok=True)
    (golden / "img-000.png").write_bytes(picture(COLOURS["red"]))
    contents = {"image": "img-000.png", "text": "red number 1"}
    write_json(golden / "golden.json", [{"id": "a", "contents": contents, "caption": None}])
    return folder


def _write_text(folder: Path) -> None:
    (folder / "text.json").write_text(json.dumps(TEXT), encoding="utf-8")


def _image(weight: np.ndarray) -> tuple[list, list, list, list]:
    nodes = [
        helper.make_node("ReduceMean", ["pixel_values", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weight"], ["image_features"]),
        helper.make_node("LpNormalization", ["image_features"], ["image_embedding"], axis=1, p=2),
    ]
    constants = [
        numpy_helper.from_array(np.array([2, 3], np.int64), "axes"),
        numpy_helper.from_array(weight, "weight"),
    ]
    inputs = [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])]
    return nodes, inputs, _outputs("image"), constants


def _text() -> tuple[list, list, list, list]:
    from polyweft.data.text import TextTokenizer

    table = np.full((VOCABULARY, 3), 0.01, np.float32)
    tokenizer = TextTokenizer(TEXT, None)
    for column, name in enumerate(sorted(COLOURS)):
        table[tokenizer.tokens([name])[0][0]] = np.where(np.arange(3) == column, 5.0, -5.0)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["vectors"]),
        helper.make_node("ReduceMean", ["vectors", "axes"], ["text_features"], keepdims=0),
        helper.make_node("LpNormalization", ["text_features"], ["text_embedding"], axis=1, p=2),
    ]
    constants = [
        numpy_helper.from_array(table, "table"),
        numpy_helper.from_array(np.array([1], np.int64), "axes"),
    ]
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])]
    return nodes, inputs, _outputs("text"), constants


def _head(weight: np.ndarray) -> tuple[list, list, list, list]:
    nodes = [
        helper.make_node("MatMul", ["image_features", "weight"], ["seen"]),
        helper.make_node("MatMul", ["text_features", "none"], ["unseen"]),
        helper.make_node("ReduceSum", ["present", "axes"], ["modalities"], keepdims=1),
        helper.make_node("Mul", ["modalities", "zero"], ["nothing"]),
        helper.make_node("Sum", ["seen", "unseen", "nothing"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    constants = [
        numpy_helper.from_array(weight, "weight"),
        numpy_helper.from_array(np.zeros((3, 3), np.float32), "none"),
        numpy_helper.from_array(np.array([1], np.int64), "axes"),
        numpy_helper.from_array(np.zeros(1, np.float32), "zero"),
    ]
    shapes = {"image_features": 3, "text_features": 3, "present": 2}
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])
        for name, width in shapes.items()
    ]
    outputs = [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 3])]
    return nodes, inputs, outputs, constants


def _outputs(side: str) -> list:
    return [
        helper.make_tensor_value_info(f"{side}_{kind}", TensorProto.FLOAT, ["batch", 3])
        for kind in ("embedding", "features")
    ]


def _save(path: Path, nodes: list, inputs: list, outputs: list, constants: list) -> None:
    graph = helper.make_graph(nodes, path.stem, inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


@functools.cache
def empty_database() -> bytes:
    """A database that MLflow has set up: its migrations take seconds, so they run once a process."""
    from mlflow import MlflowClient

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mlflow.db"
        MlflowClient(f"sqlite:///{file}").search_registered_models()
        return file.read_bytes()


def make_workspace(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make `folder` the workspace, with an empty MLflow store, and go there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mlflow.db").write_bytes(empty_database())
    monkeypatch.setenv("POLYWEFT_WORKSPACE", str(folder))
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "DVC_EXP_NAME", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(folder)
    return folder


def registration(card: str = "# Card\n", **metrics: float) -> Registration:
    """What stands beside a fake version."""
    record = {"export_hash": "", "commit": None, "pipeline": None, "stages": {}, "order": [], "files": {}}
    return Registration(metrics, {"lineage_md5": record_hash(record)}, card, record)
