"""BLIP's text decoder and matching encoder in one module (Li et al., 2022): text that looks at an image.

Read causally it gives the next token's logits; read in both directions it tells whether a text and an image
belong together. As in BLIP, the two ways share every weight but self-attention, and the logits are products
with the token embeddings. Shape suffixes: B rows, T tokens, L image positions (all zero: padding), F feature
size, W width, V vocabulary, H heads, K width of a head.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from polyweft.config import Section
from polyweft.errors import ConfigError
from polyweft.models.transformer import Attention, first_position, init_weights


class DecoderParams(Section):
    """`model.decoder`: width, layers, heads and dropout of the text decoder."""

    width: int = Field(ge=16, le=2048)
    layers: int = Field(ge=1, le=48)
    heads: int = Field(ge=1, le=32)
    dropout: float = Field(ge=0.0, lt=1.0)


class CrossAttention(nn.Module):
    """Text positions look at image positions; see `models.transformer.Attention`."""

    def __init__(self, width: int, memory_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.key, self.value = (nn.Linear(memory_width, width) for _ in range(2))

    def forward(self, x_BTW: Tensor, memory_BLF: Tensor, mask_B11L: Tensor) -> Tensor:
        """(B, T, W) to (B, T, W); `mask` is True at the image positions that may be looked at."""
        batch, length, width = x_BTW.shape
        q_BHTK, k_BHLK, v_BHLK = (
            part.view(batch, -1, self.heads, width // self.heads).transpose(1, 2)
            for part in (self.query(x_BTW), self.key(memory_BLF), self.value(memory_BLF))
        )
        mixed_BHTK = functional.scaled_dot_product_attention(q_BHTK, k_BHLK, v_BHLK, attn_mask=mask_B11L)
        out: Tensor = self.out(mixed_BHTK.transpose(1, 2).reshape(batch, length, width))
        return out


class DecoderBlock(nn.Module):
    """Self-attention (causal or both ways), cross-attention, feed-forward: each behind a LayerNorm."""

    def __init__(self, params: DecoderParams, memory_width: int) -> None:
        super().__init__()
        width = params.width
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.causal, self.both_ways = (Attention(width, params.heads) for _ in range(2))
        self.cross = CrossAttention(width, memory_width, params.heads)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(params.dropout)
        )

    def forward(
        self, x_BTW: Tensor, text_mask: Tensor, memory_BLF: Tensor, mask_B11L: Tensor, *, causal: bool
    ) -> Tensor:
        """(B, T, W) to (B, T, W); `text_mask` broadcasts to (B, H, T, T)."""
        attention = self.causal if causal else self.both_ways
        x_BTW = x_BTW + attention(self.norm1(x_BTW), text_mask)
        x_BTW = x_BTW + self.cross(self.norm2(x_BTW), memory_BLF, mask_B11L)
        out: Tensor = x_BTW + self.feed_forward(self.norm3(x_BTW))
        return out


class CaptionDecoder(nn.Module):
    """Token ids and image features to the next tokens' logits, or to a matching logit.

    Parameters
    ----------
    feature_size
        F.
    max_tokens
        The longest sequence, start and end included.
    """

    def __init__(
        self,
        params: DecoderParams,
        *,
        feature_size: int,
        vocabulary_size: int,
        max_tokens: int,
        end_id: int,
    ) -> None:
        super().__init__()
        if params.width % params.heads:
            raise ConfigError(
                f"model.decoder.heads {params.heads} does not divide its width {params.width}; "
                "choose heads that divide the width."
            )
        self.end_id, self.max_tokens = end_id, max_tokens
        self.tokens = nn.Embedding(vocabulary_size, params.width)
        self.positions = nn.Embedding(max_tokens, params.width)
        self.dropout = nn.Dropout(params.dropout)
        self.memory_norm = nn.LayerNorm(feature_size)
        self.blocks = nn.ModuleList(DecoderBlock(params, feature_size) for _ in range(params.layers))
        self.norm = nn.LayerNorm(params.width)
        self.logit_bias = nn.Parameter(torch.zeros(vocabulary_size))
        self.matching = nn.Linear(params.width, 1)
        self.apply(init_weights)

    def forward(self, ids_BT: Tensor, image_BLF: Tensor) -> Tensor:
        """Token ids int64 (B, T) and image features to logits float32 (B, T, V) of each next token."""
        places_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        before_11TT = (places_T[:, None] >= places_T[None])[None, None]
        x_BTW = self._read(ids_BT, before_11TT, image_BLF, causal=True)
        return functional.linear(x_BTW, self.tokens.weight, self.logit_bias).float()

    def match(self, ids_BT: Tensor, image_BLF: Tensor) -> Tensor:
        """A logit float32 (B,): above 0 where text and image belong together; read at the end token."""
        end_B = first_position(ids_BT, self.end_id)
        places_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        there_B11T = (places_T[None] <= end_B[:, None])[:, None, None]
        x_BTW = self._read(ids_BT, there_B11T, image_BLF, causal=False)
        at_B1W = end_B[:, None, None].expand(-1, 1, x_BTW.shape[2])
        logit_B: Tensor = self.matching(x_BTW.gather(1, at_B1W)[:, 0])[:, 0]
        return logit_B.float()

    def caption_loss(self, ids_BT: Tensor, image_BLF: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
        """Cross-entropy of each row's tokens after the start, with label smoothing, and their number.

        Both float32 (B,); the first is a sum over the tokens up to the end token.
        """
        logits_BVT = self(ids_BT[:, :-1], image_BLF).transpose(1, 2)
        next_BT = ids_BT[:, 1:]
        counted_BT = torch.arange(next_BT.shape[1], device=ids_BT.device) < first_position(
            ids_BT, self.end_id
        ).unsqueeze(1)
        terms_BT = functional.cross_entropy(logits_BVT, next_BT, reduction="none", label_smoothing=smoothing)
        return (terms_BT * counted_BT).sum(dim=1), counted_BT.sum(dim=1).float()

    def _read(self, ids_BT: Tensor, text_mask: Tensor, image_BLF: Tensor, *, causal: bool) -> Tensor:
        there_BL = (image_BLF != 0).any(dim=2)
        # A row without an image looks at all of its zeros: a softmax over nothing is not a number.
        mask_B11L = (there_BL | ~there_BL.any(dim=1, keepdim=True))[:, None, None]
        memory_BLF = self.memory_norm(image_BLF)
        places_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        x_BTW = self.dropout(self.tokens(ids_BT) + self.positions(places_T)[None])
        for block in self.blocks:
            x_BTW = block(x_BTW, text_mask, memory_BLF, mask_B11L, causal=causal)
        out: Tensor = self.norm(x_BTW)
        return out
