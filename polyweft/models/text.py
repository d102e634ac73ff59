"""Modality `text`: its section and the choice of its tower; the tokenizer comes with the data."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator
from torch import nn

from polyweft.config import Section
from polyweft.data.text import Reader as TextReader
from polyweft.models.text_bag import BagParams, TextBag
from polyweft.models.text_lstm import LstmParams, TextLstm
from polyweft.models.text_transformer import TextParams, TextTransformer


class Params(Section):
    """`model.encoders.text`: which tower reads the tokens."""

    tower: Literal["transformer", "lstm", "bag"]
    transformer: TextParams | None = None
    lstm: LstmParams | None = None
    bag: BagParams | None = None

    @model_validator(mode="after")
    def _has_its_tower(self) -> Params:
        if getattr(self, self.tower) is None:
            raise ValueError(f"tower is {self.tower!r}, but there is no section `{self.tower}`; add it")
        return self


def reader_spec(params: Params) -> dict[str, Any]:
    """Nothing: the tokenizer's files stand beside the model."""
    return {}


def build(params: Params, reader: TextReader) -> nn.Module:
    """The tower that `params.tower` names; it takes token ids int64 (B, T)."""
    tokenizer = reader.tokenizer
    if params.tower == "lstm":
        assert params.lstm is not None
        return TextLstm(params.lstm, vocabulary_size=tokenizer.vocabulary_size, end_id=tokenizer.end_id)
    if params.tower == "bag":
        assert params.bag is not None
        return TextBag(params.bag, vocabulary_size=tokenizer.vocabulary_size, end_id=tokenizer.end_id)
    assert params.transformer is not None
    return TextTransformer(
        params.transformer,
        vocabulary_size=tokenizer.vocabulary_size,
        max_tokens=tokenizer.max_tokens,
        end_id=tokenizer.end_id,
    )
