"""A tiny export that follows `data/export`'s contract, made without PyTorch: what serving tests serve."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.numpy import save_file

from polyweft.data.decode import ImageSpec, decode_image
from polyweft.data.text import TextTokenizer
from polyweft.export import bundle

CAPTIONS = [
    "a red circle above a blue square",
    "红色的圆在蓝色的方块上面",
    "",
    "green ＴＲＩＡＮＧＬＥ https://x.org/a",
]
VOCABULARY, TOKENS, FEATURES, CLASSES = 64, 12, 6, 3


def picture(seed: int, kind: str = "PNG") -> bytes:
    """An encoded image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 14, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format=kind)
    return out.getvalue()


def write_tiny_export(
    folder: Path,
    *,
    seed: int = 0,
    size: int = 8,
    embedding: int = 4,
    sees: str = "both",
    classes: int = CLASSES,
) -> Path:
    """Write an export whose weights, and so its hash, follow from `seed`."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    spec = ImageSpec(size, "squash", [0.5] * 3, [0.5] * 3, [255] * 3, 10_000)
    text = {
        **{"kind": "hash", "max_tokens": TOKENS, "pad_id": 0, "start_id": 1, "end_id": 2},
        **{"vocabulary_size": VOCABULARY, "lowercase": True},
    }
    (folder / "text.json").write_text(json.dumps(text))
    _save(folder / "image.onnx", _image_graph(rng, size, embedding))
    _save(folder / "text.onnx", _text_graph(rng, embedding))
    if classes:
        _save(folder / "classifier.onnx", _head_graph(rng, sees, classes))
    bundle.write_spec(
        folder,
        {
            **{"classes": [f"class {i}" for i in range(classes)], "sees": sees, "embedding_size": embedding},
            **{"feature_size": FEATURES, "image": spec.to_dict(), "text": text, "opset": 18},
        },
    )
    _write_golden(folder)
    return folder


def spoil_golden(export: Path) -> None:
    """Shift one expected component by more than any tolerance: the export then disagrees with PyTorch."""
    from safetensors.numpy import load_file

    path = export / "golden" / "golden.safetensors"
    arrays = load_file(path)
    arrays["image_embedding"][0, 0] += 0.01
    save_file(arrays, path)


def _write_golden(folder: Path) -> None:
    """Expected answers by ONNX's reference implementation, from the library's own preprocessing."""
    from onnx.reference import ReferenceEvaluator

    model = bundle.read_spec(folder)
    spec, tokenizer = ImageSpec.from_dict(model["image"]), TextTokenizer.load(folder)
    golden = folder / "golden"
    golden.mkdir()
    rows: list[dict[str, Any]] = []
    for i, caption in enumerate(CAPTIONS):
        kind = "JPEG" if i % 2 else "PNG"
        name = f"img-{i:03d}.{kind.lower()}" if i != 1 else None
        if name:
            (golden / name).write_bytes(picture(i, kind))
        rows.append({"id": str(i), "image": name, "text": caption or None})
    (golden / "golden.json").write_text(json.dumps(rows))
    graphs = {path.stem: ReferenceEvaluator(onnx.load(path)) for path in sorted(folder.glob("*.onnx"))}
    out: dict[str, list[np.ndarray]] = {"image_embedding": [], "text_embedding": [], "probabilities": []}
    for row in rows:
        present = np.array([[row["image"] is not None, row["text"] is not None]], np.float32)
        shape = (1, 3, spec.size, spec.size)
        pixels = (
            decode_image((golden / row["image"]).read_bytes(), spec)[None]
            if row["image"]
            else np.zeros(shape, np.float32)
        )
        with np.errstate(invalid="ignore"):  # zero pixels have no direction
            embedded = graphs["image"].run(None, {"pixel_values": pixels})
        image = [a * present[:, :1] for a in embedded]
        ids = tokenizer.encode([row["text"] or ""])
        text = [a * present[:, 1:] for a in graphs["text"].run(None, {"input_ids": ids})]
        out["image_embedding"].append(image[0])
        out["text_embedding"].append(text[0])
        if "classifier" in graphs:
            feeds = {"image_features": image[1], "text_features": text[1], "present": present}
            out["probabilities"] += graphs["classifier"].run(None, feeds)
    arrays = {k: np.ascontiguousarray(np.concatenate(v), np.float32) for k, v in out.items() if v}
    save_file(arrays, golden / "golden.safetensors")


def _weight(rng: np.random.Generator, name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)


def _unit(source: str, target: str) -> list[onnx.NodeProto]:
    return [helper.make_node("LpNormalization", [source], [target], axis=-1, p=2)]


def _image_graph(rng: np.random.Generator, size: int, embedding: int) -> onnx.GraphProto:
    weights = [_weight(rng, "w", 3 * size * size, FEATURES), _weight(rng, "p", FEATURES, embedding)]
    nodes = [
        helper.make_node("Flatten", ["pixel_values"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["wide"]),
        helper.make_node("Tanh", ["wide"], ["image_features"]),
        helper.make_node("MatMul", ["image_features", "p"], ["raw"]),
        *_unit("raw", "image_embedding"),
    ]
    return helper.make_graph(
        nodes,
        "image",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, size, size])],
        [
            helper.make_tensor_value_info("image_embedding", TensorProto.FLOAT, ["batch", embedding]),
            helper.make_tensor_value_info("image_features", TensorProto.FLOAT, ["batch", FEATURES]),
        ],
        weights,
    )


def _text_graph(rng: np.random.Generator, embedding: int) -> onnx.GraphProto:
    table = rng.normal(size=(VOCABULARY, FEATURES)).astype(np.float32)
    table[0] = 0  # padding adds nothing
    weights = [numpy_helper.from_array(table, "table"), _weight(rng, "p", FEATURES, embedding)]
    weights.append(numpy_helper.from_array(np.array([1], np.int64), "axis"))
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["tokens"]),
        helper.make_node("ReduceSum", ["tokens", "axis"], ["sum"], keepdims=0),
        helper.make_node("Tanh", ["sum"], ["text_features"]),
        helper.make_node("MatMul", ["text_features", "p"], ["raw"]),
        *_unit("raw", "text_embedding"),
    ]
    return helper.make_graph(
        nodes,
        "text",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])],
        [
            helper.make_tensor_value_info("text_embedding", TensorProto.FLOAT, ["batch", embedding]),
            helper.make_tensor_value_info("text_features", TensorProto.FLOAT, ["batch", FEATURES]),
        ],
        weights,
    )


def _head_graph(rng: np.random.Generator, sees: str, classes: int) -> onnx.GraphProto:
    seen = np.array([[sees != "text", sees != "image"]], np.float32)
    weights = [_weight(rng, "w", 2 * FEATURES, classes), numpy_helper.from_array(seen, "seen")]
    weights.append(numpy_helper.from_array(np.array([1, 1], np.int64), "halves"))
    nodes = [
        helper.make_node("Mul", ["present", "seen"], ["mask"]),
        helper.make_node("Split", ["mask", "halves"], ["see_image", "see_text"], axis=1),
        helper.make_node("Mul", ["image_features", "see_image"], ["a"]),
        helper.make_node("Mul", ["text_features", "see_text"], ["b"]),
        helper.make_node("Concat", ["a", "b"], ["joint"], axis=1),
        helper.make_node("MatMul", ["joint", "w"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]
    inputs = [("image_features", FEATURES), ("text_features", FEATURES), ("present", 2)]
    return helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", size]) for n, size in inputs],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", classes])],
        weights,
    )


def _save(path: Path, graph: onnx.GraphProto) -> None:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
