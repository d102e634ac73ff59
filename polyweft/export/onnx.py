"""An exported model as a `Predictor`, by ONNX Runtime; torch is not needed.

Names of the graphs' inputs and outputs: see `signature`. Shape suffixes: B rows, M modalities, L positions,
T tokens, V vocabulary, D embedding size, F feature size.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from polyweft.data.reader import Reader, open_readers
from polyweft.errors import ExportError
from polyweft.export.bundle import RESTORE, Variant, graph_file, read_spec, verify
from polyweft.export.signature import DECODER, DESCRIBED, HEAD, graphs
from polyweft.models.predictor import FloatArray, IntArray

if TYPE_CHECKING:
    import onnxruntime


class OnnxPredictor:
    """An exported model behind the `Predictor` protocol (see there for shapes). Create it with `load`.

    Attributes
    ----------
    spec
        `model.json`'s content.
    generation
        How captions are decoded, as `GenerationSpec` has it; None for a model that writes none.
    export_hash
        The model's version, as `model.json` states it.
    """

    def __init__(
        self,
        spec: dict[str, Any],
        readers: dict[str, Reader],
        sessions: dict[str, onnxruntime.InferenceSession],
    ) -> None:
        self.spec, self.readers, self._sessions = spec, readers, sessions
        self.graphs = graphs(spec)
        self.export_hash: str = spec["export_hash"]
        self.family: str = spec["family"]
        self.modalities: list[str] = spec["modalities"]
        self.classes: list[str] = spec["classes"]
        self.labels: list[str] = spec["labels"]
        self.sees: list[str] = spec["sees"]
        self.outputs: dict[str, list[int]] = spec["outputs"]
        self.embedding_size: int = spec["embedding_size"]
        self.imputes = False
        self.generates: bool = spec["generates"]
        self.generation: dict[str, Any] | None = spec["generation"]

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        threads: int,
        variant: Variant = "fp32",
        device: Literal["cpu", "cuda"] = "cpu",
        check_hash: bool = False,
    ) -> OnnxPredictor:
        """Open an export.

        Parameters
        ----------
        threads
            CPU threads within an operator.
        device
            `cuda` is taken where ONNX Runtime can use it, and refused with an error where it cannot.
        check_hash
            Hold every byte against `model.json` first.

        Raises
        ------
        ExportError
            There is no export, a file is missing or corrupt (it is named), or a hash differs.
        """
        if check_hash:
            verify(folder)
        spec = read_spec(folder)
        files = {name: graph_file(name, variant) for name in graphs(spec)}
        if any(files[name] not in spec["files"] for name in spec["modalities"] if variant != "fp32"):
            raise ExportError(
                f"the export in {folder} has no {variant} variant. Set `export.{variant}` to true and run "
                "`dvc repro`, or ask for fp32."
            )
        sessions = {name: _session(folder / file, threads, device) for name, file in files.items()}
        return cls(spec, _readers(spec, folder), sessions)

    def encode(self, modality: str, inputs: npt.NDArray[Any]) -> tuple[FloatArray, FloatArray]:
        """See `Predictor.encode`."""
        found = self.run(modality, {self.readers[modality].tensor: inputs})
        nothing = np.zeros((len(inputs), 0), np.float32)
        return found.get(f"{modality}_embedding", nothing), found[f"{modality}_features"]

    def answer(
        self, features: Mapping[str, FloatArray], present_BM: FloatArray, *, impute: bool | None = None
    ) -> dict[str, FloatArray]:
        """See `Predictor.answer`; an absent modality is stood in for as the graph does."""
        if not self.outputs:
            raise ExportError("this model has no head; train it on data with labels to ask for answers.")
        given = {f"{name}_features": features[name] for name in self.modalities}
        return self.run(HEAD, {**given, "present": present_BM})

    def decode(self, input_ids_BT: IntArray, image_features_BLF: FloatArray) -> FloatArray:
        """See `Predictor.decode`."""
        if not self.generates:
            raise ExportError(f"this model ({self.family}) writes no captions; a captioner does.")
        ids = self.readers["text"].tensor
        found = self.run(DECODER, {ids: input_ids_BT, f"{DESCRIBED}_features": image_features_BLF})
        return found["logits"]

    def run(self, graph: str, feed: Mapping[str, npt.NDArray[Any]]) -> dict[str, FloatArray]:
        """Run one of `graphs` by name; arrays in and out by name. No rows in, no rows out."""
        outputs = self.graphs[graph].outputs
        if not len(next(iter(feed.values()))):
            return {name: np.zeros((0, *map(abs, out.shape)), np.float32) for name, out in outputs.items()}
        feed = {name: np.ascontiguousarray(array) for name, array in feed.items()}
        try:
            answers: list[FloatArray] = self._sessions[graph].run(list(outputs), feed)
        except _faults() as error:
            shapes = {name: array.shape for name, array in feed.items()}
            raise ExportError(
                f"{graph}.onnx does not run on {shapes}: {error}. Give the shapes and types that "
                "`model.json` states; a model that was just exported needs another `export.opset`."
            ) from error
        return dict(zip(outputs, answers, strict=True))


def _readers(spec: dict[str, Any], folder: Path) -> dict[str, Reader]:
    try:
        return open_readers({name: spec["inputs"][name]["spec"] for name in spec["modalities"]}, folder)
    except (KeyError, TypeError, ValueError, ImportError) as error:
        raise ExportError(
            f"{folder} cannot be given input: {error!r}. It was exported by another version of Polyweft or a "
            f"file was changed. {RESTORE}"
        ) from error


def _session(path: Path, threads: int, device: str) -> onnxruntime.InferenceSession:
    import onnxruntime

    if not path.exists():
        raise ExportError(f"{path} is missing. {RESTORE}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # What it would print is raised as well.
    options.log_severity_level = 4
    # Several sessions whose idle threads spin take each other's cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    wanted = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
    try:
        session = onnxruntime.InferenceSession(path, options, providers=[wanted])
    except _faults() as error:
        raise ExportError(f"{path} is corrupt or cannot be run: {error}. {RESTORE}") from error
    if wanted not in session.get_providers():
        raise ExportError(
            f"ONNX Runtime cannot use {wanted} here, only {session.get_providers()}. Ask for device `cpu`."
        )
    return session


def _faults() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises; the classes share no base but Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("EPFail", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented")
    return tuple(getattr(state, name) for name in (*names, "RuntimeException"))
