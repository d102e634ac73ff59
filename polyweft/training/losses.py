"""Losses over a global batch that several processes hold in parts.

Shape suffixes: B rows of this process, G rows of all processes, D embedding size, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional


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
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return local
    if not local.is_floating_point():
        parts = [torch.empty_like(local) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, local.contiguous())
        return torch.cat(parts)
    gathered: Tensor = _GatherRows.apply(local)  # type: ignore[no-untyped-call]
    return gathered


def contrastive_loss(
    image_BD: Tensor,
    text_BD: Tensor,
    scale: Tensor,
    image_key_B: Tensor,
    text_key_B: Tensor,
    paired_B: Tensor,
) -> Tensor:
    """InfoNCE in both directions (van den Oord et al., 2018; Radford et al., 2021), with several positives.

    Row i's positives are all rows whose image or text is the same as its own: equal keys. With P(i) the
    positives of i and s the scaled cosine, the image-to-text term is
    `-mean_i [ 1/|P(i)| sum_{j in P(i)} log softmax_j s(i, j) ]` (Khosla et al., 2020, L_out).

    Parameters
    ----------
    image_BD, text_BD
        Unit-length embeddings of this process's rows.
    scale
        The factor (exp of the logit scale), a scalar.
    image_key_B, text_key_B
        int64 keys: equal keys are equal content.
    paired_B
        Boolean; rows that lack a modality are False and take no part on either side.

    Returns
    -------
    Tensor
        A scalar whose mean over the processes is the loss of the joined batch.
    """
    images_GD, texts_GD = gather_rows(image_BD), gather_rows(text_BD)
    image_key_G, text_key_G = gather_rows(image_key_B), gather_rows(text_key_B)
    paired_G = gather_rows(paired_B.to(torch.int64)).bool()
    same_BG = (image_key_B[:, None] == image_key_G[None]) | (text_key_B[:, None] == text_key_G[None])
    positive_BG = (same_BG & paired_G[None]).float()
    positive_BG = positive_BG / positive_BG.sum(dim=1, keepdim=True).clamp(min=1.0)
    world = paired_G.shape[0] / paired_B.shape[0]
    rows = paired_G.sum().clamp(min=1)
    total = image_BD.new_zeros(())
    for queries_BD, gallery_GD in ((image_BD, texts_GD), (text_BD, images_GD)):
        logits_BG = scale * queries_BD @ gallery_GD.T
        logits_BG = logits_BG.masked_fill(~paired_G[None], -1e4)
        terms_B = -(positive_BG * functional.log_softmax(logits_BG, dim=1)).sum(dim=1)
        total = total + (terms_B * paired_B).sum()
    return total * world / (2 * rows)


def classification_loss(logits_BC: Tensor, class_B: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy over the rows that have a class (index 0 or more), with label smoothing.

    Returns a scalar whose mean over the processes is the loss of the joined batch.
    """
    labelled_B = class_B >= 0
    rows = gather_rows(labelled_B.to(torch.int64)).sum().clamp(min=1)
    world = distributed.get_world_size() if distributed.is_initialized() else 1
    terms_B = functional.cross_entropy(
        logits_BC, class_B.clamp(min=0), reduction="none", label_smoothing=smoothing
    )
    return (terms_B * labelled_B).sum() * world / rows
