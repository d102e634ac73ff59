"""The optimiser and its schedule: AdamW, warm-up, cosine."""

from __future__ import annotations

import math

import torch
from torch import nn


def adamw(module: nn.Module, *, lr: float, weight_decay: float, betas: list[float]) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, 2019); vectors and scalars (norms, biases, temperature) do not decay."""
    matrices = [p for p in module.parameters() if p.ndim >= 2]
    vectors = [p for p in module.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(betas[0], betas[1]), eps=1e-6, fused=True)


def learning_rate(step: int, *, peak: float, warmup: int, total: int) -> float:
    """The rate of step `step` (from 0): linear warm-up to `peak`, then half a cosine down to 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
