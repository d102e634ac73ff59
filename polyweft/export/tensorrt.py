"""TensorRT engines through Polygraphy, where TensorRT and a CUDA device are present.

An engine runs only on the kind of GPU and with the TensorRT version that built it, and building it twice
gives other bytes. So engines are no output of the pipeline: they live in the workspace's state folder, keyed
by GPU, version and the ONNX file's hash, are built once, and serving falls back on ONNX where there is none.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyweft.errors import ExportError
from polyweft.export.bundle import file_hash, graph_file, read_spec
from polyweft.export.golden import difference
from polyweft.export.onnx import OnnxPredictor
from polyweft.export.signature import USUAL_LENGTH, Graph, graphs
from polyweft.io import write_bytes
from polyweft.models.predictor import FloatArray, IntArray

BATCHES = (1, 16, 64)
"""Smallest, usual and largest batch of the dynamic profiles."""

MAX_ABS_ERROR = 1e-3
"""Largest difference from ONNX Runtime at which an engine is kept; TF32 is off."""

Shape = tuple[int, ...]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Device:
    """The GPU's name as CUDA gives it, and TensorRT's version."""

    gpu: str
    version: str


def find_device() -> Device | str:
    """The device that engines would be built for, or a sentence that says why there is none."""
    if importlib.util.find_spec("tensorrt") is None:
        return "the package tensorrt is not installed"
    import torch

    if not torch.cuda.is_available():
        return "there is no CUDA device"
    try:
        import tensorrt
    except (ImportError, OSError) as error:
        return f"the package tensorrt cannot be imported: {error}"
    return Device(torch.cuda.get_device_name(0), str(tensorrt.__version__))


def engine_name(graph: str, device: Device, onnx_hash: str) -> str:
    """File name of an engine: the graph, the GPU, TensorRT's version and the ONNX file's SHA-256."""
    gpu = re.sub(r"[^A-Za-z0-9]+", "-", device.gpu).strip("-").lower()
    return f"{graph}-{gpu}-trt{device.version}-{onnx_hash[:16]}.engine"


def profile_shapes(graph: Graph) -> dict[str, tuple[Shape, Shape, Shape]]:
    """Smallest, usual and largest shape of each input of a graph."""
    shapes: dict[str, tuple[Shape, Shape, Shape]] = {}
    for name, tensor in graph.inputs.items():
        rows = (tensor.at(2), tensor.at(USUAL_LENGTH), tensor.largest)
        smallest, usual, largest = ((batch, *row) for batch, row in zip(BATCHES, rows, strict=True))
        shapes[name] = (smallest, usual, largest)
    return shapes


def build_engine(source: Path, target: Path, shapes: Mapping[str, tuple[Shape, Shape, Shape]]) -> None:
    """Build `source` (ONNX) into the engine file `target`, float32 with TF32 off, dynamic within `shapes`.

    Raises
    ------
    ExportError
        TensorRT refused the graph; the log carries its reason.
    """
    from polygraphy.backend.trt import (
        CreateConfig,
        Profile,
        engine_bytes_from_network,
        network_from_onnx_path,
    )
    from polygraphy.exception import PolygraphyException

    profile = Profile()
    for name, (smallest, usual, largest) in shapes.items():
        profile.add(name, min=smallest, opt=usual, max=largest)
    try:
        network = network_from_onnx_path(str(source))
        content = engine_bytes_from_network(network, config=CreateConfig(tf32=False, profiles=[profile]))
    except PolygraphyException as error:
        # TensorRT's words name paths and addresses: they go to the log, the message to a tracked report.
        logger.warning("TensorRT on %s: %s", source, error)
        raise ExportError(f"TensorRT cannot build {source.name}; the log says why") from error
    write_bytes(target, bytes(content))


def run_engine(engine: Path, feed: Mapping[str, FloatArray | IntArray]) -> dict[str, FloatArray]:
    """Run an engine file once on the GPU; arrays in and out by the graph's names."""
    from polygraphy.backend.common import BytesFromPath
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner
    from polygraphy.exception import PolygraphyException

    try:
        with TrtRunner(EngineFromBytes(BytesFromPath(str(engine)))) as runner:
            answers = runner.infer(feed_dict=dict(feed))
            return {name: np.array(answer) for name, answer in answers.items()}
    except PolygraphyException as error:
        logger.warning("TensorRT on %s: %s", engine, error)
        raise ExportError(f"{engine.name} cannot be run; the log says why") from error


def tensorrt_facts(folder: Path, state: Path, device: Device | str) -> dict[str, Any]:
    """Build what is missing in `state`/engines for the export in `folder`, try it, and say what there is.

    Parameters
    ----------
    device
        As `find_device` gave it.

    Returns
    -------
    `status`: `built` (then `gpu`, `version`, `engines`), or `not built` with a `reason`. An engine that
    TensorRT cannot build, or that differs from ONNX Runtime by more than `MAX_ABS_ERROR`, is not kept.
    """
    if isinstance(device, str):
        return {"status": "not built", "reason": device}
    spec = read_spec(folder)
    engines: dict[str, str] = {}
    for name, graph in graphs(spec).items():
        source = folder / graph_file(name, "fp32")
        target = state / "engines" / engine_name(name, device, file_hash(source))
        try:
            if not target.exists():
                build_engine(source, target, profile_shapes(graph))
            _try(folder, name, target)
        except ExportError as error:
            target.unlink(missing_ok=True)
            return {"status": "not built", "reason": str(error), "gpu": device.gpu, "version": device.version}
        engines[name] = target.name
    return {"status": "built", "gpu": device.gpu, "version": device.version, "engines": engines}


def _try(folder: Path, name: str, engine: Path) -> None:
    predictor = OnnxPredictor.load(folder, threads=1)
    feed = example_feed(predictor.graphs[name])
    found = run_engine(engine, feed)
    for output, want in predictor.run(name, feed).items():
        error = difference(want, found[output])
        if not error <= MAX_ABS_ERROR:
            raise ExportError(f"the engine's {output} differs from ONNX Runtime by {error:.3g}")


def example_feed(graph: Graph) -> dict[str, FloatArray | IntArray]:
    """Random input of the usual shapes, the same each time; everything is present, ids are small."""
    rng = np.random.default_rng(0)
    feed: dict[str, FloatArray | IntArray] = {}
    for name, (_, usual, _) in profile_shapes(graph).items():
        if graph.inputs[name].dtype == "int64":
            feed[name] = rng.integers(0, 3, usual).astype(np.int64)
        else:
            feed[name] = rng.standard_normal(usual).astype(np.float32)
    if "present" in feed:
        feed["present"] = np.ones_like(feed["present"])
    return feed
