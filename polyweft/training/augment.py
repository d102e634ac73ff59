"""Augmentation of images, drawn per sample and epoch.

A row's draw depends on the seed, the epoch and the row alone, so it is the same with any batch size and any
number of processes. Shape suffixes: N rows of a split, B rows of a batch, S pixels a side, X numbers a draw.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from polyweft.config import Section

BEND = 4
"""Points a side of the grid that an elastic change moves."""
NUMBERS = 24 + 2 * BEND * BEND
"""Of a draw; the last ones are for the elastic change."""

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class AugmentParams(Section):
    """`train.augment`: the largest change of each kind; zeros turn it off."""

    shift: float = Field(default=0.0, ge=0.0, le=0.5, description="fraction of the side, each way")
    scale: float = Field(default=0.0, ge=0.0, le=1.0, description="change of size, each way: its logarithm")
    stretch: float = Field(default=0.0, ge=0.0, le=1.0, description="the same of width against height")
    rotate: float = Field(default=0.0, ge=0.0, le=180.0, description="degrees, each way")
    shear: float = Field(default=0.0, ge=0.0, le=1.0, description="each way")
    elastic: float = Field(default=0.0, ge=0.0, le=0.5, description="bends, fraction of the side, each way")
    flip: bool = Field(default=False, description="mirror half; not where captions say left and right")
    hue: float = Field(default=0.0, ge=0.0, le=180.0, description="degrees, each way")
    saturation: float = Field(default=0.0, ge=0.0, le=3.0, description="each way: its logarithm")
    gray: float = Field(default=0.0, ge=0.0, le=1.0, description="share of images without colour")
    brightness: float = Field(default=0.0, ge=0.0, le=1.0, description="relative, each way")
    contrast: float = Field(default=0.0, ge=0.0, le=1.0, description="relative, each way")
    color: float = Field(default=0.0, ge=0.0, le=1.0, description="relative change of each channel, each way")
    gamma: float = Field(default=0.0, ge=0.0, le=2.0, description="its logarithm, each way; half by channel")
    cutout: float = Field(default=0.0, ge=0.0, le=1.0, description="share of images with a covered patch")


def draws(rows: int, *, seed: int, epoch: int) -> npt.NDArray[np.float32]:
    """Numbers in [-1, 1) for every row of a split, float32 (N, NUMBERS)."""
    generator = np.random.Generator(np.random.Philox(key=[seed + 2**33, epoch]))
    return (generator.random((rows, NUMBERS), dtype=np.float32) * 2 - 1).astype(np.float32)


def presence_draws(rows: int, modalities: int, *, seed: int, epoch: int) -> npt.NDArray[np.float32]:
    """Numbers in [0, 1) for modality dropout, float32 (N, M)."""
    generator = np.random.Generator(np.random.Philox(key=[seed + 2**34, epoch]))
    return generator.random((rows, modalities), dtype=np.float32)


def augment(
    pixels_B3SS: Tensor, draws_BX: Tensor, params: AugmentParams, fill_3: Tensor, size: int
) -> Tensor:
    """Move, bend, mirror, recolour and cover each image by its row of draws.

    Parameters
    ----------
    pixels_B3SS
        float32 in [0, 1].
    fill_3
        The colour that comes in at the borders.
    size
        Side of the result in pixels.

    Returns
    -------
    float32 (B, 3, size, size) in [0, 1].
    """
    if size != pixels_B3SS.shape[-1]:
        # Before it is moved: the mean over a square of pixels, where sampling would pick single ones.
        pixels_B3SS = functional.interpolate(pixels_B3SS, size=size, mode="bilinear", antialias=True)
    out = _moved(pixels_B3SS, draws_BX, params, fill_3)
    if params.hue or params.saturation or params.gray:
        out = _recoloured(out, draws_BX, params)
    if params.contrast:
        middle = out.mean(dim=(1, 2, 3), keepdim=True)
        out = (out - middle) * (1 + draws_BX[:, 11, None, None, None] * params.contrast) + middle
    if params.brightness or params.color:
        factor_B3 = 1 + draws_BX[:, 12:13] * params.brightness + draws_BX[:, 13:16] * params.color
        out = out * factor_B3[:, :, None, None]
    if params.gamma:
        power_B3 = torch.exp(params.gamma * (draws_BX[:, 16:17] + draws_BX[:, 13:16] / 2))
        out = out.clamp(1e-3, 1.0) ** power_B3[:, :, None, None]
    out = out.clamp(0.0, 1.0)
    return _covered(out, draws_BX, params.cutout) if params.cutout else out


def _moved(pixels_B3SS: Tensor, draws_BX: Tensor, params: AugmentParams, fill_3: Tensor) -> Tensor:
    still = (params.shift, params.scale, params.stretch, params.rotate, params.shear, params.elastic)
    if not any(still) and not params.flip:
        return pixels_B3SS
    angle = draws_BX[:, 0] * math.radians(params.rotate)
    zoom, stretch = torch.exp(-draws_BX[:, 1] * params.scale), torch.exp(draws_BX[:, 5] * params.stretch)
    wide, high, lean = zoom * stretch, zoom / stretch, draws_BX[:, 6] * params.shear
    mirror = torch.where(draws_BX[:, 2] < 0, -1.0, 1.0) if params.flip else torch.ones_like(angle)
    cos, sin = torch.cos(angle), torch.sin(angle)
    rows = (
        torch.stack([cos * wide * mirror, (lean - sin) * wide, draws_BX[:, 3] * 2 * params.shift], dim=1),
        torch.stack([sin * high * mirror, cos * high, draws_BX[:, 4] * 2 * params.shift], dim=1),
    )
    shape = list(pixels_B3SS.shape)
    grid_BSS2 = functional.affine_grid(torch.stack(rows, dim=1), shape, align_corners=False)
    if params.elastic:
        points = draws_BX[:, -2 * BEND * BEND :].reshape(-1, 2, BEND, BEND) * 2 * params.elastic
        bend_B2SS = functional.interpolate(points, size=shape[2:], mode="bicubic", align_corners=True)
        grid_BSS2 = grid_BSS2 + bend_B2SS.permute(0, 2, 3, 1)
    fill_131 = fill_3[None, :, None, None]
    return functional.grid_sample(pixels_B3SS - fill_131, grid_BSS2, align_corners=False) + fill_131


def _recoloured(pixels_B3SS: Tensor, draws_BX: Tensor, params: AugmentParams) -> Tensor:
    """Hue turned about the grey axis (Haeberli, 1993), then colours drawn to or from their luma."""
    device = pixels_B3SS.device
    identity, third = torch.eye(3, device=device), torch.full((3, 3), 1 / 3, device=device)
    root = 1 / math.sqrt(3)
    cross = torch.tensor([[0, -root, root], [root, 0, -root], [-root, root, 0]], device=device)
    angle_B11 = (draws_BX[:, 7] * math.radians(params.hue))[:, None, None]
    turn_B33 = third + torch.cos(angle_B11) * (identity - third) + torch.sin(angle_B11) * cross
    keep_B = torch.exp(draws_BX[:, 8] * params.saturation)
    keep_B = torch.where(draws_BX[:, 9] < 2 * params.gray - 1, torch.zeros_like(keep_B), keep_B)
    keep_B11 = keep_B[:, None, None]
    luma_33 = torch.tensor(_LUMA, device=device).expand(3, 3)
    matrix_B33 = (keep_B11 * identity + (1 - keep_B11) * luma_33) @ turn_B33
    return torch.bmm(matrix_B33, pixels_B3SS.flatten(2)).view_as(pixels_B3SS)


def _covered(pixels_B3SS: Tensor, draws_BX: Tensor, share: float) -> Tensor:
    """Cover a patch of 15 to 45% of each side with one colour (DeVries and Taylor, 2017, Cutout)."""
    line_S = torch.linspace(-1, 1, pixels_B3SS.shape[-1], device=pixels_B3SS.device)
    half_B2 = 0.15 + 0.15 * (draws_BX[:, 19:21] + 1)
    near_B2S = (line_S - draws_BX[:, 17:19, None]).abs() < half_B2[:, :, None]
    patch_BSS = near_B2S[:, 0, None, :] & near_B2S[:, 1, :, None]
    patch_BSS = patch_BSS & (draws_BX[:, 10] < 2 * share - 1)[:, None, None]
    colour_B311 = ((draws_BX[:, 21:24] + 1) / 2)[:, :, None, None]
    return torch.where(patch_BSS[:, None], colour_B311, pixels_B3SS)
