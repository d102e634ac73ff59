"""A trained model written as ONNX graphs, so that equal models have equal bytes; see `onnx.GRAPHS`."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyweft.errors import ExportError
from polyweft.export.onnx import GRAPHS
from polyweft.io import write_bytes

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

    from polyweft.models.build import TorchPredictor

MAX_FILE_BYTES = 2**31 - 1
"""A protobuf message, and so an ONNX file with its weights inside, ends here."""


def export_graphs(predictor: TorchPredictor, out: Path, *, opset: int) -> int:
    """Write `image.onnx`, `text.onnx` and, where the model has classes, `classifier.onnx` into `out`.

    Everything is float32, batch and token axes are dynamic, weights are inside the file.

    Returns
    -------
    F, the size of the features.

    Raises
    ------
    ExportError
        A part of the model has no ONNX form, or an axis became a constant; the message names the graph.
    """
    import torch

    module, text = predictor.module, predictor.config["text"]
    batch = torch.export.Dim("batch")
    tokens = torch.export.Dim("tokens", min=2, max=text["max_tokens"])
    size = predictor.image_spec.size
    # Two rows at least: an axis of size 1 becomes a constant.
    pixels_B3HW = torch.zeros(2, 3, size, size)
    ids_BT = torch.full((2, min(8, text["max_tokens"])), text["pad_id"], dtype=torch.int64)
    ids_BT[:, 0], ids_BT[:, -1] = text["start_id"], text["end_id"]
    _write(out, "image", module.image, (pixels_B3HW,), ({0: batch},), opset)
    _write(out, "text", module.text, (ids_BT,), ({0: batch, 1: tokens},), opset)
    with torch.no_grad():
        features_BF = module.image(pixels_B3HW)[1]
    if module.head is not None:
        inputs = (features_BF, features_BF.clone(), torch.ones(2, 2))
        _write(out, "classifier", _probabilities(module.head), inputs, ({0: batch},) * 3, opset)
    return int(features_BF.shape[1])


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


def _probabilities(head: nn.Module) -> nn.Module:
    from torch import nn

    class Probabilities(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = head

        # The argument names become the graph's; the exporter needs them to be plain.
        def forward(self, image_features: Tensor, text_features: Tensor, present: Tensor) -> Tensor:
            out: Tensor = self.head(image_features, text_features, present).softmax(dim=1)
            return out

    return Probabilities().eval()


def _write(
    out: Path, name: str, module: nn.Module, inputs: tuple[Tensor, ...], axes: tuple[Any, ...], opset: int
) -> None:
    import torch

    def export() -> Any:
        return torch.onnx.export(
            module.eval(),
            inputs,
            dynamo=True,
            input_names=list(GRAPHS[name].inputs),
            output_names=list(GRAPHS[name].outputs),
            # The modules name their one argument as they like: give the axes by position.
            dynamic_shapes=axes,
            opset_version=opset,
            external_data=False,
            verbose=False,
        )

    try:
        model = _quietly(export).model_proto
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(
            f"the {name} side has no ONNX form in opset {opset}: {error}. "
            "Change the operation that is named, or try another `export.opset`."
        ) from error
    _check_axes(name, model, len(axes[0]))
    save_graph(out / f"{name}.onnx", model)


def _check_axes(name: str, model: onnx.ModelProto, dynamic: int) -> None:
    for value in (*model.graph.input, *model.graph.output):
        shape = value.type.tensor_type.shape.dim
        wanted = dynamic if value.name in GRAPHS[name].inputs else 1
        fixed = [axis for axis in range(wanted) if not shape[axis].dim_param]
        if fixed:
            raise ExportError(
                f"{name}.onnx: axis {fixed[0]} of {value.name} became the constant "
                f"{shape[fixed[0]].dim_value}; the model must not depend on the batch's size or the text's "
                "length."
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
