"""One model of a comparison: train, evaluate and export it, then measure what it costs.

`python -m flows.candidate PARAMS PREPARED OUT`, in a process of its own; OUT gets `candidate.json` and the
stages' outputs. The stages' own `run` does the work, outside DVC: a comparison leaves the workspace's outputs
and lock as they are.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polyweft.config import RuntimeParams, load_section
from polyweft.data import text
from polyweft.errors import PolyweftError
from polyweft.io import write_json
from polyweft.workspace import VARIABLE, quiet_environment, workspace

if TYPE_CHECKING:
    from polyweft.models.build import TorchPredictor
    from polyweft.models.predictor import Predictor

LATENCY_RUNS = 30


def measure(params: Path, prepared: Path, out: Path) -> dict[str, Any]:
    """Run the stages `train`, `evaluate` and `export` of `params` into `out`; gives the facts of each.

    Raises
    ------
    PolyweftError
        A stage failed; the message is its own.
    """
    from polyweft.evaluation.evaluator import EvaluateParams
    from polyweft.export.acceptance import ExportParams
    from polyweft.models.build import load_trained
    from polyweft.models.family import ModelParams
    from polyweft.training.params import TrainParams
    from stages import evaluate, export, train

    runtime = load_section(RuntimeParams, "runtime", params)
    model = load_section(ModelParams, "model", params)
    trained = train.run(
        load_section(TrainParams, "train", params), model, runtime, prepared=prepared, out=out / "train"
    )
    evaluated = evaluate.run(
        load_section(EvaluateParams, "evaluate", params),
        runtime,
        prepared=prepared,
        trained=out / "train",
        out=out / "evaluate",
    )
    exported = export.run(
        load_section(ExportParams, "export", params),
        runtime,
        prepared=prepared,
        trained=out / "train",
        out=out / "export",
    )
    predictor = load_trained(out / "train", threads=runtime.threads)
    epoch_seconds = trained.facts["train_samples"] / max(trained.run_facts["samples_per_second"], 1e-9)
    graphs = [path for path in sorted((out / "export").glob("*.onnx")) if ".int8" not in path.name]
    return {
        "family": model.family,
        "modalities": model.modalities,
        "metrics": evaluated.facts,
        "parameters": trained.facts["parameters"],
        "flops": forward_flops(predictor),
        "onnx_bytes": sum(path.stat().st_size for path in graphs),
        "epoch_seconds": round(epoch_seconds, 2),
        "epochs": trained.facts["epochs"],
        "latency_ms": latency_ms(out / "export", threads=1),
        "max_abs_error": exported.facts.get("max_abs_error"),
    }


def forward_flops(predictor: TorchPredictor) -> int:
    """Floating-point operations of one row through every tower and the head, by torch's FlopCounterMode.

    A multiplication and an addition are two. It counts matrix products and convolutions, and knows no fused
    kernel of a CPU: attention and an LSTM would count as nothing, so both are computed in products here.
    """
    from torch.backends import mkldnn
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    inputs = one_row(predictor)
    fused = mkldnn.enabled
    mkldnn.enabled = False  # type: ignore[assignment]  # torch annotates the property as its descriptor
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            _pass(predictor, inputs)
    finally:
        mkldnn.enabled = fused
    return int(counter.get_total_flops())


def latency_ms(export: Path, *, threads: int) -> float:
    """The median time of one row through the ONNX graphs of every tower and the head, in milliseconds."""
    from polyweft.export.onnx import OnnxPredictor

    predictor = OnnxPredictor.load(export, threads=threads)
    inputs = one_row(predictor)
    times = []
    for _ in range(LATENCY_RUNS):
        begin = time.perf_counter()
        _pass(predictor, inputs)
        times.append(time.perf_counter() - begin)
    return round(statistics.median(times) * 1000, 3)


def one_row(predictor: Predictor) -> dict[str, Any]:
    """A row of each modality's input: a text as long as its tokenizer allows, else ones, free axes of 2."""
    rows: dict[str, Any] = {}
    for name, reader in predictor.readers.items():
        if isinstance(reader, text.Reader):  # of ones a tower might see no end, and so one token
            rows[name] = reader.read([b"a " * reader.tokenizer.max_tokens])
        else:
            rows[name] = np.ones([1, *(2 if axis < 0 else axis for axis in reader.shape)], reader.dtype)
    return rows


def _pass(predictor: Predictor, inputs: dict[str, Any]) -> None:
    """What is counted and timed. A decoder is in neither: its work is that of the words that it writes."""
    features = {name: predictor.encode(name, x)[1] for name, x in inputs.items()}
    if predictor.outputs:
        predictor.answer(features, np.ones((1, len(predictor.modalities)), np.float32))


def main(arguments: list[str]) -> int:
    """Command line: 0, or 1 with one message."""
    params, prepared, out = (Path(argument).absolute() for argument in arguments)
    quiet_environment()
    os.environ.setdefault(VARIABLE, str(workspace()))
    try:
        out.mkdir(parents=True, exist_ok=True)
        os.chdir(out)  # a stage's pages go below the folder that it runs in
        write_json(out / "candidate.json", measure(params, prepared, out))
    except PolyweftError as error:
        print(f"candidate: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
