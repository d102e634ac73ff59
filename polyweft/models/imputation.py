"""What stands in for an absent modality: a learnt vector, or a reconstruction from those present.

Shape suffixes: B rows, M modalities, L positions, F feature size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Imputer(nn.Module):
    """Reconstructs each modality's features from those of the others that are there."""

    def __init__(self, modalities: int, feature_size: int) -> None:
        super().__init__()
        self.networks = nn.ModuleList(
            nn.Sequential(
                nn.Linear(modalities * (feature_size + 1), 2 * feature_size),
                nn.GELU(),
                nn.Linear(2 * feature_size, feature_size),
            )
            for _ in range(modalities)
        )

    def forward(self, features_BMF: Tensor, present_BM: Tensor) -> Tensor:
        """Pooled features (B, M, F) to reconstructions (B, M, F), modality m's without looking at m."""
        out = []
        for m, network in enumerate(self.networks):
            others_M = torch.arange(len(self.networks), device=present_BM.device) != m
            others_BM = present_BM * others_M
            seen_BMF = features_BMF * others_BM[:, :, None]
            out.append(network(torch.cat([seen_BMF.flatten(1), others_BM], dim=1)))
        return torch.stack(out, dim=1)


def fill(x: Tensor, stand_in_BF: Tensor, there_B1: Tensor) -> Tensor:
    """Features (B, F) or (B, L, F) where they are there (1), the stand-in elsewhere (0).

    Among positions the stand-in is the first, and the rest is padding.
    """
    if x.ndim == 2:
        return there_B1 * x + (1.0 - there_B1) * stand_in_BF
    first_L = torch.arange(x.shape[1], device=x.device) == 0
    stand_in_BLF = first_L[None, :, None] * stand_in_BF[:, None]
    return there_B1[:, :, None] * x + (1.0 - there_B1[:, :, None]) * stand_in_BLF
