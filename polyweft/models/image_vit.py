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
    """`model.encoders.image.vit`: patch side in pixels, width, layers, heads, pooling."""

    patch: int = Field(ge=2, le=64)
    width: int = Field(ge=16, le=2048)
    layers: int = Field(ge=1, le=48)
    heads: int = Field(ge=1, le=32)
    pool: Literal["class_token", "mean"]


class ImageVit(nn.Module):
    """Pixels to one feature vector: patches, a Transformer, the class token or the mean over patches.

    Takes pixels float32 (B, 3, H, W), normalised, H = W = `size`.
    """

    def __init__(self, params: VitParams, size: int) -> None:
        super().__init__()
        if size % params.patch:
            fit = [str(side) for side in range(2, min(size // 2, 64) + 1) if size % side == 0]
            advice = f"choose a patch of {', '.join(fit)}" if fit else "none does; choose another size"
            raise ConfigError(
                f"model.encoders.image.vit.patch {params.patch} does not divide its size {size}; {advice}."
            )
        if params.width % params.heads:
            raise ConfigError(
                f"model.encoders.image.vit.heads {params.heads} does not divide its width {params.width}; "
                "choose heads that divide the width."
            )
        width, classed = params.width, params.pool == "class_token"
        self.patch, self.patches = params.patch, nn.Linear(3 * params.patch**2, width, bias=False)
        self.class_token = nn.Parameter(torch.empty(1, 1, width).normal_(std=0.02)) if classed else None
        length = (size // params.patch) ** 2 + classed
        self.positions = nn.Parameter(torch.empty(1, length, width).normal_(std=0.02))
        self.transformer = Transformer(width, params.layers, params.heads)
        self.transformer.apply(init_weights)
        self.out_features = width

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """Features (B, D)."""
        x_BLD = self._embed(pixels_B3HW)
        if self.class_token is None:
            mean: Tensor = self.transformer(x_BLD).mean(dim=1)
            return mean
        first_B = torch.zeros(x_BLD.shape[0], dtype=torch.int64, device=x_BLD.device)
        out: Tensor = self.transformer(x_BLD, at_B=first_B)
        return out

    def tokens(self, pixels_B3HW: Tensor) -> Tensor:
        """(B, L, D): the class token, where there is one, then a vector a patch, row by row."""
        out: Tensor = self.transformer(self._embed(pixels_B3HW))
        return out

    def _embed(self, pixels_B3HW: Tensor) -> Tensor:
        side, patch = pixels_B3HW.shape[2] // self.patch, self.patch
        # A product, not a convolution with that stride: on a CPU its backward pass uses one core.
        parts = pixels_B3HW.reshape(-1, 3, side, patch, side, patch).permute(0, 2, 4, 1, 3, 5)
        x_BLD: Tensor = self.patches(parts.reshape(-1, side**2, 3 * patch**2))
        if self.class_token is not None:
            token_B1D = self.class_token.expand(x_BLD.shape[0], -1, -1).to(x_BLD.dtype)
            x_BLD = torch.cat([token_B1D, x_BLD], dim=1)
        return x_BLD + self.positions.to(x_BLD.dtype)
