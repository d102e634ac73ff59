"""Text tower: a bidirectional Transformer, read at the end token as CLIP (Radford et al., 2021), or averaged.

Shape suffixes: B rows, T tokens, D width.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from polyweft.config import Section
from polyweft.errors import ConfigError
from polyweft.models.transformer import Transformer, first_position, init_weights
from polyweft.models.words import WordTable


class TextParams(Section):
    """`model.encoders.text.transformer`."""

    width: int = Field(ge=16, le=2048)
    layers: int = Field(ge=1, le=48)
    heads: int = Field(ge=1, le=32)
    dropout: float = Field(ge=0.0, lt=1.0)
    pool: Literal["end", "mean"] = Field(default="end", description="the end token, or the mean")


class TextTransformer(nn.Module):
    """Token ids to one feature vector.

    Takes int64 (B, T), T at most `max_tokens`. Positions after a row's first end token are padding, whatever
    their id; they are not looked at.
    """

    def __init__(self, params: TextParams, *, vocabulary_size: int, max_tokens: int, end_id: int) -> None:
        super().__init__()
        if params.width % params.heads:
            raise ConfigError(
                f"model.encoders.text.transformer.heads {params.heads} does not divide its width "
                f"{params.width}; choose heads that divide the width."
            )
        self.end_id, self.pool = end_id, params.pool
        self.words = WordTable(vocabulary_size, params.width)
        self.positions = nn.Embedding(max_tokens, params.width)
        self.dropout = nn.Dropout(params.dropout)
        self.transformer = Transformer(params.width, params.layers, params.heads, params.dropout)
        self.apply(init_weights)
        self.out_features = params.width

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Features (B, D)."""
        if self.pool == "mean":
            tokens_BTD = self.tokens(ids_BT)
            mean: Tensor = tokens_BTD.sum(dim=1) / (tokens_BTD != 0).any(dim=2).sum(dim=1, keepdim=True)
            return mean
        there_BT, end_B = self._extent(ids_BT)
        out: Tensor = self.transformer(self._embed(ids_BT), there_BT[:, None, None], at_B=end_B)
        return out

    def tokens(self, ids_BT: Tensor) -> Tensor:
        """(B, T, D); zeros at padding."""
        there_BT, _ = self._extent(ids_BT)
        x_BTD = self.transformer(self._embed(ids_BT), there_BT[:, None, None])
        out: Tensor = x_BTD * there_BT[:, :, None]
        return out

    def _extent(self, ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Where a row has tokens, boolean (B, T), and where its end is, int64 (B,)."""
        end_B = first_position(ids_BT, self.end_id)
        places_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        return places_T[None] <= end_B[:, None], end_B

    def _embed(self, ids_BT: Tensor) -> Tensor:
        places_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        x_BTD: Tensor = self.dropout(self.words(ids_BT) + self.positions(places_T))
        return x_BTD
