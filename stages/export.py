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
    exported = OnnxPredictor.load(out, threads=runtime.threads, check_hash=True)
    sides = acceptance.Sides(
        torch=predictor,
        onnx=exported,
        int8=OnnxPredictor.load(out, threads=runtime.threads, variant="int8") if params.int8 else None,
        samples=list(islice(samples, params.metric_rows)),
    )
    facts |= acceptance.accept_outputs(sides, params, seed=runtime.seed, table=out / "parity.csv")
    facts |= acceptance.accept_metrics(sides, params, seed=runtime.seed)
    # Of all rows, not of the compared ones: those that lack a modality may stand anywhere.
    facts |= acceptance.accept_golden(
        sides, params, samples, out / golden.FOLDER, generation=exported.generation
    )
    facts["tensorrt"] = _tensorrt(params, out)
    return Report(facts, run_facts=acceptance.speeds(sides))


def _write(params: ExportParams, predictor: TorchPredictor, trained: Path, out: Path) -> dict[str, Any]:
    from polyweft.export import bundle
    from polyweft.export.graphs import describe, export_graphs
    from polyweft.export.quantize import quantize_graph

    out.mkdir(parents=True, exist_ok=True)
    for name in bundle.TOKENIZER_FILES:
        if (trained / name).exists():
            shutil.copyfile(trained / name, out / name)
    model = describe(predictor, opset=params.opset)
    export_graphs(predictor, model, out)
    facts: dict[str, Any] = {}
    large_bytes, small_bytes = 0, 0
    for name in predictor.modalities if params.int8 else ():
        large, small = (out / bundle.graph_file(name, variant) for variant in bundle.VARIANTS)
        facts[f"int8_{name}_nodes"] = quantize_graph(large, small)
        facts[f"int8_{name}_size_ratio"] = round(small.stat().st_size / large.stat().st_size, 4)
        large_bytes, small_bytes = large_bytes + large.stat().st_size, small_bytes + small.stat().st_size
    if params.int8:
        facts["int8_size_ratio"] = round(small_bytes / large_bytes, 4)
    for file in bundle.graph_files(model):
        if (out / file).exists():
            facts[f"{file.removesuffix('.onnx').replace('.', '_')}_bytes"] = (out / file).stat().st_size
    facts["family"] = predictor.family
    facts["parameters"] = sum(weights.numel() for weights in predictor.module.parameters())
    facts["opset"] = params.opset
    facts["export_hash"] = bundle.write_spec(out, model)
    return facts


def _tensorrt(params: ExportParams, out: Path) -> dict[str, Any]:
    from polyweft.export.tensorrt import find_device, tensorrt_facts
    from polyweft.workspace import state_folder

    if not params.tensorrt:
        return {"status": "not built", "reason": "export.tensorrt is false"}
    return tensorrt_facts(out, state_folder(), find_device())


if __name__ == "__main__":
    enter(run)
