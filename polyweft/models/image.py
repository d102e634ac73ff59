"""Modality `image`: its section, how bytes become pixels, and the choice of its tower."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field
from torch import nn

from polyweft.config import Section
from polyweft.data.decode import STATISTICS, ImageSpec
from polyweft.data.decode import Reader as ImageReader
from polyweft.models.image_cnn import CnnParams, ImageCnn
from polyweft.models.image_vit import ImageVit, VitParams


class Params(Section):
    """`model.encoders.image`: how an image becomes pixels, and which tower reads them."""

    tower: Literal["cnn", "vit"]
    size: int = Field(ge=8, le=1024, description="pixels a side")
    resize: Literal["squash", "crop", "pad"]
    normalization: Literal["imagenet", "clip", "half"]
    background: list[int] = Field(min_length=3, max_length=3, description="RGB behind transparent pixels")
    max_pixels: int = Field(ge=1, le=10**9, description="a larger image is refused before it is decoded")
    cnn: CnnParams | None = None
    vit: VitParams | None = None


def reader_spec(params: Params) -> dict[str, Any]:
    """The pixel settings that are saved with the model and that serving applies."""
    mean, std = STATISTICS[params.normalization]
    return ImageSpec(
        size=params.size,
        resize=params.resize,
        mean=list(mean),
        std=list(std),
        background=list(params.background),
        max_pixels=params.max_pixels,
    ).to_dict()


def build(params: Params, reader: ImageReader) -> nn.Module:
    """The tower that `params.tower` names; it takes pixels float32 (B, 3, H, W)."""
    towers: dict[str, Callable[[Any], nn.Module]] = {
        "cnn": ImageCnn,
        "vit": lambda section: ImageVit(section, params.size),
    }
    section = getattr(params, params.tower)
    if section is None:
        from polyweft.errors import ConfigError

        raise ConfigError(
            f"model.encoders.image.tower is {params.tower!r}, but there is no section "
            f"model.encoders.image.{params.tower}. Add it; examples/ show one."
        )
    return towers[params.tower](section)
