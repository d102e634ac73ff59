"""Image tower: a residual CNN (He et al., 2016) with GroupNorm.

GroupNorm and not BatchNorm: two processes must compute what one computes, and BatchNorm's statistics
depend on how a batch is divided. Shape suffixes: B rows, C channels, H and W pixels, F features.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator
from torch import Tensor, nn

from polyweft.config import Section


class CnnParams(Section):
    """`model.image.cnn`: channels and residual blocks of each stage, one length.

    The first stage is at half the resolution, each further one at half of the one before; a first stage of
    no block is the stem alone.
    """

    channels: list[Annotated[int, Field(ge=8, le=4096, multiple_of=8)]] = Field(min_length=1, max_length=6)
    blocks: list[Annotated[int, Field(ge=0, le=36)]] = Field(min_length=1, max_length=6)

    @model_validator(mode="after")
    def _same_length(self) -> CnnParams:
        if len(self.channels) != len(self.blocks) or 0 in self.blocks[1:]:
            raise ValueError("blocks needs one number a stage of channels, and 0 may stand first only")
        return self


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions behind GroupNorm and GELU, and a residual; `stride` 2 halves the resolution."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, inner), nn.GroupNorm(8, outer)
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        same = inner == outer and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inner, outer, 1, stride, bias=False)
        self.activation = nn.GELU()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, inner, H, W) to (B, outer, H / stride, W / stride)."""
        hidden = self.activation(self.norm1(x_BCHW))
        out = self.conv1(hidden)
        out = self.conv2(self.activation(self.norm2(out)))
        summed: Tensor = self.shortcut(x_BCHW) + out
        return summed


class ImageCnn(nn.Module):
    """Pixels to one feature vector: a strided stem, residual stages, mean over positions."""

    def __init__(self, params: CnnParams) -> None:
        super().__init__()
        channels = params.channels
        self.stem = nn.Conv2d(3, channels[0], 3, 2, 1, bias=False)
        blocks: list[nn.Module] = []
        inner = channels[0]
        for stage, outer in enumerate(channels):
            for index in range(params.blocks[stage]):
                stride = 2 if index == 0 and stage > 0 else 1
                blocks.append(ResidualBlock(inner, outer, stride))
                inner = outer
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.GroupNorm(8, inner)
        self.out_features = inner

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """Normalised pixels (B, 3, H, W) to features (B, F)."""
        x_BCHW = self.norm(self.blocks(self.stem(pixels_B3HW)))
        out: Tensor = nn.functional.gelu(x_BCHW).mean(dim=(2, 3))
        return out
