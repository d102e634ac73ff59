"""Text tower: a bidirectional Transformer, read at the end token as CLIP does (Radford et al., 2021).

Shape suffixes: B rows, T tokens, D width.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from polyweft.config import Section
from polyweft.errors import ConfigError
from polyweft.models.transformer import Transformer, first_position, init_weights


class TextParams(Section):
    """`model.text`: width, layers, heads and dropout of the text tower."""

    width: int = Field(ge=16, le=2048)
    layers: int = Field(ge=1, le=48)
    heads: int = Field(ge=1, le=32)
    dropout: float = Field(ge=0.0, lt=1.0)


class TextTransformer(nn.Module):
    """Token ids to one feature vector.

    Positions after a row's first end token are padding, whatever their id; they are not looked at.
    """

    def __init__(self, params: TextParams, *, vocabulary_size: int, max_tokens: int, end_id: int) -> None:
        super().__init__()
        if params.width % params.heads:
            raise ConfigError(
                f"model.text.heads {params.heads} does not divide its width {params.width}; "
                "choose heads that divide the width."
            )
        self.end_id = end_id
        self.tokens = nn.Embedding(vocabulary_size, params.width)
        self.positions = nn.Embedding(max_tokens, params.width)
        self.dropout = nn.Dropout(params.dropout)
        self.transformer = Transformer(params.width, params.layers, params.heads, params.dropout)
        self.apply(init_weights)
        self.out_features = params.width

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Token ids int64 (B, T), T at most `max_tokens`, to features (B, D)."""
        end_B = first_position(ids_BT, self.end_id)
        places_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        mask_B11T = (places_T[None, :] <= end_B[:, None])[:, None, None, :]
        x_BTD = self.dropout(self.tokens(ids_BT) + self.positions(places_T)[None])
        x_BTD = self.transformer(x_BTD, mask_B11T)
        at_B1D = end_B[:, None, None].expand(-1, 1, x_BTD.shape[2])
        out: Tensor = x_BTD.gather(1, at_B1D).squeeze(1)
        return out
