"""A pre-norm Transformer encoder, shared by the towers that need one.

Shape suffixes: B rows, L positions, D width, H heads, K width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al., 2017).

    On a CPU it is written out, elsewhere it is `scaled_dot_product_attention`: for 65 positions in bf16 the
    written form takes 30 ms, forward and backward, where the fused one takes 142 ms and its plain fallback
    73 ms (128 rows, 4 heads of 64, one core). The three input projections are separate Linear layers: one
    fused projection is no faster here, and slower on a CPU with AMX. None has a bias: the LayerNorm before
    has one for the queries, the keys' would move all scores of a row alike, and the values' would come out as
    it went in, where the last layer has its own.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x_BLD: Tensor, mask: Tensor | None) -> Tensor:
        """(B, L, D) to (B, L, D).

        `mask` is boolean, True where a position may be looked at, and broadcasts to (B, H, L, L).
        """
        q_BHLK, k_BHLK, v_BHLK = (
            part(x_BLD).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        if x_BLD.device.type != "cpu":
            mixed_BHLK = functional.scaled_dot_product_attention(q_BHLK, k_BHLK, v_BHLK, attn_mask=mask)
        else:
            scores_BHLL = (q_BHLK * q_BHLK.shape[-1] ** -0.5) @ k_BHLK.transpose(2, 3)
            mixed_BHLK = _weights(scores_BHLL, mask) @ v_BHLK
        out: Tensor = self.out(mixed_BHLK.transpose(1, 2).flatten(2))
        return out

    def read(self, x_BLD: Tensor, at_BD: Tensor, mask: Tensor | None) -> Tensor:
        """What `forward` gives at one position a row, whose vectors are `at`: (B, D).

        With one query q a row, q (W x) is (q W) x, and the weighted sum of W x is W times the weighted sum
        of x: keys and values are never formed. `mask` broadcasts to (B, H, 1, L).
        """
        rows, width = at_BD.shape
        split = (self.heads, width // self.heads)
        q_HBK = self.query(at_BD).view(rows, *split).transpose(0, 1)
        key_HKD, value_HKD = (part.weight.view(*split, width) for part in (self.key, self.value))
        looked_BHD = ((q_HBK * q_HBK.shape[-1] ** -0.5) @ key_HKD).transpose(0, 1)
        scores_BHL = looked_BHD @ x_BLD.transpose(1, 2)
        weights_BHL = _weights(scores_BHL, None if mask is None else mask[:, :, 0])
        mixed_HBK = (weights_BHL @ x_BLD).transpose(0, 1) @ value_HKD.transpose(1, 2)
        out: Tensor = self.out(mixed_HBK.transpose(0, 1).flatten(1))
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

    def forward(self, x_BLD: Tensor, mask: Tensor | None, at_B: Tensor | None = None) -> Tensor:
        """(B, L, D) to (B, L, D); with `at`, only the vectors at these positions, (B, D)."""
        normed_BLD = self.norm1(x_BLD)
        if at_B is None:
            x = x_BLD + self.attention(normed_BLD, mask)
        else:
            x = vectors_at(x_BLD, at_B)
            x = x + self.attention.read(normed_BLD, vectors_at(normed_BLD, at_B), mask)
        out: Tensor = x + self.feed_forward(self.norm2(x))
        return out


class Transformer(nn.Module):
    """`layers` blocks and a final LayerNorm.

    Under bf16 autocast the vectors between blocks are bf16 too: LayerNorm and the sums then move half the
    memory, and nothing is cast back and forth. With `checkpointing` a block's inner values are computed again
    in the backward pass instead of being kept.
    """

    def __init__(self, width: int, layers: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.checkpointing = False

    def forward(self, x_BLD: Tensor, mask: Tensor | None = None, at_B: Tensor | None = None) -> Tensor:
        """(B, L, D) to (B, L, D); with `at`, only the vectors at these positions, (B, D).

        Parameters
        ----------
        mask
            Boolean, True where a position may be looked at; broadcasts to (B, H, L, L).
        at_B
            int64, the position to read in each row; the last block computes no other.
        """
        device = x_BLD.device.type
        if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) is torch.bfloat16:
            x_BLD = x_BLD.to(torch.bfloat16)
        x, last = x_BLD, len(self.blocks) - 1
        for number, block in enumerate(self.blocks):
            arguments = (x, mask, at_B if number == last else None)
            x = checkpoint(block, *arguments, use_reentrant=False) if self._again else block(*arguments)
        out: Tensor = self.norm(x)
        return out

    @property
    def _again(self) -> bool:
        return self.checkpointing and self.training and torch.is_grad_enabled()


def init_weights(module: nn.Module) -> None:
    """Truncated-normal Linear and Embedding weights (std 0.02), zero biases; use with `Module.apply`."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def first_position(ids_BT: Tensor, wanted: int) -> Tensor:
    """The first position of `wanted` in each row, int64 (B,); 0 where a row has none."""
    return (ids_BT == wanted).to(torch.int64).argmax(dim=1)


def vectors_at(x_BLD: Tensor, at_B: Tensor) -> Tensor:
    """The vector at one position of each row, (B, D)."""
    at_B1D = at_B[:, None, None].expand(-1, 1, x_BLD.shape[2])
    return x_BLD.gather(1, at_B1D).squeeze(1)


def _weights(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over the last axis, of the positions where `mask` is True."""
    if mask is not None:
        # Half the least number: a score added to the least would overflow.
        least = torch.finfo(scores.dtype).min / 2
        scores = scores + torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, least)
    return scores.softmax(dim=-1)
