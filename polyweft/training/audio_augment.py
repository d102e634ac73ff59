"""Augmentation of spectrograms, drawn per sample and epoch like that of images.

Shape suffixes: N rows of a split, B rows of a batch, M mel bands, T windows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from polyweft.config import Section

MASKS = 2
"""Of each kind, as in SpecAugment's LD policy."""


class AudioAugmentParams(Section):
    """`train.augment_audio`: the largest change of each kind; zeros turn it off."""

    shift: float = Field(default=0.0, ge=0.0, le=0.5, description="later, a fraction of the clip")
    stretch: float = Field(default=0.0, ge=0.0, le=0.5, description="relative change of tempo, each way")
    pitch: float = Field(default=0.0, ge=0.0, le=0.5, description="relative change along the bands, each way")
    time_mask: float = Field(default=0.0, ge=0.0, le=0.5, description="fraction of the windows, each of two")
    mel_mask: float = Field(default=0.0, ge=0.0, le=0.5, description="fraction of the bands, each of two")


def audio_draws(rows: int, *, seed: int, epoch: int) -> npt.NDArray[np.float32]:
    """Numbers in [0, 1) for every row of a split, float32 (N, 11)."""
    generator = np.random.Generator(np.random.Philox(key=[seed + 2**35, epoch]))
    return generator.random((rows, 3 + 4 * MASKS), dtype=np.float32)


def augment_audio(log_mel_BMT: Tensor, draws_B11: Tensor, params: AudioAugmentParams) -> Tensor:
    """Move, stretch and mask each spectrogram by its row of draws.

    Tempo and pitch move what is heard along the axes, the lowest band and the clip's begin staying in place
    (for pitch that is vocal tract length perturbation, Jaitly and Hinton, 2013). Masks are SpecAugment's
    (Park et al., 2019), with the clip's mean.

    Parameters
    ----------
    log_mel_BMT
        Normalised, float32; a clip's least value counts as silence, which comes in at the borders.
    """
    out = log_mel_BMT
    if params.shift or params.stretch or params.pitch:
        tempo = 1 + (draws_B11[:, 1] * 2 - 1) * params.stretch
        pitch = 1 + (draws_B11[:, 2] * 2 - 1) * params.pitch
        zero = torch.zeros_like(tempo)
        rows = (
            torch.stack([tempo, zero, tempo - 1 - draws_B11[:, 0] * 2 * params.shift], dim=1),
            torch.stack([zero, pitch, pitch - 1], dim=1),
        )
        heard_B1MT = out[:, None]
        silence_B111 = heard_B1MT.amin(dim=(2, 3), keepdim=True)
        grid = functional.affine_grid(torch.stack(rows, dim=1), list(heard_B1MT.shape), align_corners=False)
        moved = functional.grid_sample(heard_B1MT - silence_B111, grid, align_corners=False) + silence_B111
        out = moved[:, 0]
    mean_B11 = log_mel_BMT.mean(dim=(1, 2), keepdim=True)
    for mask in range(MASKS):
        low, wide, begin, long = draws_B11[:, 3 + 4 * mask : 7 + 4 * mask].unbind(dim=1)
        hidden_BM = _stretch_of(out.shape[1], wide * params.mel_mask, low)
        hidden_BT = _stretch_of(out.shape[2], long * params.time_mask, begin)
        out = torch.where(hidden_BM[:, :, None] | hidden_BT[:, None, :], mean_B11, out)
    return out


def _stretch_of(length: int, part_B: Tensor, place_B: Tensor) -> Tensor:
    """True (B, length) for `part_B` of the positions in a row, from anywhere that they fit."""
    count_B = (part_B * length).floor()
    first_B = (place_B * (length - count_B + 1)).floor()
    at_X = torch.arange(length, device=part_B.device)
    return (at_X >= first_B[:, None]) & (at_X < (first_B + count_B)[:, None])
