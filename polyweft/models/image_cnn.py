"""Image tower: a residual CNN (He et al., 2016) with GroupNorm, which may pool several scales.

GroupNorm and not BatchNorm: two processes must compute what one computes, and BatchNorm's statistics
depend on how a batch is divided. Shape suffixes: B rows, C channels, H and W pixels, L positions, F features.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from polyweft.config import Section


class CnnParams(Section):
    """`cnn` of an image or video encoder: channels and residual blocks of each stage, one length.

    The first stage is at half the resolution, each further one at half of the one before; a first stage of
    no block is the stem alone.
    """

    channels: list[Annotated[int, Field(ge=8, le=4096, multiple_of=8)]] = Field(min_length=1, max_length=6)
    blocks: list[Annotated[int, Field(ge=0, le=36)]] = Field(min_length=1, max_length=6)
    kernel: Literal[3, 7] = Field(default=3, description="side of the first convolution")
    groups: Literal[1, 2, 4, 8] = Field(default=8, description="of GroupNorm; 1 is the fastest")
    activation: Literal["gelu", "relu"] = "gelu"
    calm: bool = Field(default=False, description="blocks begin as their shortcut, which averages, not skips")
    scales: int = Field(
        default=1, ge=1, le=6, description="last stages that are pooled; 2 or more: a pyramid"
    )

    @model_validator(mode="after")
    def _same_length(self) -> CnnParams:
        if len(self.channels) != len(self.blocks) or 0 in self.blocks[1:]:
            raise ValueError("blocks needs one number a stage of channels, and 0 may stand first only")
        if self.scales > len(self.channels):
            raise ValueError(f"scales is {self.scales}, but there are {len(self.channels)} stages")
        return self


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions behind GroupNorm and activation, and a residual; `stride` 2 halves the sides.

    `calm`: the second convolution begins at 0 (Goyal et al., 2017) and the shortcut averages 2 x 2 positions
    where it would skip three of four (He et al., 2019, ResNet-D).
    """

    def __init__(self, inner: int, outer: int, stride: int, params: CnnParams) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(params.groups, inner), nn.GroupNorm(params.groups, outer)
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        same = inner == outer and stride == 1
        self.halve = nn.AvgPool2d(2, ceil_mode=True) if params.calm and stride == 2 else nn.Identity()
        skip = 1 if params.calm else stride
        self.shortcut = nn.Identity() if same else nn.Conv2d(inner, outer, 1, skip, bias=False)
        self.activation = _activation(params)
        if params.calm:
            nn.init.zeros_(self.conv2.weight)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, inner, H, W) to (B, outer, H / stride, W / stride)."""
        out = self.conv1(self.activation(self.norm1(x_BCHW)))
        out = self.conv2(self.activation(self.norm2(out)))
        summed: Tensor = self.shortcut(self.halve(x_BCHW)) + out
        return summed


class ImageCnn(nn.Module):
    """A picture to one feature vector: a strided stem, residual stages, mean over positions.

    `planes` is 3 for pixels, 1 for a spectrogram.
    """

    any_size = True  # of the picture, so `train.image_sizes` may change it

    def __init__(self, params: CnnParams, *, planes: int = 3) -> None:
        super().__init__()
        channels = params.channels
        self.stem = nn.Conv2d(planes, channels[0], params.kernel, 2, params.kernel // 2, bias=False)
        blocks: list[nn.Module] = []
        self.ends: list[int] = []  # blocks up to and with each stage
        inner = channels[0]
        for stage, outer in enumerate(channels):
            for index in range(params.blocks[stage]):
                stride = 2 if index == 0 and stage > 0 else 1
                blocks.append(ResidualBlock(inner, outer, stride, params))
                inner = outer
            self.ends.append(len(blocks))
        self.blocks = nn.Sequential(*blocks)
        self.norm, self.activation = nn.GroupNorm(params.groups, inner), _activation(params)
        self.pyramid = Pyramid(channels[-params.scales :]) if params.scales > 1 else None
        self.out_features = inner * params.scales

    def positions(self, x_BPHW: Tensor) -> Tensor:
        """Pictures (B, planes, H, W) to features (B, F, H', W') of the coarsest stage's positions."""
        x_BCHW = self.stem(x_BPHW)
        if self.pyramid is None:
            out: Tensor = self.activation(self.norm(self.blocks(x_BCHW)))
            return out
        stages = []
        begin = 0
        for end in self.ends:
            x_BCHW = self.blocks[begin:end](x_BCHW)
            stages.append(x_BCHW)
            begin = end
        stages[-1] = self.activation(self.norm(stages[-1]))
        pooled: Tensor = self.pyramid(stages[-len(self.pyramid.laterals) :])
        return pooled

    def forward(self, x_BPHW: Tensor) -> Tensor:
        """Normalised pixels (B, 3, H, W) to features (B, F)."""
        return self.positions(x_BPHW).mean(dim=(2, 3))

    def tokens(self, x_BPHW: Tensor) -> Tensor:
        """Normalised pixels (B, 3, H, W) to a vector a position (B, L, F), row by row of the picture."""
        return self.positions(x_BPHW).flatten(2).transpose(1, 2)


class Pyramid(nn.Module):
    """A feature pyramid (Lin et al., 2017): each scale takes up what the coarser ones have seen.

    The scales are then averaged down to the coarsest one's positions and stand side by side.
    """

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        width = channels[-1]
        self.laterals = nn.ModuleList(nn.Conv2d(inner, width, 1) for inner in channels)
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for _ in channels)

    def forward(self, stages: list[Tensor]) -> Tensor:
        """Stages from fine to coarse, each at half the one before, to (B, len(stages) x width, H', W')."""
        scales: list[Tensor] = []
        above: Tensor | None = None
        for lateral, norm, x_BCHW in zip(
            reversed(self.laterals), reversed(self.norms), reversed(stages), strict=True
        ):
            x_BCHW = lateral(x_BCHW)
            if above is not None:
                x_BCHW = x_BCHW + functional.interpolate(above, size=x_BCHW.shape[2:], mode="nearest")
            above = x_BCHW
            shrink = 2 ** len(scales)
            out = functional.gelu(norm(x_BCHW))
            if shrink > 1:
                out = functional.avg_pool2d(out, shrink, ceil_mode=True, count_include_pad=False)
            scales.append(out)
        return torch.cat(scales, dim=1)


def _activation(params: CnnParams) -> nn.Module:
    return nn.GELU() if params.activation == "gelu" else nn.ReLU()
