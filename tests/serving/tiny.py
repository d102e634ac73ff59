"""Tiny exports that follow `data/export`'s contract, made without PyTorch: what serving tests serve."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.numpy import save_file

from polyweft.data.reader import open_readers
from polyweft.export import bundle, golden
from polyweft.export.signature import Graph, graphs, largest_shape
from polyweft.io import write_json
from polyweft.modalities import MEDIA, MODALITIES

CAPTIONS = [
    "a red circle above a blue square",
    "红色的圆在蓝色的方块上面",
    "",
    "green ＴＲＩＡＮＧＬＥ https://x.org/a",
]
VOCABULARY, TOKENS, FEATURES, POSITIONS, CLASSES = 64, 12, 6, 4, 3
EXTENSIONS = {"image": "png", "audio": "wav", "video": "mp4", "graph": "graph"}


def picture(seed: int, kind: str = "PNG") -> bytes:
    """An encoded image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 14, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format=kind)
    return out.getvalue()


def clip(seed: int) -> bytes:
    """A WAV of noise."""
    import soundfile

    out = io.BytesIO()
    soundfile.write(out, np.random.default_rng(seed).uniform(-1, 1, 1600), 8000, format="WAV")
    return out.getvalue()


def film(seed: int) -> bytes:
    """An MP4 of eight frames in random colours."""
    import av

    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for colour in np.random.default_rng(seed).integers(0, 256, (8, 1, 1, 3), dtype=np.uint8):
            frame = av.VideoFrame.from_ndarray(np.tile(colour, (32, 32, 1)), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


def scene(seed: int) -> bytes:
    """A scene graph of two nodes."""
    nodes = [{"name": f"thing{seed + place}", "position": [0.1 * place, 0.5]} for place in range(2)]
    return json.dumps({"nodes": nodes, "edges": [{"source": 0, "target": 1, "relation": "above"}]}).encode()


CONTENTS = {"image": picture, "audio": clip, "video": film, "graph": scene}


def specs(size: int) -> dict[str, dict[str, Any]]:
    """What each modality's reader is made from."""
    norm = {"mean": [0.5] * 3, "std": [0.5] * 3}
    return {
        "image": {"size": size, "resize": "squash", **norm, "background": [255] * 3, "max_pixels": 10_000},
        "text": {},
        "audio": {
            **{"rate": 8000, "seconds": 0.2, "mels": 8, "window": 200, "hop": 80, "scale": "slaney"},
            **{"range_db": 80.0, "mean": None, "std": None, "max_seconds": 10.0},
        },
        "video": {
            **{"frames": 2, "size": size, "resize": "squash", **norm, "max_pixels": 10_000},
            **{"max_frames": 100, "max_seconds": 60.0},
        },
        "graph": {"nodes": 3, "names": 4, "attributes": 4, "relations": 2, "features": 0},
    }


def write_tiny_export(
    folder: Path,
    *,
    seed: int = 0,
    size: int = 8,
    embedding: int = 4,
    modalities: Sequence[str] = ("image", "text"),
    sees: Sequence[str] | None = None,
    classes: int = CLASSES,
    generates: bool = False,
) -> Path:
    """Write an export whose weights, and so its hash, follow from `seed`.

    Features are (B, F), and (B, L, F) where it generates; the head adds up what it sees.
    """
    folder.mkdir(parents=True)
    _write_text(folder, generates)
    readers = open_readers({name: specs(size)[name] for name in modalities}, folder)
    features = [POSITIONS, FEATURES] if generates else [FEATURES]
    model = {
        "family": "tiny",
        "modalities": list(modalities),
        "inputs": {
            name: {
                "tensor": reader.tensor,
                "dtype": reader.dtype,
                "shape": list(reader.shape),
                "largest": largest_shape(reader),
                "module": MODALITIES[name].reader.rpartition(".")[2] + ".py",
                "spec": specs(size)[name],
            }
            for name, reader in readers.items()
        },
        "embedding_size": embedding,
        "features": dict.fromkeys(modalities, features),
        "sees": list(modalities if sees is None else sees) if classes else [],
        "outputs": {"probabilities": [classes]} if classes else {},
        "generates": generates,
        "generation": {"strategy": "greedy", "max_tokens": 6} if generates else None,
        "classes": [f"class {i}" for i in range(classes)],
        "labels": [],
        "opset": 18,
    }
    rng = np.random.default_rng(seed)
    vocabulary = json.loads((folder / "text.json").read_text())["vocabulary_size"]
    for name, graph in graphs(model).items():
        _save(folder / f"{name}.onnx", _graph(name, graph, model, rng, vocabulary))
    bundle.write_spec(folder, model)
    _write_golden(folder)
    return folder


def spoil_golden(export: Path) -> None:
    """Shift one expected component by more than any tolerance: the export then disagrees with PyTorch."""
    from safetensors.numpy import load_file

    path = export / "golden" / "golden.safetensors"
    arrays = load_file(path)
    arrays["image_embedding"][0, 0] += 0.01
    save_file(arrays, path)


class Reference:
    """An export as a predictor, by ONNX's reference implementation, which shares nothing with the server."""

    def __init__(self, folder: Path) -> None:
        from onnx.reference import ReferenceEvaluator

        spec = bundle.read_spec(folder)
        self.__dict__ |= spec
        self.readers = open_readers({m: spec["inputs"][m]["spec"] for m in spec["modalities"]}, folder)
        self.known = {name: ReferenceEvaluator(onnx.load(folder / f"{name}.onnx")) for name in graphs(spec)}

    def encode(self, modality: str, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with np.errstate(invalid="ignore"):  # zeros have no direction
            *embedding, features = self._run(modality, {self.readers[modality].tensor: inputs})
        return embedding[0] if embedding else np.zeros((len(inputs), 0), np.float32), features

    def answer(self, features: Mapping[str, np.ndarray], present_BM: np.ndarray) -> dict[str, np.ndarray]:
        feed = {f"{name}_features": part for name, part in features.items()}
        return {"probabilities": self._run("head", {**feed, "present": present_BM})[0]}

    def decode(self, input_ids_BT: np.ndarray, image_features_BLF: np.ndarray) -> np.ndarray:
        return self._run("decoder", {"input_ids": input_ids_BT, "image_features": image_features_BLF})[0]

    def _run(self, name: str, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [np.ascontiguousarray(array, np.float32) for array in self.known[name].run(None, feed)]


def _write_golden(folder: Path) -> None:
    """Four rows; in each but the first and last one modality is absent, the second lacking the first one."""
    reference: Any = Reference(folder)
    contents: golden.Contents = {}
    for place, name in enumerate(reference.modalities):
        rows: list[bytes | None] = [
            CAPTIONS[i].encode() or None if name == "text" else CONTENTS[name](i) for i in range(4)
        ]
        if name in MEDIA:
            rows[1 + place % 2] = None
        contents[name] = rows
    if list(contents) == ["image", "text"]:
        contents["image"][3] = picture(3, "JPEG")
    ids = [str(i) for i in range(4)]
    asked = golden.ask(reference, ids, contents, reference.generation)
    (folder / "golden").mkdir()
    rows_out = []
    for i in range(4):
        said = {name: _store(folder / "golden", name, i, values[i]) for name, values in contents.items()}
        rows_out.append(
            {"id": ids[i], "contents": said, "caption": asked.captions[i] if asked.captions else None}
        )
    write_json(folder / "golden" / "golden.json", rows_out)
    save_file(asked.expected, folder / "golden" / "golden.safetensors")


def _store(folder: Path, modality: str, row: int, content: bytes | None) -> str | None:
    if content is None or modality not in MEDIA:
        return None if content is None else content.decode()
    (folder / f"{modality}-{row:03d}.{EXTENSIONS[modality]}").write_bytes(content)
    return f"{modality}-{row:03d}.{EXTENSIONS[modality]}"


def _write_text(folder: Path, readable: bool) -> None:
    if readable:
        from polyweft.data.tokenizer_training import write_tokenizer

        write_tokenizer(
            folder,
            CAPTIONS[:1] * 3,
            kind="bpe",
            vocabulary_size=290,
            max_tokens=TOKENS,
            lowercase=True,
            clip_vocabulary=None,
        )
        return
    text = {
        **{"kind": "hash", "max_tokens": TOKENS, "pad_id": 0, "start_id": 1, "end_id": 2},
        **{"vocabulary_size": VOCABULARY, "lowercase": True},
    }
    (folder / "text.json").write_text(json.dumps(text))


def _graph(
    name: str, graph: Graph, model: dict[str, Any], rng: np.random.Generator, vocabulary: int
) -> onnx.GraphProto:
    if name == "head":
        nodes, weights = _head(model, rng)
    elif name == "decoder":
        nodes, weights = _decoder(rng, vocabulary)
    else:
        nodes, weights = _encoder(name, graph, model, rng, vocabulary)
    kinds = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
    inputs, outputs = (
        [
            helper.make_tensor_value_info(
                key,
                kinds[tensor.dtype],
                ["batch", *(f"{key}_{axis}" if size < 0 else size for axis, size in enumerate(tensor.shape))],
            )
            for key, tensor in part.items()
        ]
        for part in (graph.inputs, graph.outputs)
    )
    return helper.make_graph(nodes, name, inputs, outputs, weights)


Parts = tuple[list[onnx.NodeProto], list[onnx.TensorProto]]


def _encoder(
    name: str, graph: Graph, model: dict[str, Any], rng: np.random.Generator, vocabulary: int
) -> Parts:
    """A layer over the flattened input, or over the sum of the token vectors."""
    (tensor, given), shape = next(iter(graph.inputs.items())), model["features"][name]
    width = int(np.prod(shape))
    weights = [
        _constant("shape", np.array([0, *shape], np.int64)),
        _constant("axis", np.array([1], np.int64)),
    ]
    if given.dtype == "int64":
        table = rng.normal(size=(vocabulary, width)).astype(np.float32)
        table[0] = 0  # padding adds nothing
        weights.append(_constant("table", table))
        nodes = [
            helper.make_node("Gather", ["table", tensor], ["tokens"]),
            helper.make_node("ReduceSum", ["tokens", "axis"], ["wide"], keepdims=0),
        ]
    else:
        weights.append(_weight(rng, "w", int(np.prod(given.shape)), width))
        nodes = [
            helper.make_node("Flatten", [tensor], ["flat"]),
            helper.make_node("MatMul", ["flat", "w"], ["wide"]),
        ]
    nodes += [
        helper.make_node("Tanh", ["wide"], ["bent"]),
        helper.make_node("Reshape", ["bent", "shape"], [f"{name}_features"]),
    ]
    if model["embedding_size"]:
        weights.append(_weight(rng, "p", width, model["embedding_size"]))
        nodes += [
            helper.make_node("MatMul", ["bent", "p"], ["raw"]),
            helper.make_node("LpNormalization", ["raw"], [f"{name}_embedding"], axis=-1, p=2),
        ]
    return nodes, weights


def _head(model: dict[str, Any], rng: np.random.Generator) -> Parts:
    """The sum of a layer over each modality that it sees and that is present."""
    nodes, weights, parts = [], [_constant("axis", np.array([1], np.int64))], []
    classes = model["outputs"]["probabilities"][0]
    for column, name in enumerate(model["modalities"]):
        width, sees = int(np.prod(model["features"][name])), name in model["sees"]
        weights += [
            _constant(f"{name}_w", rng.normal(size=(width, classes)).astype(np.float32) * np.float32(sees)),
            _constant(f"{name}_column", np.array([column], np.int64)),
        ]
        nodes += [
            helper.make_node("Gather", ["present", f"{name}_column"], [f"{name}_there"], axis=1),
            helper.make_node("Flatten", [f"{name}_features"], [f"{name}_flat"]),
            helper.make_node("MatMul", [f"{name}_flat", f"{name}_w"], [f"{name}_seen"]),
            helper.make_node("Mul", [f"{name}_seen", f"{name}_there"], [f"{name}_part"]),
        ]
        parts.append(f"{name}_part")
    nodes.append(helper.make_node("Sum", parts, ["logits"]))
    nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1))
    return nodes, weights


def _decoder(rng: np.random.Generator, vocabulary: int) -> Parts:
    """The next token by the last one and the image."""
    weights = [
        _weight(rng, "table", vocabulary, FEATURES),
        _weight(rng, "w", FEATURES, vocabulary),
        _constant("axis", np.array([1], np.int64)),
    ]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["tokens"]),
        helper.make_node("ReduceSum", ["image_features", "axis"], ["image"], keepdims=1),
        helper.make_node("Add", ["tokens", "image"], ["both"]),
        helper.make_node("MatMul", ["both", "w"], ["logits"]),
    ]
    return nodes, weights


def _weight(rng: np.random.Generator, name: str, *shape: int) -> onnx.TensorProto:
    return _constant(name, rng.normal(size=shape).astype(np.float32))


def _constant(name: str, values: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(values, name)


def _save(path: Path, graph: onnx.GraphProto) -> None:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
