"""Export the trained model to ONNX, prove that it answers as PyTorch does, and add the INT8 variant."""

from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyweft.config import RuntimeParams
from polyweft.errors import DataError
from polyweft.export.acceptance import ExportParams
from polyweft.report import Report
from stages.entry import enter

if TYPE_CHECKING:
    from polyweft.models.build import TorchPredictor


def run(params: ExportParams, runtime: RuntimeParams, *, prepared: Path, trained: Path, out: Path) -> Report:
    """Export the trained model, check it against PyTorch, quantise it, and write golden queries."""
    from polyweft.data.shards import read_split
    from polyweft.data.text import TextTokenizer
    from polyweft.export import acceptance, golden
    from polyweft.export.onnx import OnnxPredictor
    from polyweft.models.build import load_trained

    samples = list(read_split(prepared, params.metric_split))
    if not samples:
        raise DataError(
            f"split {params.metric_split!r} of {prepared} has no rows to compare the export on. Set "
            "export.metric_split to one that has, or give `prepare` a share for it."
        )
    predictor = load_trained(trained, threads=runtime.threads)
    facts = _write(params, predictor, trained, out)
    sides = acceptance.Sides(
        torch=predictor,
        onnx=OnnxPredictor.load(out, threads=runtime.threads, check_hash=True),
        int8=OnnxPredictor.load(out, threads=runtime.threads, variant="int8") if params.int8 else None,
        tokenizer=TextTokenizer.load(out),
        samples=list(islice(samples, params.metric_rows)),
    )
    facts |= acceptance.accept_outputs(sides, params, seed=runtime.seed, table=out / "parity.csv")
    facts |= acceptance.accept_metrics(sides, params, seed=runtime.seed)
    # Of all rows, not of the compared ones: those that lack a modality may stand anywhere.
    facts |= acceptance.accept_golden(sides, params, samples, out / golden.FOLDER)
    facts["tensorrt"] = _tensorrt(params, out)
    return Report(facts, run_facts=acceptance.speeds(sides))


def _write(params: ExportParams, predictor: TorchPredictor, trained: Path, out: Path) -> dict[str, Any]:
    from polyweft.export import bundle
    from polyweft.export.graphs import export_graphs
    from polyweft.export.quantize import quantize_graph

    out.mkdir(parents=True, exist_ok=True)
    for name in bundle.TOKENIZER_FILES:
        if (trained / name).exists():
            shutil.copyfile(trained / name, out / name)
    feature_size = export_graphs(predictor, out, opset=params.opset)
    facts: dict[str, Any] = {}
    for name in ("image", "text") if params.int8 else ():
        small = out / bundle.graph_file(name, "int8")
        facts[f"int8_{name}_nodes"] = quantize_graph(out / f"{name}.onnx", small)
        ratio = small.stat().st_size / (out / f"{name}.onnx").stat().st_size
        facts[f"int8_{name}_size_ratio"] = round(ratio, 4)
    sizes = {name: (out / name).stat().st_size for name in bundle.GRAPH_FILES if (out / name).exists()}
    if params.int8:
        small_bytes = sizes["image.int8.onnx"] + sizes["text.int8.onnx"]
        facts["int8_size_ratio"] = round(small_bytes / (sizes["image.onnx"] + sizes["text.onnx"]), 4)
    facts |= {f"{name.removesuffix('.onnx').replace('.', '_')}_bytes": size for name, size in sizes.items()}
    facts["parameters"] = sum(weights.numel() for weights in predictor.module.parameters())
    facts["opset"] = params.opset
    facts["export_hash"] = bundle.write_spec(
        out,
        {
            "classes": predictor.classes,
            "sees": predictor.sees,
            "embedding_size": predictor.embedding_size,
            "feature_size": feature_size,
            "image": predictor.image_spec.to_dict(),
            "text": predictor.config["text"],
            "opset": params.opset,
        },
    )
    return facts


def _tensorrt(params: ExportParams, out: Path) -> dict[str, Any]:
    from polyweft.export.tensorrt import find_device, tensorrt_facts
    from polyweft.workspace import state_folder

    if not params.tensorrt:
        return {"status": "not built", "reason": "export.tensorrt is false"}
    return tensorrt_facts(out, state_folder(), find_device())


if __name__ == "__main__":
    enter(run)
