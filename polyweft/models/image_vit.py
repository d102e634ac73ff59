"""Image tower: a Vision Transformer (Dosovitskiy et al., 2021).

Shape suffixes: B rows, H and W pixels, L patches, D width.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from polyweft.config import Section
from polyweft.errors import ConfigError
from polyweft.models.transformer import Transformer, init_weights


class VitParams(Section):
    """`model.image.vit`: patch side in pixels, width, layers, heads, pooling."""

    patch: int = Field(ge=2, le=64)
    width: int = Field(ge=16, le=2048)
    layers: int = Field(ge=1, le=48)
    heads: int = Field(ge=1, le=32)
    pool: Literal["class_token", "mean"]


class ImageVit(nn.Module):
    """Pixels to one feature vector: patches, a Transformer, the class token or the mean over patches."""

    def __init__(self, params: VitParams, size: int) -> None:
        super().__init__()
        if size % params.patch:
            raise ConfigError(
                f"model.image.vit.patch {params.patch} does not divide model.image.size {size}; "
                f"choose a patch such as {[p for p in (4, 8, 14, 16, 32) if size % p == 0]}."
            )
        if params.width % params.heads:
            raise ConfigError(
                f"model.image.vit.heads {params.heads} does not divide its width {params.width}; "
                "choose heads that divide the width."
            )
        self.pool, width = params.pool, params.width
        self.patches = nn.Conv2d(3, width, params.patch, params.patch, bias=False)
        self.class_token = nn.Parameter(torch.empty(1, 1, width).normal_(std=0.02))
        length = (size // params.patch) ** 2 + 1
        self.positions = nn.Parameter(torch.empty(1, length, width).normal_(std=0.02))
        self.transformer = Transformer(width, params.layers, params.heads)
        self.transformer.apply(init_weights)
        self.out_features = width

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """Normalised pixels (B, 3, H, W) to features (B, D)."""
        x_BLD = self.patches(pixels_B3HW).flatten(2).transpose(1, 2)
        token_B1D = self.class_token.expand(x_BLD.shape[0], -1, -1).to(x_BLD.dtype)
        x_BLD = self.transformer(torch.cat([token_B1D, x_BLD], dim=1) + self.positions)
        out: Tensor = x_BLD[:, 0] if self.pool == "class_token" else x_BLD[:, 1:].mean(dim=1)
        return out
