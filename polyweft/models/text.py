"""Modality `text`: its section and the choice of its tower; the tokenizer comes with the data."""

from __future__ import annotations

from typing import Any

from torch import nn

from polyweft.data.text import Reader as TextReader
from polyweft.models.text_transformer import TextParams, TextTransformer


class Params(TextParams):
    """`model.encoders.text`."""


def reader_spec(params: Params) -> dict[str, Any]:
    """Nothing: the tokenizer's files stand beside the model."""
    return {}


def build(params: Params, reader: TextReader) -> nn.Module:
    """The tower; it takes token ids int64 (B, T)."""
    tokenizer = reader.tokenizer
    return TextTransformer(
        params,
        vocabulary_size=tokenizer.vocabulary_size,
        max_tokens=tokenizer.max_tokens,
        end_id=tokenizer.end_id,
    )
