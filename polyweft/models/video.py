"""Modality `video`: a small CNN over each frame, and pooling over time.

Takes frames (B, T, 3, H, W) as `polyweft.data.video.Reader` gives them; a token is a frame.
Shape suffixes: B rows, T frames, H and W pixels, F features.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from polyweft.config import Section
from polyweft.data.decode import STATISTICS
from polyweft.data.video import Reader as VideoReader
from polyweft.data.video import VideoSpec
from polyweft.models.image_cnn import CnnParams, ImageCnn
from polyweft.models.transformer import Transformer, init_weights


class Params(Section):
    """`model.encoders.video`: which frames are taken, the CNN that reads each, and the pooling over time."""

    frames: int = Field(ge=1, le=256, description="evenly spaced over the clip")
    size: int = Field(ge=8, le=1024, description="pixels a side")
    resize: Literal["squash", "crop"] = "squash"
    normalization: Literal["imagenet", "clip", "half"] = "half"
    max_pixels: int = Field(default=10_000_000, ge=1, le=10**9, description="of a frame; more is refused")
    max_frames: int = Field(default=18_000, ge=1, le=10**6, description="a clip of more is refused")
    max_seconds: float = Field(default=600.0, gt=0.0, le=86_400.0)
    cnn: CnnParams
    pooling: Literal["mean", "attention", "transformer"]
    layers: int = Field(default=1, ge=1, le=24, description="of the Transformer")
    heads: int = Field(default=4, ge=1, le=32, description="of the Transformer")
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0, description="of the Transformer")

    @model_validator(mode="after")
    def _heads_divide(self) -> Params:
        width = self.cnn.channels[-1] * self.cnn.scales
        if self.pooling == "transformer" and width % self.heads:
            raise ValueError(f"heads {self.heads} does not divide the CNN's {width} features")
        return self


def reader_spec(params: Params) -> dict[str, Any]:
    """The settings of the frames that are saved with the model and that serving applies."""
    mean, std = STATISTICS[params.normalization]
    return VideoSpec(
        frames=params.frames,
        size=params.size,
        resize=params.resize,
        mean=list(mean),
        std=list(std),
        max_pixels=params.max_pixels,
        max_frames=params.max_frames,
        max_seconds=params.max_seconds,
    ).to_dict()


def build(params: Params, reader: VideoReader) -> nn.Module:
    """The encoder; it takes frames float32 (B, T, 3, H, W)."""
    return VideoEncoder(params)


class VideoEncoder(nn.Module):
    """Frames to one feature vector.

    `mean` averages the frames' features, `attention` weighs them by a learned score (Ilse et al., 2018),
    `transformer` lets them look at each other first, so that their order counts.
    """

    def __init__(self, params: Params) -> None:
        super().__init__()
        self.frames = params.frames
        self.cnn = ImageCnn(params.cnn)
        width = self.out_features = self.cnn.out_features
        self.positions: nn.Parameter | None = None
        self.transformer: Transformer | None = None
        self.score: nn.Module | None = None
        if params.pooling == "transformer":
            self.positions = nn.Parameter(torch.empty(1, params.frames, width).normal_(std=0.02))
            self.transformer = Transformer(width, params.layers, params.heads, params.dropout)
            self.transformer.apply(init_weights)
        if params.pooling == "attention":
            self.score = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))

    def tokens(self, frames_BT3HW: Tensor) -> Tensor:
        """Normalised frames (B, T, 3, H, W) to a vector a frame (B, T, F)."""
        x_BTF: Tensor = self.cnn(frames_BT3HW.flatten(0, 1)).unflatten(0, (-1, self.frames))
        if self.transformer is not None and self.positions is not None:
            x_BTF = self.transformer(x_BTF + self.positions)
        return x_BTF

    def forward(self, frames_BT3HW: Tensor) -> Tensor:
        """Normalised frames (B, T, 3, H, W) to features (B, F)."""
        x_BTF = self.tokens(frames_BT3HW)
        if self.score is None:
            return x_BTF.mean(dim=1)
        weight_BT1 = self.score(x_BTF).softmax(dim=1)
        out: Tensor = (weight_BT1 * x_BTF).sum(dim=1)
        return out
