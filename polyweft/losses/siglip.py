"""SigLIP's sigmoid loss (Zhai et al., 2023), a few columns at a time.

Shape suffixes: B rows of this process, G rows of all processes, K columns of a chunk, D embedding size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from polyweft.losses.gather import Rows, total, world_size


def siglip(a: Rows, b: Rows, scale: Tensor, bias: Tensor, *, chunk: int) -> Tensor:
    """Every pair of an `a` and a `b` is a yes-or-no question; equal keys in either modality mean yes.

    `-1/N sum_i sum_j log sigmoid(z_ij (scale a_i.b_j + bias))` with z 1 for positives and -1 for the rest,
    over the N rows of all processes that hold both modalities. This process takes its own rows against the
    columns of all.

    Parameters
    ----------
    scale, bias
        Scalars; SigLIP starts at 10 and -10.
    chunk
        Columns held at a time: memory is O(chunk x B), also in the backward pass.

    Returns
    -------
    Tensor
        A scalar whose mean over the processes is the loss of the joined batch.
    """
    there_B, there_G = a.there_B & b.there_B, a.there_G & b.there_G
    keys = (a.key_B, a.key_G, b.key_B, b.key_G)
    with torch.autocast(a.x_BD.device.type, enabled=False):
        summed: Tensor = _Sum.apply(  # type: ignore[no-untyped-call]
            a.x_BD, b.x_GD, scale, bias, (*keys, there_B, there_G), chunk
        )
    return summed * world_size() / total(there_B.sum()).clamp(min=1)


class _Sum(torch.autograd.Function):
    """The sum over all pairs; the forward pass leaves the gradients, so that no matrix is kept."""

    @staticmethod
    def forward(
        ctx: Any,
        a_BD: Tensor,
        b_GD: Tensor,
        scale: Tensor,
        bias: Tensor,
        facts: tuple[Tensor, ...],
        chunk: int,
    ) -> Tensor:
        a_key_B, a_key_G, b_key_B, b_key_G, there_B, there_G = facts
        grad_a_BD, grad_b_GD = torch.zeros_like(a_BD), torch.empty_like(b_GD)
        out, grad_scale, grad_bias = (a_BD.new_zeros(()) for _ in range(3))
        for begin in range(0, len(b_GD), chunk):
            part = slice(begin, begin + chunk)
            same_BK = (a_key_B[:, None] == a_key_G[None, part]) | (b_key_B[:, None] == b_key_G[None, part])
            sign_BK = torch.where(same_BK, 1.0, -1.0)
            there_BK = there_B[:, None] & there_G[None, part]
            cosine_BK = a_BD @ b_GD[part].T
            margin_BK = sign_BK * (scale * cosine_BK + bias)
            out -= functional.logsigmoid(margin_BK).masked_fill(~there_BK, 0.0).sum()
            grad_BK = (-sign_BK * torch.sigmoid(-margin_BK)).masked_fill(~there_BK, 0.0)
            grad_a_BD += scale * grad_BK @ b_GD[part]
            grad_b_GD[part] = scale * grad_BK.T @ a_BD
            grad_scale += (grad_BK * cosine_BK).sum()
            grad_bias += grad_BK.sum()
        ctx.save_for_backward(grad_a_BD, grad_b_GD, grad_scale, grad_bias)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*(grad * part for part in ctx.saved_tensors), None, None)
