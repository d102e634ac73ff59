"""From the section `model` to a module, and from a folder of `train` to a predictor.

A family or a tower is added here by one line; its code stands in a file of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from polyweft.config import Section, parse_section
from polyweft.data.decode import STATISTICS, ImageSpec
from polyweft.errors import DataError
from polyweft.io import atomic_file, read_json, write_json
from polyweft.models.dual_tower import ClassHead, DualTower, HeadParams, Tower
from polyweft.models.image_cnn import CnnParams, ImageCnn
from polyweft.models.image_vit import ImageVit, VitParams
from polyweft.models.predictor import FloatArray, IntArray
from polyweft.models.text_transformer import TextParams, TextTransformer

if TYPE_CHECKING:
    from torch import nn


class ImageParams(Section):
    """`model.image`: how an image becomes pixels, and which tower reads them."""

    tower: Literal["cnn", "vit"]
    size: int = Field(ge=8, le=1024, description="pixels a side")
    resize: Literal["squash", "crop", "pad"]
    normalization: Literal["imagenet", "clip", "half"]
    background: list[int] = Field(min_length=3, max_length=3, description="RGB behind transparent pixels")
    max_pixels: int = Field(ge=1, le=10**9, description="a larger image is refused before it is decoded")
    cnn: CnnParams
    vit: VitParams


class ModelParams(Section):
    """Section `model`."""

    family: Literal["dual_tower"]
    embedding_size: int = Field(ge=8, le=4096)
    feature_size: int = Field(ge=8, le=8192)
    image: ImageParams
    text: TextParams
    head: HeadParams


def image_spec(params: ImageParams) -> ImageSpec:
    """The pixel settings that are saved with the model and that serving applies."""
    mean, std = STATISTICS[params.normalization]
    return ImageSpec(
        size=params.size,
        resize=params.resize,
        mean=list(mean),
        std=list(std),
        background=list(params.background),
        max_pixels=params.max_pixels,
    )


def build_model(params: ModelParams, *, classes: int, text: dict[str, Any]) -> DualTower:
    """A module with fresh weights from torch's generator.

    Parameters
    ----------
    classes
        Number of classes; no head is built for fewer than two.
    text
        The content of the tokenizer's `text.json`.
    """
    towers: dict[str, Callable[[], Any]] = {
        "cnn": lambda: ImageCnn(params.image.cnn),
        "vit": lambda: ImageVit(params.image.vit, params.image.size),
    }
    image = towers[params.image.tower]()
    words = TextTransformer(
        params.text,
        vocabulary_size=text["vocabulary_size"],
        max_tokens=text["max_tokens"],
        end_id=text["end_id"],
    )
    sizes = (params.feature_size, params.embedding_size)
    head = ClassHead(params.head, params.feature_size, classes) if classes > 1 else None
    return DualTower(Tower(image, image.out_features, *sizes), Tower(words, words.out_features, *sizes), head)


def save_trained(
    folder: Path, module: nn.Module, params: ModelParams, *, classes: list[str], text: dict[str, Any]
) -> None:
    """Write `model.safetensors` and `config.json` into `folder`; see `load_trained`."""
    from safetensors.torch import save

    weights = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    with atomic_file(folder / "model.safetensors") as handle:
        handle.write(save(weights))
    config = {
        "model": params.model_dump(),
        "classes": classes,
        "image": image_spec(params.image).to_dict(),
        "text": text,
    }
    write_json(folder / "config.json", config)


class TorchPredictor:
    """A trained module behind the `Predictor` protocol (see there for shapes), in evaluation mode."""

    def __init__(self, module: DualTower, config: dict[str, Any]) -> None:
        self.module = module.eval()
        self.config = config
        self.image_spec = ImageSpec.from_dict(config["image"])
        self.classes: list[str] = config["classes"]
        self.sees: str = config["model"]["head"]["sees"]
        self.embedding_size: int = config["model"]["embedding_size"]

    def images(self, pixels_B3HW: FloatArray) -> tuple[FloatArray, FloatArray]:
        """See `Predictor.images`."""
        return self._pair(self.module.image, pixels_B3HW)

    def texts(self, input_ids_BT: IntArray) -> tuple[FloatArray, FloatArray]:
        """See `Predictor.texts`."""
        return self._pair(self.module.text, input_ids_BT)

    def classify(
        self, image_features_BF: FloatArray, text_features_BF: FloatArray, present_B2: FloatArray
    ) -> FloatArray:
        """See `Predictor.classify`."""
        import torch

        assert self.module.head is not None, "this model has no classes"
        with torch.no_grad():
            parts = (
                torch.from_numpy(np.ascontiguousarray(part))
                for part in (image_features_BF, text_features_BF, present_B2)
            )
            out: FloatArray = self.module.head(*parts).softmax(dim=1).numpy()
        return out

    def _pair(self, tower: nn.Module, inputs: Any) -> tuple[FloatArray, FloatArray]:
        import torch

        with torch.no_grad():
            embedding, features = tower(torch.from_numpy(np.ascontiguousarray(inputs)))
        return embedding.numpy(), features.numpy()


def load_trained(trained: Path, *, threads: int) -> TorchPredictor:
    """Load the folder that the stage `train` leaves.

    Raises
    ------
    DataError
        A file is missing, or the weights are not those of the configuration beside them.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    torch.set_num_threads(threads)
    config = read_json(trained / "config.json")
    params = parse_section(ModelParams, "model", config["model"], where=str(trained / "config.json"))
    module = build_model(params, classes=len(config["classes"]), text=config["text"])
    try:
        module.load_state_dict(load_file(trained / "model.safetensors"))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise DataError(
            f"{trained / 'model.safetensors'} does not hold the weights that config.json describes: {error}. "
            "Run `dvc repro train`."
        ) from error
    return TorchPredictor(module, config)
