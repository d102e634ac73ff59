"""The exported model as an MLflow pyfunc, by code: MLflow copies this file beside the ONNX export.

Nothing is pickled, and nothing of Polyweft need be installed where the model is loaded: decoding and
tokenizing come from the two files that were registered with it, the same that training and Triton run.

Input: a table with the columns `image` (encoded bytes or null) and `text` (string or null).
Output: a table with `image_embedding`, `text_embedding` (D floats of unit length) and `probabilities`
(C floats); null where the row lacks the modality, or the model a class head.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc import PythonModel  # type: ignore[attr-defined]


class ExportedModel(PythonModel):
    """The dual tower and its class head, by ONNX Runtime on the CPU."""

    def load_context(self, context: Any) -> None:
        """Open the export's graphs and the two source files that came with it."""
        import onnxruntime

        folder = Path(context.artifacts["export"])
        decode = _module("polyweft_registered_decode", Path(context.artifacts["decode"]))
        text = _module("polyweft_registered_text", Path(context.artifacts["text"]))
        spec = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        self.decode_image = decode.decode_image
        self.image_spec = decode.ImageSpec.from_dict(spec["image"])
        self.tokenizer = text.TextTokenizer.load(folder)
        self.embedding_size, self.feature_size = spec["embedding_size"], spec["feature_size"]
        self.sees = spec["sees"]
        self.sessions = {
            name: onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
            for name in ("image", "text", "classifier")
            if (folder / f"{name}.onnx").is_file()
        }

    # MLflow reads type hints here as a schema; this one it passes over, for the signature is registered.
    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """Embed and classify the rows of `model_input`; see the module for the columns."""
        rows = len(model_input)
        images = _column(model_input, "image")
        texts = _column(model_input, "text")
        present = np.array([[i is not None, t is not None] for i, t in zip(images, texts, strict=True)])
        present = present.reshape(rows, 2)
        pixels = [self.decode_image(data, self.image_spec) for data in images if data is not None]
        image = self._tower("image", "pixel_values", np.stack(pixels) if pixels else None, present[:, 0])
        said = [text for text in texts if text is not None]
        ids = self.tokenizer.encode(said) if said else None
        text = self._tower("text", "input_ids", ids, present[:, 1])
        answer = {
            "image_embedding": _lists(image[0], present[:, 0]),
            "text_embedding": _lists(text[0], present[:, 1]),
            "probabilities": [None] * rows,
        }
        if "classifier" in self.sessions and rows:
            inputs = {"image_features": image[1], "text_features": text[1]}
            inputs["present"] = present.astype(np.float32)
            given = {node.name for node in self.sessions["classifier"].get_inputs()}
            inputs = {name: value for name, value in inputs.items() if name in given}
            probabilities = self.sessions["classifier"].run(["probabilities"], inputs)[0]
            answer["probabilities"] = _lists(probabilities, self._seen(present))
        return pd.DataFrame(answer)

    def _tower(self, name: str, argument: str, given: Any, present: Any) -> tuple[Any, Any]:
        embedding = np.zeros((len(present), self.embedding_size), np.float32)
        features = np.zeros((len(present), self.feature_size), np.float32)
        if given is not None:
            outputs = [f"{name}_embedding", f"{name}_features"]
            embedding[present], features[present] = self.sessions[name].run(outputs, {argument: given})
        return embedding, features

    def _seen(self, present: Any) -> Any:
        return present.any(1) if self.sees == "both" else present[:, 0 if self.sees == "image" else 1]


def _module(name: str, path: Path) -> Any:
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # dataclasses look their own module up while they are made
    specification.loader.exec_module(module)
    return module


def _column(table: Any, name: str) -> list[Any]:
    if name not in table:
        return [None] * len(table)
    return [None if value is None or value is pd.NA or value != value else value for value in table[name]]


def _lists(values: Any, present: Any) -> list[list[float] | None]:
    return [row.tolist() if there else None for row, there in zip(values, present, strict=True)]


mlflow.models.set_model(ExportedModel())
