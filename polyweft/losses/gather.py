"""Rows and sums over all processes of a group, with gradients; without a group, this process alone.

Every loss here gives a scalar whose mean over the processes, and whose gradients' mean, are those of the
joined batch: it sums its own rows against the rows of all, times the number of processes, over the number
of rows of all. Every process must hold the same number of rows.

Shape suffixes: B rows of this process, G rows of all processes, D embedding size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed


class _GatherRows(torch.autograd.Function):
    """All processes' rows, in rank order; the gradient of every process flows back to the rows' owner."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        parts = [torch.empty_like(local) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, local.contiguous())
        ctx.rows = local.shape[0]
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous()
        distributed.all_reduce(grad)
        begin = distributed.get_rank() * ctx.rows
        return grad[begin : begin + ctx.rows]


def gather_rows(local: Tensor) -> Tensor:
    """Rows of every process (G, ...), with gradients; the rows themselves where there is one process."""
    if world_size() == 1:
        return local
    if not local.is_floating_point():
        parts = [torch.empty_like(local) for _ in range(world_size())]
        distributed.all_gather(parts, local.contiguous())
        return torch.cat(parts)
    gathered: Tensor = _GatherRows.apply(local)  # type: ignore[no-untyped-call]
    return gathered


def world_size() -> int:
    """Number of processes; 1 without a group."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def first_row(rows: int) -> int:
    """Where this process's rows, `rows` of them, begin among those of all."""
    return distributed.get_rank() * rows if distributed.is_initialized() else 0


def total(local: Tensor) -> Tensor:
    """The sum of `local` over the processes, without gradients."""
    out = local.detach().clone()
    if world_size() > 1:
        distributed.all_reduce(out)
    return out


def mean_of_rows(terms_B: Tensor, weights_B: Tensor) -> Tensor:
    """This process's part of the weighted mean of `terms` over the rows of all processes; 0 without weight.

    Both have the same shape, (B,) or (B, ...). Terms of weight 0 must be finite.
    """
    weights_B = weights_B.detach().to(terms_B.dtype)
    weight = total(weights_B.sum())
    return (terms_B * weights_B).sum() * world_size() / weight.where(weight > 0, torch.ones_like(weight))


def cosines(a_BD: Tensor, b_GD: Tensor) -> Tensor:
    """Cosines of unit-length rows, float32 (B, G) under autocast too: times 100, bf16 is too coarse."""
    with torch.autocast(a_BD.device.type, enabled=False):
        return a_BD @ b_GD.T


@dataclass(frozen=True)
class Rows:
    """One modality's embeddings in the global batch; make it with `Rows.gather`.

    Attributes
    ----------
    x_BD, x_GD
        Unit-length embeddings, float32: this process's rows, and those of all.
    key_B, key_G
        int64; equal keys are equal content.
    there_B, there_G
        Boolean: False where a row lacks the modality; such a row takes no part.
    """

    x_BD: Tensor
    x_GD: Tensor
    key_B: Tensor
    key_G: Tensor
    there_B: Tensor
    there_G: Tensor

    @classmethod
    def gather(cls, x_BD: Tensor, key_B: Tensor, there_B: Tensor) -> Rows:
        """Bring the processes' rows together; three tensors with the same B."""
        facts_G2 = gather_rows(torch.stack([key_B, there_B.to(torch.int64)], dim=1))
        x_BD = x_BD.float()
        return cls(x_BD, gather_rows(x_BD), key_B, facts_G2[:, 0], there_B.bool(), facts_G2[:, 1].bool())

    def same(self) -> Tensor:
        """Boolean (B, G): both rows have the modality, with equal content."""
        there_BG = self.there_B[:, None] & self.there_G[None]
        return (self.key_B[:, None] == self.key_G[None]) & there_BG
