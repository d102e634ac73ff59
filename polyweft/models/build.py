"""From the section `model` to a module, and from a folder of `train` to a predictor."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from polyweft.config import parse_section
from polyweft.data.reader import open_readers
from polyweft.data.shards import open_dataset
from polyweft.errors import ConfigError, DataError
from polyweft.io import atomic_file, read_json, write_json
from polyweft.models.family import FAMILIES, BuildContext, Family, ModelParams
from polyweft.models.predictor import FloatArray, IntArray


def build_model(params: ModelParams, context: BuildContext) -> Family:
    """A module of the family that `params` name, with fresh weights from torch's generator."""
    family: Family = importlib.import_module(FAMILIES[params.family]).build(params, context)
    return family


def context_of_data(params: ModelParams, prepared: Path) -> BuildContext:
    """What a model for the prepared data is built for.

    Raises
    ------
    ConfigError
        The data hold nothing of a modality that `model.encoders` names.
    """
    dataset = open_dataset(prepared)
    lacking = [name for name in params.modalities if not dataset.modalities.get(name)]
    if lacking:
        there = [name for name, count in dataset.modalities.items() if count]
        raise ConfigError(
            f"model.encoders names {lacking[0]!r}, but no row of the data has it; they have {there}. "
            "Leave the encoder out, or name the column in `ingest`."
        )
    text = read_json(prepared / "text.json") if "text" in params.modalities else {}
    readers = open_readers(params.reader_specs(), prepared)
    return BuildContext(dataset.classes, dataset.labels, readers, text)


def save_trained(folder: Path, module: nn.Module, params: ModelParams, context: BuildContext) -> None:
    """Write `model.safetensors` and `config.json` into `folder`; see `load_trained`."""
    weights = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    with atomic_file(folder / "model.safetensors") as handle:
        handle.write(save(weights))
    config = {
        # A family may have been built from folders that are not there where it is loaded.
        "model": getattr(module, "portable", params).model_dump(),
        "classes": context.classes,
        "labels": context.labels,
        "text": context.text,
    }
    write_json(folder / "config.json", config)


class TorchPredictor:
    """A trained module behind the `Predictor` protocol (see there for shapes), in evaluation mode."""

    def __init__(self, module: Family, params: ModelParams, context: BuildContext) -> None:
        self.module = module.eval()
        self.params, self.context = params, context
        self.family, self.modalities = params.family, params.modalities
        self.readers = context.readers
        self.classes, self.labels = context.classes, context.labels
        self.embedding_size = params.embedding_size
        self.imputes = getattr(module.head, "imputer", None) is not None
        self.generates = module.decoder is not None
        self.generation: dict[str, Any] | None = params.model_dump().get("generation")
        self.sees: list[str] = [] if module.head is None else list(module.head.sees)  # type: ignore[arg-type]
        self.outputs: dict[str, list[int]] = {} if module.head is None else module.head.outputs()  # type: ignore[operator]

    def encode(self, modality: str, inputs: npt.NDArray[Any]) -> tuple[FloatArray, FloatArray]:
        """See `Predictor.encode`."""
        with torch.no_grad():
            embedding, features = self.module.towers[modality](_tensor(inputs))
        return embedding.numpy(), features.numpy()

    def answer(
        self, features: Mapping[str, FloatArray], present_BM: FloatArray, *, impute: bool | None = None
    ) -> dict[str, FloatArray]:
        """See `Predictor.answer`."""
        assert self.module.head is not None, "this model has no head"
        with torch.no_grad():
            given = {m: _tensor(part) for m, part in features.items()}
            raw = self.module.head(given, _tensor(present_BM), impute)
            answers = self.module.head.answers(raw)  # type: ignore[operator]
        return {name: tensor.numpy() for name, tensor in answers.items()}

    def decode(self, input_ids_BT: IntArray, image_features_BLF: FloatArray) -> FloatArray:
        """See `Predictor.decode`."""
        assert self.module.decoder is not None, "this model writes no captions"
        with torch.no_grad():
            logits: FloatArray = self.module.decoder(
                _tensor(input_ids_BT), _tensor(image_features_BLF)
            ).numpy()
        return logits


def load_trained(trained: Path, *, threads: int) -> TorchPredictor:
    """Load the folder that the stage `train` leaves.

    Raises
    ------
    DataError
        A file is missing, or the weights are not those of the configuration beside them.
    """
    torch.set_num_threads(threads)
    config = read_json(trained / "config.json")
    params = parse_section(ModelParams, "model", config["model"], where=str(trained / "config.json"))
    readers = open_readers(params.reader_specs(), trained)
    context = BuildContext(config["classes"], config["labels"], readers, config["text"])
    module = build_model(params, context)
    try:
        module.load_state_dict(load_file(trained / "model.safetensors"))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise DataError(
            f"{trained / 'model.safetensors'} does not hold the weights that config.json describes: {error}. "
            "Run `dvc repro train`."
        ) from error
    return TorchPredictor(module, params, context)


def _tensor(values: npt.NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))
