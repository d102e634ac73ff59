"""What an export's graphs take and give, from `model.json` alone: names, types, shapes.

The writer of the graphs, ONNX Runtime, TensorRT and Triton's configurations all read it here:

- `<modality>`: its tensor to `<modality>_embedding` (D, of unit length; only with a joint space) and
  `<modality>_features` (F or L, F);
- `head`, where the model has one: every modality's features and `present` (M, 1 where there) to its outputs;
- `decoder`, where it writes captions: `input_ids` (T) and `image_features` to `logits` (T, V).

Shapes are of one row, without the batch axis; -1 is a free axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polyweft.data.reader import Reader

HEAD, DECODER = "head", "decoder"
DESCRIBED = "image"
"""The modality whose features a decoder describes."""

USUAL_LENGTH = 32
"""A free axis is this long in the shapes that an engine is tuned for."""


@dataclass(frozen=True)
class Tensor:
    """One input or output.

    Attributes
    ----------
    dtype
        `float32` or `int64`.
    shape
        Of a row; -1 is a free axis.
    largest
        The same with every free axis at its greatest length.
    """

    dtype: str
    shape: list[int]
    largest: list[int]

    def at(self, length: int) -> list[int]:
        """The shape with its free axes at `length`, or at their greatest length where that is less."""
        return [
            min(length, most) if size < 0 else size
            for size, most in zip(self.shape, self.largest, strict=True)
        ]


@dataclass(frozen=True)
class Graph:
    """Inputs and outputs of one graph by name, in order."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


def graphs(model: Mapping[str, Any]) -> dict[str, Graph]:
    """The graphs of the export that `model` (the content of `model.json`) describes, by file stem."""
    made: dict[str, Graph] = {}
    for name in model["modalities"]:
        given = model["inputs"][name]
        outputs = {f"{name}_features": features(model, name)}
        if model["embedding_size"]:
            outputs = {f"{name}_embedding": _plain([model["embedding_size"]]), **outputs}
        tensor = Tensor(given["dtype"], given["shape"], given["largest"])
        made[name] = Graph({given["tensor"]: tensor}, outputs)
    if model["outputs"]:
        inputs = {f"{name}_features": features(model, name) for name in model["modalities"]}
        inputs["present"] = _plain([len(model["modalities"])])
        made[HEAD] = Graph(inputs, {name: _plain(shape) for name, shape in model["outputs"].items()})
    if model["generates"]:
        text = model["inputs"]["text"]
        ids = Tensor(text["dtype"], text["shape"], text["largest"])
        logits = Tensor("float32", [-1, -1], [*text["largest"], -1])
        made[DECODER] = Graph(
            {text["tensor"]: ids, f"{DESCRIBED}_features": features(model, DESCRIBED)}, {"logits": logits}
        )
    return made


def largest_shape(reader: Reader) -> list[int]:
    """One row of the model's input with its free axes at their greatest length, where the reader cuts."""
    if -1 not in reader.shape:
        return list(reader.shape)
    return list(reader.read([b"a " * 2**14]).shape[1:])


def features(model: Mapping[str, Any], name: str) -> Tensor:
    """The features of modality `name`; a free axis of them is as long as its input's."""
    shape = model["features"][name]
    free = [
        most
        for size, most in zip(*(model["inputs"][name][k] for k in ("shape", "largest")), strict=True)
        if size < 0
    ]
    return Tensor("float32", shape, [free[0] if size < 0 else size for size in shape])


def _plain(shape: list[int]) -> Tensor:
    return Tensor("float32", shape, shape)
