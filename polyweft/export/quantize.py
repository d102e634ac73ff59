"""The dynamic INT8 variant: weights of matrix products as int8 per channel, activations as they come.

Only MatMul and Gemm are quantised. ONNX Runtime's CPU has a dynamic int8 convolution (ConvInteger), but it is
slower than float32, so a CNN keeps its convolutions and gains little; the report says how many nodes changed.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyweft.errors import ExportError
from polyweft.export.graphs import save_graph

if TYPE_CHECKING:
    import onnx

QUANTISED = ("MatMul", "Gemm")
LOSSES = (
    *("accuracy", "balanced_accuracy", "macro_f1", "label_macro_f1", "label_micro_f1", "r2"),
    *("recall_at_1", "recall_at_5", "recall_at_10", "mean_average_precision", "ndcg_at_10", "mrr"),
    *("bleu_4", "rouge_l", "cider"),
)
"""Endings of the metrics whose loss is reported; a higher value is a better one in each."""


def compared(metrics: Mapping[str, float]) -> dict[str, float]:
    """Those of an evaluation's metrics whose name is or ends in one of `LOSSES`, without `true_recall`."""
    return {
        name: float(value)
        for name, value in metrics.items()
        if (name in LOSSES or name.endswith(tuple(f"_{end}" for end in LOSSES))) and "_true_" not in name
    }


def quantize_graph(source: Path, target: Path) -> int:
    """Write the INT8 form of `source` to `target`; the same source gives the same bytes.

    Returns
    -------
    How many matrix products were quantised; those of two activations (attention's) stay float32.

    Raises
    ------
    ExportError
        `source` cannot be read or ONNX Runtime cannot quantise it.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    try:
        onnx.checker.check_model(str(source))
        model = onnx.load(source)
    except (OSError, onnx.checker.ValidationError) as error:
        raise ExportError(f"{source} cannot be read as ONNX: {error}. Run `dvc repro export`.") from error
    # It transposes a Gemm's weights but not their entry here, and then trips over the old shape.
    del model.graph.value_info[:]
    # It advises a pre-processing that changes nothing for matrix products, through the root logger.
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / target.name
            quantize_dynamic(
                model,
                made,
                op_types_to_quantize=list(QUANTISED),
                nodes_to_exclude=_of_stacks(model),
                per_channel=True,
                weight_type=QuantType.QInt8,
            )
            quantised = onnx.load(made)
    except (ValueError, RuntimeError, KeyError) as error:
        raise ExportError(
            f"{source.name} cannot be quantised: {error}. Set `export.int8` to false."
        ) from error
    finally:
        root.setLevel(level)
    save_graph(target, quantised)
    return _count(quantised)


def loss_facts(
    expected: Mapping[str, Any], found: Mapping[str, Any], *, max_loss: float
) -> dict[str, float | bool]:
    """Flat facts on the INT8 variant's metrics against float32's on the same rows.

    Returns
    -------
    `int8_<metric>` and `int8_<metric>_loss` (float32's less int8's) for each metric of `compared` that was
    measured, `int8_metric_loss` (the largest loss) and `int8_accepted` (it is at most `max_loss`).

    Raises
    ------
    ExportError
        None of the metrics was measured: without one, nothing may be accepted.
    """
    names = sorted(set(compared(expected)) & set(compared(found)))
    if not names:
        raise ExportError("no metric of the INT8 variant was measured; the split needs targets or pairs.")
    facts: dict[str, float | bool] = {}
    for name in names:
        facts[f"int8_{name}"] = float(found[name])
        facts[f"int8_{name}_loss"] = float(expected[name]) - float(found[name])
    worst = max(float(facts[f"int8_{name}_loss"]) for name in names)
    return {**facts, "int8_metric_loss": worst, "int8_accepted": worst <= max_loss}


def _of_stacks(model: onnx.ModelProto) -> list[str]:
    """Names of products with a stack of matrices (a weight a head): per channel, none of these runs."""
    stacks = {weight.name for weight in model.graph.initializer if len(weight.dims) != 2}
    return [node.name for node in model.graph.node if node.op_type in QUANTISED and node.input[1] in stacks]


def _count(model: onnx.ModelProto) -> int:
    return sum(node.op_type in ("MatMulInteger", "DynamicQuantizeMatMul") for node in model.graph.node)
