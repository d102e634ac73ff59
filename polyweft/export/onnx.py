"""An exported model as a `Predictor`, by ONNX Runtime; torch is not needed.

Names of the graphs' inputs and outputs, with their shapes: see `GRAPHS`. Shape suffixes: B rows, S pixels a
side, T tokens, D embedding size, F feature size, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from polyweft.data.decode import ImageSpec
from polyweft.errors import ExportError
from polyweft.export.bundle import RESTORE, Variant, graph_file, read_spec, verify
from polyweft.models.predictor import FloatArray, IntArray

if TYPE_CHECKING:
    import onnxruntime


@dataclass(frozen=True)
class Names:
    """Names of a graph's inputs and outputs."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


GRAPHS = {
    "image": Names(("pixel_values",), ("image_embedding", "image_features")),
    "text": Names(("input_ids",), ("text_embedding", "text_features")),
    "classifier": Names(("image_features", "text_features", "present"), ("probabilities",)),
}
"""`pixel_values` float32 (B, 3, S, S) and `input_ids` int64 (B, T) go to embeddings (B, D) of unit length and
features (B, F); features with `present` (B, 2) go to `probabilities` (B, C). All but the ids are float32."""


class OnnxPredictor:
    """An exported model behind the `Predictor` protocol (see there for shapes). Create it with `load`.

    Attributes
    ----------
    spec
        `model.json`'s content.
    export_hash
        The model's version, as `model.json` states it.
    """

    def __init__(self, spec: dict[str, Any], sessions: dict[str, onnxruntime.InferenceSession]) -> None:
        self.spec, self._sessions = spec, sessions
        self.export_hash: str = spec["export_hash"]
        self.image_spec = ImageSpec.from_dict(spec["image"])
        self.classes: list[str] = spec["classes"]
        self.sees: str = spec["sees"]
        self.embedding_size: int = spec["embedding_size"]
        self.feature_size: int = spec["feature_size"]

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
        if graph_file("image", variant) not in spec["files"]:
            raise ExportError(
                f"the export in {folder} has no {variant} variant. Set `export.{variant}` to true and run "
                "`dvc repro`, or ask for fp32."
            )
        names = ["image", "text", *(["classifier"] if spec["classes"] else [])]
        return cls(
            spec,
            {name: _session(folder / graph_file(name, variant), threads, device) for name in names},
        )

    def images(self, pixels_B3HW: FloatArray) -> tuple[FloatArray, FloatArray]:
        """See `Predictor.images`."""
        embedding, features = self.run("image", pixels_B3HW)
        return embedding, features

    def texts(self, input_ids_BT: IntArray) -> tuple[FloatArray, FloatArray]:
        """See `Predictor.texts`."""
        embedding, features = self.run("text", input_ids_BT)
        return embedding, features

    def classify(
        self, image_features_BF: FloatArray, text_features_BF: FloatArray, present_B2: FloatArray
    ) -> FloatArray:
        """See `Predictor.classify`."""
        if not self.classes:
            raise ExportError("this model has no classes; train it on data with labels to classify.")
        return self.run("classifier", image_features_BF, text_features_BF, present_B2)[0]

    def run(self, graph: str, *inputs: FloatArray | IntArray) -> list[FloatArray]:
        """Run one of `GRAPHS` by name; inputs and outputs in its order. No rows in, no rows out."""
        names = GRAPHS[graph]
        if not len(inputs[0]):
            widths = {"embedding": self.embedding_size, "features": self.feature_size}
            sizes = [widths.get(name.partition("_")[2], len(self.classes)) for name in names.outputs]
            return [np.zeros((0, size), np.float32) for size in sizes]
        feed = {name: np.ascontiguousarray(part) for name, part in zip(names.inputs, inputs, strict=True)}
        try:
            answers: list[FloatArray] = self._sessions[graph].run(list(names.outputs), feed)
        except _faults() as error:
            shapes = {name: array.shape for name, array in feed.items()}
            raise ExportError(
                f"{graph}.onnx does not run on {shapes}: {error}. Give the shapes and types that `GRAPHS` "
                "states; a model that was just exported needs another `export.opset`."
            ) from error
        return answers


def _session(path: Path, threads: int, device: str) -> onnxruntime.InferenceSession:
    import onnxruntime

    if not path.exists():
        raise ExportError(f"{path} is missing. {RESTORE}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # What it would print is raised as well.
    options.log_severity_level = 4
    # Three sessions whose idle threads spin take each other's cores.
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
