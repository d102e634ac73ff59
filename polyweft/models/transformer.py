"""A pre-norm Transformer encoder, shared by the towers that need one.

Shape suffixes: B rows, L positions, D width, H heads, K width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al., 2017) over scaled_dot_product_attention.

    The three input projections are separate Linear layers: on CPU in bf16 that took 757 ms where one fused
    projection took 922 ms (six ViT-B blocks, forward and backward).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x_BLD: Tensor, mask_B11L: Tensor | None) -> Tensor:
        """Attend within each row; `mask` is True at the positions that may be looked at."""
        batch, length, width = x_BLD.shape
        q_BHLK, k_BHLK, v_BHLK = (
            part(x_BLD).view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        mixed_BHLK = functional.scaled_dot_product_attention(q_BHLK, k_BHLK, v_BHLK, attn_mask=mask_B11L)
        out: Tensor = self.out(mixed_BHLK.transpose(1, 2).reshape(batch, length, width))
        return out


class Block(nn.Module):
    """Attention and a four times wider feed-forward layer, each behind a LayerNorm and a residual."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )

    def forward(self, x_BLD: Tensor, mask_B11L: Tensor | None) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        x_BLD = x_BLD + self.attention(self.norm1(x_BLD), mask_B11L)
        out: Tensor = x_BLD + self.feed_forward(self.norm2(x_BLD))
        return out


class Transformer(nn.Module):
    """`layers` blocks and a final LayerNorm."""

    def __init__(self, width: int, layers: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, x_BLD: Tensor, mask_B11L: Tensor | None = None) -> Tensor:
        """(B, L, D) to (B, L, D); `mask` is boolean, True where a position may be looked at."""
        for block in self.blocks:
            x_BLD = block(x_BLD, mask_B11L)
        out: Tensor = self.norm(x_BLD)
        return out


def init_weights(module: nn.Module) -> None:
    """Truncated-normal Linear and Embedding weights (std 0.02), zero biases; use with `Module.apply`."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def first_position(ids_BT: Tensor, wanted: int) -> Tensor:
    """The first position of `wanted` in each row, int64 (B,); 0 where a row has none."""
    return (ids_BT == wanted).to(torch.int64).argmax(dim=1)
