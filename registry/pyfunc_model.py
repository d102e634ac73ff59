"""The exported model as an MLflow pyfunc, by code: MLflow copies this file beside the ONNX export.

Nothing is pickled, and nothing of Polyweft need be installed where the model is loaded: the readers come from
the files that were registered with it, the same that training and Triton run.

Input: a table with a column a modality: `text` (string or null), any other (encoded bytes or null).
Output: a table with `<modality>_embedding` (D floats of unit length; null where the row lacks the modality),
the head's outputs (floats; null where the row has nothing that the head looks at) and `caption` (null without
an image), each where the model has it.
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
    """Encoders, head and decoder of an export, by ONNX Runtime on the CPU."""

    def load_context(self, context: Any) -> None:
        """Open the export's graphs and the source files that came with it."""
        import onnxruntime

        folder = Path(context.artifacts["export"])
        self.model = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        self.readers = {
            name: _module(f"reader_{name}", context).Reader(self.model["inputs"][name]["spec"], folder)
            for name in self.model["modalities"]
        }
        self.sessions = {
            name: onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
            for name in (*self.model["modalities"], "head", "decoder")
            if (folder / f"{name}.onnx").is_file()
        }
        self.generation = _module("generation", context) if self.model["generates"] else None

    # MLflow reads type hints here as a schema; this one it passes over, for the signature is registered.
    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """Answer the rows of `model_input`; see the module for the columns."""
        rows, model = len(model_input), self.model
        answer: dict[str, list[Any]] = {}
        features: dict[str, Any] = {}
        present = np.zeros((rows, len(model["modalities"])), bool)
        for column, name in enumerate(model["modalities"]):
            contents = _column(model_input, name)
            present[:, column] = [content is not None for content in contents]
            found = self._encode(name, [content for content in contents if content is not None])
            spread = {key: _spread(array, present[:, column]) for key, array in found.items()}
            features[f"{name}_features"] = spread[f"{name}_features"]
            if model["embedding_size"]:
                key = f"{name}_embedding"
                answer[key] = _lists(spread[key], present[:, column])
        if "head" in self.sessions:
            given = {**features, "present": present.astype(np.float32)}
            seen = present[:, [model["modalities"].index(name) for name in model["sees"]]].any(axis=1)
            found = dict.fromkeys(model["outputs"], np.zeros((0, 1), np.float32))
            if rows:
                outputs = self.sessions["head"].run(list(found), given)
                found = dict(zip(found, outputs, strict=True))
            answer |= {name: _lists(array, seen) for name, array in found.items()}
        if self.generation is not None:
            there = present[:, model["modalities"].index("image")]
            said = iter(self._captions(features["image_features"][there]))
            answer["caption"] = [next(said) if is_there else None for is_there in there]
        return pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in answer.items()})

    def _encode(self, name: str, contents: list[Any]) -> dict[str, Any]:
        given = self.model["inputs"][name]
        outputs = [output.name for output in self.sessions[name].get_outputs()]
        if not contents:
            sizes = [2 if size < 0 else size for size in self.model["features"][name]]
            shapes = {"embedding": [self.model["embedding_size"]], "features": sizes}
            return {o: np.zeros((0, *shapes[o.rpartition("_")[2]]), np.float32) for o in outputs}
        raw = [content.encode("utf-8") if isinstance(content, str) else content for content in contents]
        found = self.sessions[name].run(outputs, {given["tensor"]: self.readers[name].read(raw)})
        return dict(zip(outputs, found, strict=True))

    def _captions(self, features: Any) -> list[str]:
        generation: Any = self.generation
        tokenizer = self.readers["text"].tokenizer
        special = generation.Special(tokenizer.start_id, tokenizer.end_id, tokenizer.pad_id)
        ids_name = self.model["inputs"]["text"]["tensor"]

        def step(ids: Any, rows: Any) -> Any:
            length = ids.shape[1]
            # The exported decoder takes two positions at least; what follows a position does not count.
            padded = np.pad(ids, ((0, 0), (0, max(0, 2 - length))), constant_values=special.pad)
            feed = {ids_name: padded, "image_features": np.ascontiguousarray(features[rows])}
            return self.sessions["decoder"].run(["logits"], feed)[0][:, length - 1]

        spec = generation.GenerationSpec.from_dict(self.model["generation"])
        return [tokenizer.decode(ids) for ids in generation.generate(step, len(features), spec, special)]


def _module(artifact: str, context: Any) -> Any:
    name = f"polyweft_registered_{artifact}"
    specification = importlib.util.spec_from_file_location(name, Path(context.artifacts[artifact]))
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


def _spread(some: Any, there: Any) -> Any:
    full = np.zeros((len(there), *some.shape[1:]), np.float32)
    full[there] = some
    return full


def _lists(values: Any, present: Any) -> list[list[float] | None]:
    return [row.tolist() if there else None for row, there in zip(values, present, strict=True)]


mlflow.models.set_model(ExportedModel())
