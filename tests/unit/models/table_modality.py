"""Modality `table`: numbers separated by commas, through two linear layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


class Reader:
    """Text such as `1,2,3` to a row of numbers."""

    tensor, pad = "table_values", 0
    dtype = raw_dtype = "float32"

    def __init__(self, spec: dict[str, Any], folder: Path | None = None) -> None:
        self.columns = int(spec["columns"])
        self.shape = self.raw_shape = [self.columns]

    def raw(self, content: bytes) -> npt.NDArray[np.float32]:
        """float32 [columns]; a `ValueError` says what is wrong."""
        values = numbers(content)
        if len(values) != self.columns:
            raise ValueError(f"table of {len(values)} numbers; the model takes {self.columns}")
        return values

    def finish(self, raw: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The rows [B, columns] are what the model takes."""
        return raw

    def read(self, contents: Sequence[bytes]) -> npt.NDArray[np.float32]:
        """float32 [B, columns]."""
        rows = [self.raw(content) for content in contents]
        return self.finish(np.stack(rows) if rows else np.zeros((0, self.columns), np.float32))


def check(content: bytes) -> None:
    """Whether any model could read it: what `validate` asks, which knows no model; raises `ValueError`."""
    numbers(content)


def numbers(content: bytes) -> npt.NDArray[np.float32]:
    """The numbers of a table, which are finite."""
    values = np.array(content.decode("utf-8").split(","), np.float32)
    if not np.isfinite(values).all():
        raise ValueError("table holds a number that is not finite")
    return values


def __getattr__(name: str) -> Any:
    """`Params`, made when it is asked for: serving has no Polyweft."""
    if name != "Params":
        raise AttributeError(name)
    from pydantic import Field

    from polyweft.config import Section

    class Params(Section):
        """`model.encoders.table`."""

        columns: int = Field(ge=1, description="numbers a row")
        width: int = Field(ge=8, description="of the layers")

    return Params


def reader_spec(params: Any) -> dict[str, Any]:
    """What `Reader` takes; it is saved with the model."""
    return {"columns": params.columns}


def build(params: Any, reader: Reader) -> Any:
    """The encoder: features (B, F) and tokens (B, L, F) of values (B, columns)."""
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
