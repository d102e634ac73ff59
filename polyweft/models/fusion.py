"""Fusions: the features of several modalities to one vector (or, `late`, to one decision) a row.

Each takes a list of features, (B, F) or positions (B, L, F) whose padding is all zero, and `present` (B, M),
1 where a row has the modality; at least one modality of each row is present. What is absent changes nothing,
but for `early` and `gated`, which read a learnt or reconstructed vector in its place.

Shape suffixes: B rows, M modalities, L positions, F feature size, D width of a fusion, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from polyweft.models.transformer import Transformer

FusionName = Literal["early", "weighted", "attention", "gated", "mid", "hierarchical", "late"]
FUSIONS: tuple[str, ...] = get_args(FusionName)

TOKEN_FUSIONS = ("attention", "mid")
"""Those that attend to positions: towers give them (B, L, F). The others pool positions."""


def pooled(x: Tensor) -> Tensor:
    """The mean (B, F) over the positions (B, L, F) that are not padding; pooled features stay as they are."""
    if x.ndim == 2:
        return x
    there_BL1 = _there(x)[:, :, None].to(x.dtype)
    return (x * there_BL1).sum(dim=1) / there_BL1.sum(dim=1).clamp(min=1.0)


class Early(nn.Module):
    """The features side by side; `width` is M times F."""

    def __init__(self, modalities: int, feature_size: int) -> None:
        super().__init__()
        self.width = modalities * feature_size

    def forward(self, features: Sequence[Tensor], present_BM: Tensor) -> Tensor:
        """See the module."""
        return torch.cat([pooled(x) for x in features], dim=1)


class Weighted(nn.Module):
    """The sum of the features, each times a learnt weight; the weights of those present sum to 1."""

    def __init__(self, modalities: int, feature_size: int) -> None:
        super().__init__()
        self.width = feature_size
        self.weights = Weights(modalities)

    def forward(self, features: Sequence[Tensor], present_BM: Tensor) -> Tensor:
        """See the module."""
        out: Tensor = self.weights([pooled(x) for x in features], present_BM)
        return out


class Weights(nn.Module):
    """Sums what modalities give, by the softmax over those present of one learnt number each."""

    def __init__(self, modalities: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(modalities))

    def forward(self, parts: Sequence[Tensor], present_BM: Tensor) -> Tensor:
        """M tensors (B, D) to one."""
        scores_BM = self.scores.expand(present_BM.shape).masked_fill(present_BM <= 0, -torch.inf)
        stacked_BMD = torch.stack(list(parts), dim=1)
        return (stacked_BMD * scores_BM.softmax(dim=1)[:, :, None]).sum(dim=1)


class Gated(nn.Module):
    """A gate for each feature of each modality: the gated multimodal unit (Arevalo et al., 2017).

    The gates look at all modalities, absent ones' vectors included; they sum to 1 over those present.
    """

    def __init__(self, modalities: int, feature_size: int) -> None:
        super().__init__()
        self.width, self.modalities = feature_size, modalities
        self.values = nn.ModuleList(nn.Linear(feature_size, feature_size) for _ in range(modalities))
        self.gates = nn.Linear(modalities * feature_size, modalities * feature_size)

    def forward(self, features: Sequence[Tensor], present_BM: Tensor) -> Tensor:
        """See the module."""
        parts = [pooled(x) for x in features]
        gates_BMF = self.gates(torch.cat(parts, dim=1)).unflatten(1, (self.modalities, self.width))
        gates_BMF = gates_BMF.masked_fill(present_BM[:, :, None] <= 0, -torch.inf).softmax(dim=1)
        values_BMF = torch.stack(
            [layer(part).tanh() for layer, part in zip(self.values, parts, strict=True)], dim=1
        )
        out: Tensor = (gates_BMF * values_BMF).sum(dim=1)
        return out


class Hierarchical(nn.Module):
    """The first two modalities are joined, the result with the third, and so on.

    A step reads both sides and their product; a side that is absent leaves the other as it is.
    """

    def __init__(self, modalities: int, feature_size: int) -> None:
        super().__init__()
        self.width = feature_size
        self.steps = nn.ModuleList(
            nn.Sequential(
                nn.Linear(3 * feature_size, feature_size),
                nn.GELU(),
                nn.Linear(feature_size, feature_size),
                nn.LayerNorm(feature_size),
            )
            for _ in range(modalities - 1)
        )

    def forward(self, features: Sequence[Tensor], present_BM: Tensor) -> Tensor:
        """See the module."""
        state_BF, known_B1 = pooled(features[0]), present_BM[:, :1] > 0
        for index, step in enumerate(self.steps, start=1):
            next_BF, there_B1 = pooled(features[index]), present_BM[:, index : index + 1] > 0
            joined_BF = step(torch.cat([state_BF, next_BF, state_BF * next_BF], dim=1))
            alone_BF = torch.where(known_B1, state_BF, next_BF)
            state_BF = torch.where(known_B1 & there_B1, joined_BF, alone_BF)
            known_B1 = known_B1 | there_B1
        return state_BF


class Mid(nn.Module):
    """One Transformer over the positions of all modalities and a class token, which is the result.

    Positions are marked by a learnt vector a modality, as in MBT's plain form (Nagrani et al., 2021).
    """

    def __init__(self, modalities: int, feature_size: int, heads: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.width = feature_size
        self.class_token = nn.Parameter(torch.empty(1, 1, feature_size).normal_(std=0.02))
        self.marks = nn.Parameter(torch.empty(modalities, feature_size).normal_(std=0.02))
        self.transformer = Transformer(feature_size, layers, heads, dropout)

    def forward(self, features: Sequence[Tensor], present_BM: Tensor) -> Tensor:
        """See the module."""
        tokens, there = _positions(features, present_BM)
        class_B1F = self.class_token.expand(present_BM.shape[0], -1, -1)
        marked = [x_BLF + mark_F for x_BLF, mark_F in zip(tokens, self.marks, strict=True)]
        always_B1 = present_BM[:, :1] == present_BM[:, :1]
        mask_BL = torch.cat([always_B1, *there], dim=1)
        x_BLF = self.transformer(torch.cat([class_B1F, *marked], dim=1), mask_BL[:, None, None, :])
        out: Tensor = x_BLF[:, 0]
        return out


class CrossBlock(nn.Module):
    """Positions of one modality look at those of the others (as in ViLBERT, Lu et al., 2019)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )

    def forward(self, x_BLF: Tensor, others_BKF: Tensor, mask_BK: Tensor) -> Tensor:
        """(B, L, F) to (B, L, F); `mask` is True where a position may be looked at, at least once a row."""
        others_BKF = self.norm2(others_BKF)
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(self.norm1(x_BLF)), self.key(others_BKF), self.value(others_BKF))
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask_BK[:, None, None, :])
        x_BLF = x_BLF + self.out(mixed.transpose(1, 2).flatten(2))
        out: Tensor = x_BLF + self.feed_forward(self.norm3(x_BLF))
        return out


class CrossLayer(nn.Module):
    """A block a modality: each modality's positions look at all others' positions."""

    def __init__(self, modalities: int, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(CrossBlock(width, heads, dropout) for _ in range(modalities))

    def forward(self, tokens: Sequence[Tensor], there: Sequence[Tensor]) -> list[Tensor]:
        """M times (B, L, F) to the same, and one more in `tokens` that every modality may look at."""
        out = []
        for index, block in enumerate(self.blocks):
            others = [other for other in range(len(tokens)) if other != index]
            memory_BKF = torch.cat([tokens[other] for other in others], dim=1)
            mask_BK = torch.cat([there[other] for other in others], dim=1)
            out.append(block(tokens[index], memory_BKF, mask_BK))
        return out


class CrossAttention(nn.Module):
    """Each modality's positions look at all others' positions, both ways; then their means side by side.

    A learnt position that is always there stands among the others', so that a modality that is alone has
    something to look at. `width` is M times F; what is absent is zero.
    """

    def __init__(self, modalities: int, feature_size: int, heads: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.width = modalities * feature_size
        self.alone = nn.Parameter(torch.empty(1, 1, feature_size).normal_(std=0.02))
        self.marks = nn.Parameter(torch.empty(modalities, feature_size).normal_(std=0.02))
        self.layers = nn.ModuleList(
            CrossLayer(modalities, feature_size, heads, dropout) for _ in range(layers)
        )

    def forward(self, features: Sequence[Tensor], present_BM: Tensor) -> Tensor:
        """See the module."""
        tokens, there = _positions(features, present_BM)
        tokens = [x_BLF + mark_F for x_BLF, mark_F in zip(tokens, self.marks, strict=True)]
        alone_B1F = self.alone.expand(present_BM.shape[0], -1, -1)
        always_B1 = present_BM[:, :1] == present_BM[:, :1]
        for layer in self.layers:
            tokens = layer([*tokens, alone_B1F], [*there, always_B1])
        means = [
            (x_BLF * there_BL[:, :, None]).sum(dim=1) / there_BL.sum(dim=1, keepdim=True).clamp(min=1)
            for x_BLF, there_BL in zip(tokens, there, strict=True)
        ]
        return torch.cat(means, dim=1)


class Late(nn.Module):
    """A decision a modality, by a network of its own, and the mean over those present: plain or weighted.

    Decisions are logits (and values, of a regression): their mean is a geometric mean of probabilities.
    `width` is the number of outputs.
    """

    def __init__(self, networks: Sequence[nn.Module], outputs: int, *, weighted: bool) -> None:
        super().__init__()
        self.width = outputs
        self.networks = nn.ModuleList(networks)
        self.weights = Weights(len(networks)) if weighted else None

    def forward(self, features: Sequence[Tensor], present_BM: Tensor) -> Tensor:
        """See the module; (B, O)."""
        decisions = [network(pooled(x)) for network, x in zip(self.networks, features, strict=True)]
        if self.weights is not None:
            out: Tensor = self.weights(decisions, present_BM)
            return out
        share_BM = present_BM / present_BM.sum(dim=1, keepdim=True)
        return (torch.stack(decisions, dim=1) * share_BM[:, :, None]).sum(dim=1)


def build_fusion(
    name: FusionName,
    modalities: int,
    feature_size: int,
    *,
    heads: int,
    layers: int,
    dropout: float,
    decide: Callable[[], nn.Module],
    outputs: int,
    weighted: bool,
) -> nn.Module:
    """A fusion with fresh weights; its `width` is the size of what it gives.

    Parameters
    ----------
    heads, layers, dropout
        Of `attention` and `mid`.
    decide, outputs, weighted
        Of `late`: makes a modality's network, (B, F) to (B, O); O; whether decisions are weighted.
    """
    if name == "late":
        return Late([decide() for _ in range(modalities)], outputs, weighted=weighted)
    if name == "attention":
        return CrossAttention(modalities, feature_size, heads, layers, dropout)
    if name == "mid":
        return Mid(modalities, feature_size, heads, layers, dropout)
    pooling = {"early": Early, "weighted": Weighted, "gated": Gated, "hierarchical": Hierarchical}
    return pooling[name](modalities, feature_size)


def _there(x_BLF: Tensor) -> Tensor:
    """Boolean (B, L): the positions that are not padding."""
    return (x_BLF != 0).any(dim=2)


def _positions(features: Sequence[Tensor], present_BM: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Each modality's positions (B, L, F), and which of them are there (B, L); pooled features are one."""
    tokens = [x[:, None] if x.ndim == 2 else x for x in features]
    there = [_there(x_BLF) & (present_BM[:, m : m + 1] > 0) for m, x_BLF in enumerate(tokens)]
    return tokens, there
