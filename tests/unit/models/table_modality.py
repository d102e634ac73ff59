"""Modality `table`: numbers separated by commas. What docs/guide/extending.md tells a person to write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


class Reader:
    """Text such as `1,2,3` to a row of numbers."""

    tensor, pad = "table_values", 0
    dtype = raw_dtype = "float32"

    def __init__(self, spec: dict[str, Any], folder: Path) -> None:
        self.columns = int(spec["columns"])
        self.shape = self.raw_shape = [self.columns]

    def raw(self, content: bytes) -> np.ndarray:
        """float32 [columns]."""
        values = np.array(content.decode().split(","), np.float32)
        if len(values) != self.columns:
            raise ValueError(f"{len(values)} numbers; expected {self.columns}")
        return values

    def finish(self, raw: np.ndarray) -> np.ndarray:
        """As they are."""
        return raw

    def read(self, contents: Sequence[bytes]) -> np.ndarray:
        """float32 [B, columns]."""
        return self.finish(np.stack([self.raw(content) for content in contents]))


def __getattr__(name: str) -> Any:
    """`Params`, made when it is asked for: serving has no Polyweft."""
    if name != "Params":
        raise AttributeError(name)
    from polyweft.config import Section

    class Params(Section):
        columns: int
        width: int

    return Params


def reader_spec(params: Any) -> dict[str, Any]:
    """What `Reader` takes."""
    return {"columns": params.columns}


def build(params: Any, reader: Reader) -> Any:
    """Two linear layers."""
    from torch import Tensor, nn

    class TableEncoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                nn.Linear(params.columns, params.width), nn.GELU(), nn.Linear(params.width, params.width)
            )
            self.out_features = params.width

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layers(x)
            return out

        def tokens(self, x: Tensor) -> Tensor:
            return self.forward(x)[:, None]

    return TableEncoder()
