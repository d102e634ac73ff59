"""A text tower's table of token vectors."""

from __future__ import annotations

from torch import nn


class WordTable(nn.Embedding):
    """Token ids int64 (B, T) to a vector each, (B, T, D); its weight serves for nothing else.

    Then a batch's gradient has values in the rows of its own tokens only. With `sparse` set it comes as these
    rows, which processes exchange in less time than the whole table.
    """
