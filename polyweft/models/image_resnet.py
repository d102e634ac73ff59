"""Image tower: ResNet (He et al., 2016) with GroupNorm (Wu and He, 2018) where the paper has BatchNorm.

Shape suffixes: B rows, C channels, H and W pixels, L positions, F features.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from polyweft.config import Section


class ResnetParams(Section):
    """`resnet` of an image encoder: ResNet-18 is `basic` with blocks [2, 2, 2, 2] and width 64, ResNet-50
    `bottleneck` with [3, 4, 6, 3]."""

    block: Literal["basic", "bottleneck"]
    blocks: list[Annotated[int, Field(ge=1, le=48)]] = Field(min_length=1, max_length=4)
    width: int = Field(default=64, ge=8, le=512, multiple_of=8, description="channels of the first stage")


class ResnetBlock(nn.Module):
    """`basic`: two 3 x 3 convolutions; `bottleneck`: 1 x 1, 3 x 3, 1 x 1 to four times the width.

    The last norm's scale begins at 0, so that a block begins as its shortcut (Goyal et al., 2017).
    """

    def __init__(self, inner: int, width: int, outer: int, stride: int) -> None:
        super().__init__()
        sizes = [inner, width, width, outer] if outer != width else [inner, width, outer]
        kernels = [1, 3, 1] if outer != width else [3, 3]
        layers: list[nn.Module] = []
        for number, kernel in enumerate(kernels):
            # The stride stands at the first 3 x 3 convolution, as in every implementation after the paper.
            step = stride if kernel == 3 and 3 not in kernels[:number] else 1
            layers.append(nn.Conv2d(sizes[number], sizes[number + 1], kernel, step, kernel // 2, bias=False))
            layers.append(_norm(sizes[number + 1]))
            layers.append(nn.ReLU())
        self.layers = nn.Sequential(*layers[:-1])
        last = layers[-2]
        assert isinstance(last, nn.GroupNorm)
        nn.init.zeros_(last.weight)
        same = inner == outer and stride == 1
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), _norm(outer))
        )
        self.activation = nn.ReLU()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, inner, H, W) to (B, outer, H / stride, W / stride)."""
        out: Tensor = self.activation(self.shortcut(x_BCHW) + self.layers(x_BCHW))
        return out


class ImageResnet(nn.Module):
    """Pixels to one feature vector: a 7 x 7 stem and max pooling, stages of blocks, mean over positions."""

    any_size = True  # of the picture, so `train.image_sizes` may change it

    def __init__(self, params: ResnetParams) -> None:
        super().__init__()
        inner = params.width
        self.stem = nn.Sequential(
            nn.Conv2d(3, inner, 7, 2, 3, bias=False), _norm(inner), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        grow = 4 if params.block == "bottleneck" else 1
        blocks: list[nn.Module] = []
        for stage, count in enumerate(params.blocks):
            width = params.width * 2**stage
            for index in range(count):
                stride = 2 if index == 0 and stage > 0 else 1
                blocks.append(ResnetBlock(inner, width, width * grow, stride))
                inner = width * grow
        self.blocks = nn.Sequential(*blocks)
        self.out_features = inner
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """Normalised pixels (B, 3, H, W) to features (B, F)."""
        out: Tensor = self.blocks(self.stem(pixels_B3HW)).mean(dim=(2, 3))
        return out

    def tokens(self, pixels_B3HW: Tensor) -> Tensor:
        """Normalised pixels (B, 3, H, W) to a vector a position (B, L, F), row by row of the picture."""
        out: Tensor = self.blocks(self.stem(pixels_B3HW)).flatten(2).transpose(1, 2)
        return out


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(32, channels), channels)
