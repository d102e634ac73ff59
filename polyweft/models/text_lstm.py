"""Text tower: a bidirectional LSTM (Hochreiter and Schmidhuber, 1997; Graves and Schmidhuber, 2005).

Takes token ids; a token of the output is a token of the text. Shape suffixes: B rows, T tokens, E embedding
width, H hidden width of a direction, F = 2 H features, G = 4 H gates.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from polyweft.config import Section
from polyweft.models.transformer import first_position, init_weights
from polyweft.models.words import WordTable


class LstmParams(Section):
    """`lstm` of a text encoder: width of the word vectors, hidden width of each direction, layers."""

    width: int = Field(ge=8, le=2048)
    hidden: int = Field(ge=8, le=2048)
    layers: int = Field(default=1, ge=1, le=8)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)


class TextLstm(nn.Module):
    """Token ids to one feature vector, the mean over a text's tokens.

    Positions after a row's first end token are padding, whatever their id; they are not looked at.
    """

    def __init__(self, params: LstmParams, *, vocabulary_size: int, end_id: int) -> None:
        super().__init__()
        self.end_id = end_id
        self.embedding = WordTable(vocabulary_size, params.width)
        init_weights(self.embedding)
        self.dropout = nn.Dropout(params.dropout)
        widths = [params.width] + [2 * params.hidden] * (params.layers - 1)
        self.layers = nn.ModuleList(
            nn.LSTM(width, params.hidden, batch_first=True, bidirectional=True) for width in widths
        )
        self.out_features = 2 * params.hidden

    def tokens(self, ids_BT: Tensor) -> Tensor:
        """Token ids int64 (B, T) to a vector a token (B, T, F), zero behind a text's end."""
        length_B = first_position(ids_BT, self.end_id) + 1
        x_BTE = self.dropout(self.embedding(ids_BT)).float()
        # Gates saturate and errors add up over time: this runs in float32 under autocast too.
        with torch.autocast(ids_BT.device.type, enabled=False):
            for layer in self.layers:
                assert isinstance(layer, nn.LSTM)
                exporting = torch.compiler.is_exporting()
                run = _onnx_layer if exporting else _packed_layer
                x_BTE = self.dropout(run(layer, x_BTE, length_B))
        there_BT1 = (torch.arange(ids_BT.shape[1], device=ids_BT.device) < length_B[:, None])[:, :, None]
        out: Tensor = x_BTE * there_BT1
        return out

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Token ids int64 (B, T) to features (B, F)."""
        length_B1 = first_position(ids_BT, self.end_id)[:, None] + 1
        return self.tokens(ids_BT).sum(dim=1) / length_B1


def _packed_layer(layer: nn.LSTM, x_BTE: Tensor, length_B: Tensor) -> Tensor:
    packed = pack_padded_sequence(x_BTE, length_B.cpu(), batch_first=True, enforce_sorted=False)
    out, _ = pad_packed_sequence(layer(packed)[0], batch_first=True, total_length=x_BTE.shape[1])
    return out


def _onnx_layer(layer: nn.LSTM, x_BTE: Tensor, length_B: Tensor) -> Tensor:
    """The same as one node of ONNX: the exporter would unroll the LSTM over a fixed number of tokens."""
    hidden = layer.hidden_size

    def both(name: str) -> Tensor:
        # torch orders the gates i, f, g, o; ONNX i, o, f, g.
        parts = [getattr(layer, name + end) for end in ("_l0", "_l0_reverse")]
        ordered = [part.unflatten(0, (4, hidden))[[0, 3, 1, 2]].flatten(0, 1) for part in parts]
        return torch.stack(ordered)

    x_TBE = x_BTE.transpose(0, 1)
    biases = torch.cat([both("bias_ih"), both("bias_hh")], dim=1)
    out_T2BH: Tensor = torch.onnx.ops.symbolic(
        "LSTM",
        (x_TBE, both("weight_ih"), both("weight_hh"), biases, length_B.to(torch.int32)),
        attrs={"hidden_size": hidden, "direction": "bidirectional"},
        dtype=torch.float32,
        shape=(x_TBE.shape[0], 2, x_TBE.shape[1], hidden),
    )
    return out_T2BH.permute(2, 0, 1, 3).flatten(2)
