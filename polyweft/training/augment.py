"""Augmentation of images, drawn per sample and epoch.

A row's draw depends on the seed, the epoch and the row alone, so it is the same with any batch size and any
number of processes. Shape suffixes: N rows of a split, B rows of a batch, S pixels a side.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from polyweft.config import Section


class AugmentParams(Section):
    """`train.augment`: the largest change of each kind; zeros turn it off."""

    shift: float = Field(ge=0.0, le=0.5, description="fraction of the side, each way")
    scale: float = Field(ge=0.0, le=0.5, description="relative change of size, each way")
    rotate: float = Field(ge=0.0, le=180.0, description="degrees, each way")
    flip: bool = Field(description="mirror half of the images; not where captions say left and right")
    brightness: float = Field(ge=0.0, le=1.0, description="relative, each way")
    contrast: float = Field(ge=0.0, le=1.0, description="relative, each way")
    color: float = Field(ge=0.0, le=1.0, description="relative change of each channel, each way")


def draws(rows: int, *, seed: int, epoch: int) -> npt.NDArray[np.float32]:
    """Numbers in [-1, 1) for every row of a split, float32 (N, 10)."""
    generator = np.random.Generator(np.random.Philox(key=[seed + 2**33, epoch]))
    return (generator.random((rows, 10)) * 2 - 1).astype(np.float32)


def presence_draws(rows: int, modalities: int, *, seed: int, epoch: int) -> npt.NDArray[np.float32]:
    """Numbers in [0, 1) for modality dropout, float32 (N, M)."""
    generator = np.random.Generator(np.random.Philox(key=[seed + 2**34, epoch]))
    return generator.random((rows, modalities), dtype=np.float32)


def augment(
    pixels_B3SS: Tensor, draws_B10: Tensor, params: AugmentParams, fill_3: Tensor, size: int
) -> Tensor:
    """Move, turn, mirror and recolour each image by its row of draws.

    Parameters
    ----------
    pixels_B3SS
        float32 in [0, 1].
    fill_3
        The colour that comes in at the borders.
    """
    out = pixels_B3SS
    if params.shift or params.scale or params.rotate or params.flip:
        angle = draws_B10[:, 0] * (params.rotate * torch.pi / 180)
        zoom = 1.0 / (1.0 + draws_B10[:, 1] * params.scale)
        mirror = torch.where(draws_B10[:, 2] < 0, -1.0, 1.0) if params.flip else torch.ones_like(angle)
        cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
        shift_x, shift_y = draws_B10[:, 3] * 2 * params.shift, draws_B10[:, 4] * 2 * params.shift
        rows = (
            torch.stack([cos * mirror, -sin, shift_x], dim=1),
            torch.stack([sin * mirror, cos, shift_y], dim=1),
        )
        shape = [*out.shape[:2], size, size]
        grid = functional.affine_grid(torch.stack(rows, dim=1), shape, align_corners=False)
        fill_131 = fill_3[None, :, None, None]
        out = functional.grid_sample(out - fill_131, grid, align_corners=False) + fill_131
    elif size != out.shape[-1]:
        out = functional.interpolate(out, size=size, mode="area")
    if params.contrast:
        middle = out.mean(dim=(1, 2, 3), keepdim=True)
        out = (out - middle) * (1 + draws_B10[:, 5, None, None, None] * params.contrast) + middle
    if params.brightness or params.color:
        factor_B3 = 1 + draws_B10[:, 6:7] * params.brightness + draws_B10[:, 7:10] * params.color
        out = out * factor_B3[:, :, None, None]
    return out.clamp(0.0, 1.0)
