"""Contrast between modalities in one space: InfoNCE, its options, and the mean over pairs of modalities.

Shape suffixes: B rows of this process, G rows of all processes, D embedding size.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from polyweft.config import Section
from polyweft.losses.gather import Rows, cosines, first_row, mean_of_rows, total
from polyweft.losses.siglip import siglip
from polyweft.losses.targets import Targets

MAX_LOGIT_SCALE = math.log(100.0)
"""CLIP clamps the logit scale here, so that similarities are multiplied by 100 at most."""

EXCLUDED = -1e4
"""The logit of a column that takes no part: its probability is 0, and 0 times its logarithm is 0."""


class ContrastParams(Section):
    """`model.contrast`: how embeddings of a sample's modalities are drawn together."""

    loss: Literal["infonce", "siglip"]
    weight: float = Field(default=1.0, ge=0.0, le=1000.0)
    soft_targets: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="share of the targets that similarity within modalities gives",
    )
    hard_negatives: float = Field(
        default=0.0, ge=0.0, le=10.0, description="how much more near negatives weigh; 0: all weigh alike"
    )
    within_weight: float = Field(
        default=0.0, ge=0.0, le=1000.0, description="weight of the contrast within each modality"
    )
    chunk: int = Field(default=1024, ge=1, description="columns of SigLIP's matrix held at a time")

    @model_validator(mode="after")
    def _options_of_infonce(self) -> ContrastParams:
        if self.loss == "siglip" and (self.soft_targets or self.hard_negatives):
            raise ValueError("soft_targets and hard_negatives belong to infonce; set them to 0 with siglip")
        return self


class Scale(nn.Module):
    """The factor on cosines and, for SigLIP, the bias: learnt, given as outputs a row.

    It starts at 1 / 0.07 (Radford et al., 2021); for SigLIP at 10 with bias -10 (Zhai et al., 2023).
    """

    def __init__(self, loss: Literal["infonce", "siglip"]) -> None:
        super().__init__()
        sigmoid = loss == "siglip"
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10.0 if sigmoid else 1.0 / 0.07)))
        self.bias = nn.Parameter(torch.tensor(-10.0)) if sigmoid else None

    def forward(self, rows: int) -> dict[str, Tensor]:
        """`scale` (B,) and, for SigLIP, `bias` (B,): the same number in every row."""
        outputs = {"scale": self.logit_scale.exp().expand(rows)}
        # A copy: a view of a parameter asks for gradients even where they are off.
        return outputs if self.bias is None else outputs | {"bias": self.bias.expand(rows).clone()}

    def clamp(self) -> None:
        """Bring the factor back into 1 to 100; call it after each step."""
        with torch.no_grad():
            self.logit_scale.clamp_(0.0, MAX_LOGIT_SCALE)

    def facts(self) -> dict[str, float]:
        """The temperature, which is 1 / the factor."""
        return {"temperature": math.exp(-float(self.logit_scale.detach()))}


def contrast(
    outputs: Mapping[str, Tensor], targets: Targets, modalities: Sequence[str], params: ContrastParams
) -> dict[str, Tensor]:
    """The weighted losses that `params` asks for, from a family's outputs.

    Parameters
    ----------
    outputs
        `<modality>_embedding` (B, D) for each of `modalities`, and what `Scale` gives.

    Returns
    -------
    dict
        `contrastive`, and `within` where it has a weight: scalars whose mean over the processes is the loss
        of the joined batch.
    """
    rows = {
        name: Rows.gather(outputs[f"{name}_embedding"], targets.keys[name], targets.has(name))
        for name in modalities
    }
    # Every row holds the same number: one of them, so that the value is exact.
    scale = outputs["scale"][0].float()
    bias = outputs["bias"][0].float() if "bias" in outputs else None
    losses = {"contrastive": params.weight * pairwise(rows, scale, bias, params)}
    if params.within_weight:
        losses["within"] = params.within_weight * within(rows, scale)
    return losses


def pairwise(rows: Mapping[str, Rows], scale: Tensor, bias: Tensor | None, params: ContrastParams) -> Tensor:
    """The mean of the contrast over all pairs of modalities, each over the rows that hold both.

    AudioCLIP (Guzhov et al., 2022) sums the pairs of three modalities; ImageBind (Girdhar et al., 2023)
    takes those that the data hold. A pair that no row of the global batch holds is not counted.

    Returns
    -------
    Tensor
        A scalar whose mean over the processes is the loss of the joined batch.
    """
    terms, counted = [], []
    for a, b in itertools.combinations(rows.values(), 2):
        if params.loss == "siglip":
            assert bias is not None, "SigLIP needs a bias: make `Scale` with loss='siglip'"
            terms.append(siglip(a, b, scale, bias, chunk=params.chunk))
        else:
            options = {"soft_targets": params.soft_targets, "hard_negatives": params.hard_negatives}
            terms.append(info_nce(a, b, scale, **options))
        counted.append((a.there_G & b.there_G).any())
    return torch.stack(terms).sum() / torch.stack(counted).sum().clamp(min=1)


def info_nce(
    a: Rows, b: Rows, scale: Tensor, *, soft_targets: float = 0.0, hard_negatives: float = 0.0
) -> Tensor:
    """InfoNCE in both directions (van den Oord et al., 2018; Radford et al., 2021), with several positives.

    Row i's positives are all rows whose content in either modality is the same as its own: equal keys. With
    P(i) the positives of i and s the scaled cosine, the term of a direction is
    `-mean_i [ 1/|P(i)| sum_{j in P(i)} log softmax_j s(i, j) ]` (Khosla et al., 2020, L_out).

    Parameters
    ----------
    scale
        The factor on cosines, a scalar.
    soft_targets
        The targets are mixed, with this share, with the softmax of the mean of both modalities' scaled
        cosines among themselves, as in SoftCLIP (Gao et al., 2024): what looks and reads alike is no full
        negative. No gradient flows through them.
    hard_negatives
        Beta of Robinson et al. (2021), in the form for two modalities of HN-NCE (Radenovic et al., 2023):
        negative j of row i, among all processes' rows, counts in the denominator as often as its importance
        `exp(beta s(i, j))`, normalised to a mean of 1, says. No gradient flows through these weights.

    Returns
    -------
    Tensor
        A scalar whose mean over the processes is the loss of the joined batch.
    """
    there_B, there_G = a.there_B & b.there_B, a.there_G & b.there_G
    positive_BG = (a.same() | b.same()) & there_G[None]
    targets_BG = positive_BG / positive_BG.sum(dim=1, keepdim=True).clamp(min=1)
    if soft_targets:
        with torch.no_grad():
            alike_BG = scale * (cosines(a.x_BD, a.x_GD) + cosines(b.x_BD, b.x_GD)) / 2
            alike_BG = alike_BG.masked_fill(~there_G[None], EXCLUDED).softmax(dim=1)
            targets_BG = (1 - soft_targets) * targets_BG + soft_targets * alike_BG
    terms_B = a.x_BD.new_zeros(len(there_B))
    for queries_BD, gallery_GD in ((a.x_BD, b.x_GD), (b.x_BD, a.x_GD)):
        logits_BG = (scale * cosines(queries_BD, gallery_GD)).masked_fill(~there_G[None], EXCLUDED)
        counts_BG = _importance(logits_BG, there_G[None] & ~positive_BG, hard_negatives)
        log_partition_B1 = (logits_BG + counts_BG).logsumexp(dim=1, keepdim=True)
        terms_B = terms_B - (targets_BG * (logits_BG - log_partition_B1)).sum(dim=1) / 2
    return mean_of_rows(terms_B, there_B)


def within(rows: Mapping[str, Rows], scale: Tensor) -> Tensor:
    """Supervised contrast within each modality (Khosla et al., 2020, L_out), averaged over modalities.

    Row i's positives are the other rows that share a key with it in any modality: two pictures of one
    caption, two captions of one picture. Rows without such a partner take no part as queries.

    Returns
    -------
    Tensor
        A scalar whose mean over the processes is the loss of the joined batch.
    """
    parts = list(rows.values())
    shares_BG = torch.stack([part.same() for part in parts]).any(dim=0)
    count_B = torch.arange(len(shares_BG), device=shares_BG.device)
    others_BG = torch.ones_like(shares_BG)
    others_BG[count_B, count_B + first_row(len(shares_BG))] = False
    terms, counted = [], []
    for part in parts:
        seen_BG = part.there_G[None] & others_BG
        positive_BG = shares_BG & seen_BG
        logits_BG = (scale * cosines(part.x_BD, part.x_GD)).masked_fill(~seen_BG, EXCLUDED)
        positives_B = positive_BG.sum(dim=1)
        targets_BG = positive_BG / positives_B[:, None].clamp(min=1)
        terms_B = -(targets_BG * logits_BG.log_softmax(dim=1)).sum(dim=1)
        queries_B = (positives_B > 0) & part.there_B
        terms.append(mean_of_rows(terms_B, queries_B))
        counted.append(total(queries_B.sum()) > 0)
    return torch.stack(terms).sum() / torch.stack(counted).sum().clamp(min=1)


def _importance(logits_BG: Tensor, negative_BG: Tensor, beta: float) -> Tensor:
    """Logarithms of the weights of the negatives, 0 elsewhere, without gradients."""
    if beta == 0.0:
        return torch.zeros_like(logits_BG)
    with torch.no_grad():
        weights_BG = (beta * logits_BG).masked_fill(~negative_BG, -math.inf)
        count_B1 = negative_BG.sum(dim=1, keepdim=True)
        mean_B1 = weights_BG.logsumexp(dim=1, keepdim=True) - count_B1.clamp(min=1).log()
        return torch.where(negative_BG, weights_BG - mean_B1, 0.0)
