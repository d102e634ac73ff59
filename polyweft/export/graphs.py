"""A trained model written as ONNX graphs, so that equal models have equal bytes; see `signature`."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyweft.errors import ExportError
from polyweft.export.signature import DECODER, HEAD, Graph, Tensor, graphs, largest_shape
from polyweft.io import write_bytes
from polyweft.modalities import MODALITIES

if TYPE_CHECKING:
    import onnx
    import torch
    from torch import nn

    from polyweft.data.reader import Reader
    from polyweft.models.build import TorchPredictor

MAX_FILE_BYTES = 2**31 - 1
"""A protobuf message, and so an ONNX file with its weights inside, ends here."""

TRACED_LENGTH = 8
"""Free axes are this long in the tensors that the exporter follows through the model."""


def describe(predictor: TorchPredictor, *, opset: int) -> dict[str, Any]:
    """What `model.json` says of a trained model, but for its files and hash; see `bundle.SPEC_KEYS`."""
    readers = predictor.readers
    specs = predictor.params.reader_specs()
    return {
        "family": predictor.family,
        "modalities": predictor.modalities,
        "inputs": {
            name: {
                "tensor": readers[name].tensor,
                "dtype": readers[name].dtype,
                "shape": list(readers[name].shape),
                "largest": largest_shape(readers[name]),
                "module": MODALITIES[name].reader.rpartition(".")[2] + ".py",
                "spec": specs[name],
            }
            for name in predictor.modalities
        },
        "embedding_size": predictor.embedding_size,
        "features": {name: _features_shape(predictor, name) for name in predictor.modalities},
        "sees": predictor.sees,
        "outputs": {name: list(shape) for name, shape in sorted(predictor.outputs.items())},
        "generates": predictor.generates,
        "generation": _generation(predictor),
        "classes": predictor.classes,
        "labels": predictor.labels,
        "opset": opset,
    }


def export_graphs(predictor: TorchPredictor, model: dict[str, Any], out: Path) -> None:
    """Write every graph of `model` (from `describe`) into `out`.

    Everything but token ids is float32, batch and free axes are dynamic, weights are inside the file.

    Raises
    ------
    ExportError
        A part of the model has no ONNX form, or an axis became a constant; the message names the graph.
    """
    modules = _modules(predictor, model)
    for name, graph in graphs(model).items():
        _write(out / f"{name}.onnx", modules[name].eval(), graph, model["opset"])


def strip(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove in place what does not compute: doc strings, source paths, stack traces, metadata.

    The exporter writes the path of the source and stack traces into every node, so that the same model
    exported from another folder has other bytes.
    """
    model.doc_string = ""
    del model.metadata_props[:]
    for function in model.functions:
        _strip_all((function, *function.node, *function.value_info))
    _strip_graph(model.graph)
    return model


def save_graph(path: Path, model: onnx.ModelProto) -> None:
    """Strip, check and write `model` as one file; the same model gives the same bytes.

    Raises
    ------
    ExportError
        It is over protobuf's 2 GiB, or ONNX's own checker refuses it.
    """
    import onnx

    if model.ByteSize() > MAX_FILE_BYTES:
        raise ExportError(
            f"{path.name} would have {model.ByteSize()} bytes; a single ONNX file holds {MAX_FILE_BYTES}. "
            "Use a smaller model."
        )
    content = strip(model).SerializeToString(deterministic=True)
    try:
        onnx.checker.check_model(content, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{path.name} is not valid ONNX: {error}") from error
    write_bytes(path, content)


def _modules(predictor: TorchPredictor, model: dict[str, Any]) -> dict[str, nn.Module]:
    """By graph, a module that takes its inputs as a list and gives its outputs in order."""
    from torch import nn

    family = predictor.module

    class Encoder(nn.Module):
        def __init__(self, tower: nn.Module) -> None:
            super().__init__()
            self.tower = tower

        def forward(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
            embedding, features = self.tower(*inputs)
            return (embedding, features) if model["embedding_size"] else (features,)

    class Answers(nn.Module):
        def __init__(self, head: nn.Module) -> None:
            super().__init__()
            self.head = head

        def forward(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
            features = dict(zip(model["modalities"], inputs[:-1], strict=True))
            answers = self.head.answers(self.head(features, inputs[-1]))  # type: ignore[operator]
            return tuple(answers[name] for name in model["outputs"])

    class Decoder(nn.Module):
        def __init__(self, decoder: nn.Module) -> None:
            super().__init__()
            self.decoder = decoder

        def forward(self, inputs: list[torch.Tensor]) -> torch.Tensor:
            logits: torch.Tensor = self.decoder(*inputs)
            return logits

    made: dict[str, nn.Module] = {name: Encoder(tower) for name, tower in family.towers.items()}
    if family.head is not None:
        made[HEAD] = Answers(family.head)
    if family.decoder is not None:
        made[DECODER] = Decoder(family.decoder)
    return made


def _features_shape(predictor: TorchPredictor, name: str) -> list[int]:
    """A row of the tower's features; an axis that follows the input's length is -1."""
    shapes = []
    for length in (2, TRACED_LENGTH):
        example = _example(_tensor(predictor.readers[name]), length)
        shapes.append(list(predictor.encode(name, example.numpy())[1].shape[1:]))
    return [one if one == other else -1 for one, other in zip(*shapes, strict=True)]


def _tensor(reader: Reader) -> Tensor:
    return Tensor(reader.dtype, list(reader.shape), largest_shape(reader))


def _generation(predictor: TorchPredictor) -> dict[str, Any] | None:
    from polyweft.data.generation import GenerationSpec

    if not predictor.generates:
        return None
    return GenerationSpec.from_dict(predictor.generation or {}).to_dict()


def _example(tensor: Tensor, length: int) -> torch.Tensor:
    """Two rows of zeros: an axis of size 1 would become a constant."""
    import torch

    return torch.zeros(2, *tensor.at(length), dtype=getattr(torch, tensor.dtype))


def _axes(name: str, tensor: Tensor, batch: Any) -> dict[int, Any]:
    from torch.export import Dim

    free = {
        place: Dim(f"{name}_length", min=2, max=most)
        for place, (size, most) in enumerate(zip(tensor.shape, tensor.largest, strict=True), start=1)
        if size < 0
    }
    return {0: batch, **free}


def _write(path: Path, module: nn.Module, graph: Graph, opset: int) -> None:
    import torch

    batch = torch.export.Dim("batch")

    def export() -> Any:
        return torch.onnx.export(
            module,
            ([_example(tensor, TRACED_LENGTH) for tensor in graph.inputs.values()],),
            dynamo=True,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=([_axes(name, tensor, batch) for name, tensor in graph.inputs.items()],),
            opset_version=opset,
            external_data=False,
            verbose=False,
        )

    try:
        model = _quietly(export).model_proto
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(
            f"{path.stem} has no ONNX form in opset {opset}: {error}. "
            "Change the operation that is named, or try another `export.opset`."
        ) from error
    _check_shapes(path.name, model, graph)
    save_graph(path, model)


def _check_shapes(file: str, model: onnx.ModelProto, graph: Graph) -> None:
    for value in (*model.graph.input, *model.graph.output):
        shape = value.type.tensor_type.shape.dim
        stated = {**graph.inputs, **graph.outputs}[value.name]
        for axis, size in enumerate([-1, *stated.shape]):
            # The vocabulary's size is not stated.
            known = axis == 0 or stated.largest[axis - 1] > 0
            if size < 0 and known and not shape[axis].dim_param:
                raise ExportError(
                    f"{file}: axis {axis} of {value.name} became the constant {shape[axis].dim_value}; the "
                    "model must not depend on the batch's size or a text's length."
                )


def _quietly(export: Callable[[], Any]) -> Any:
    # The exporter warns of each torchvision operator it cannot register, and of what it deprecates itself.
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return export()
    finally:
        logger.setLevel(level)


def _strip_graph(graph: onnx.GraphProto) -> None:
    _strip_all((graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info))
    for node in graph.node:
        for attribute in node.attribute:
            attribute.doc_string = ""
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                _strip_graph(inner)


def _strip_all(parts: tuple[Any, ...]) -> None:
    for part in parts:
        part.doc_string = ""
        del part.metadata_props[:]
