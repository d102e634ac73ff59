"""Text tower: the mean of the tokens' vectors through a small network, for short texts such as names.

Shape suffixes: B rows, T tokens, W width, H hidden, F features.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from polyweft.config import Section
from polyweft.models.transformer import first_position
from polyweft.models.words import WordTable


class BagParams(Section):
    """`bag` of a text encoder: width of the tokens' vectors, of the hidden layer, and of the features."""

    width: int = Field(ge=8, le=2048)
    hidden: int = Field(ge=8, le=8192)
    features: int = Field(ge=8, le=8192)


class TextBag(nn.Module):
    """Token ids to one feature vector; start, end and padding are not looked at, nor is the order."""

    def __init__(self, params: BagParams, *, vocabulary_size: int, end_id: int) -> None:
        super().__init__()
        self.end_id = end_id
        self.embedding = WordTable(vocabulary_size, params.width)
        nn.init.normal_(self.embedding.weight, std=0.05)
        self.layers = nn.Sequential(
            nn.LayerNorm(params.width),
            nn.Linear(params.width, params.hidden),
            nn.GELU(),
            nn.Linear(params.hidden, params.features),
        )
        self.out_features = params.features

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Token ids int64 (B, T) to features (B, F)."""
        words_BTW, there_BT1 = self._words(ids_BT)
        mean_BW = words_BTW.sum(dim=1) / there_BT1.sum(dim=1).clamp(min=1)
        out: Tensor = self.layers(mean_BW)
        return out

    def tokens(self, ids_BT: Tensor) -> Tensor:
        """Token ids to a vector a token (B, T, F), zero at start, end and padding."""
        words_BTW, there_BT1 = self._words(ids_BT)
        out: Tensor = self.layers(words_BTW) * there_BT1
        return out

    def _words(self, ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        place_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        there_BT = (place_T > 0) & (place_T < first_position(ids_BT, self.end_id)[:, None])
        there_BT1 = there_BT[:, :, None].to(self.embedding.weight.dtype)
        return self.embedding(ids_BT) * there_BT1, there_BT1
