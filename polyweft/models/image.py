"""Modality `image`: its section, how bytes become pixels, and the choice of its tower."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator
from torch import nn

from polyweft.config import Section
from polyweft.data.decode import STATISTICS, ImageSpec
from polyweft.data.decode import Reader as ImageReader
from polyweft.models.image_cnn import CnnParams, ImageCnn
from polyweft.models.image_resnet import ImageResnet, ResnetParams
from polyweft.models.image_vit import ImageVit, VitParams


class Params(Section):
    """`model.encoders.image`: how an image becomes pixels, and which tower reads them."""

    tower: Literal["cnn", "resnet", "vit"]
    size: int = Field(ge=8, le=1024, description="pixels a side")
    resize: Literal["squash", "crop", "pad"]
    normalization: Literal["imagenet", "clip", "half"]
    background: list[int] = Field(min_length=3, max_length=3, description="RGB behind transparent pixels")
    max_pixels: int = Field(ge=1, le=10**9, description="a larger image is refused before it is decoded")
    cnn: CnnParams | None = None
    resnet: ResnetParams | None = None
    vit: VitParams | None = None

    @model_validator(mode="after")
    def _has_its_tower(self) -> Params:
        if getattr(self, self.tower) is None:
            raise ValueError(f"tower is {self.tower!r}, but there is no section `{self.tower}`; add it")
        return self


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
    if params.tower == "vit":
        assert params.vit is not None
        return ImageVit(params.vit, params.size)
    if params.tower == "resnet":
        assert params.resnet is not None
        return ImageResnet(params.resnet)
    assert params.cnn is not None
    return ImageCnn(params.cnn)
