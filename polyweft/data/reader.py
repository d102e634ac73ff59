"""What every modality's `Reader` offers; the readers themselves stand in files that serving runs verbatim."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from polyweft.modalities import reader_module


class Reader(Protocol):
    """Bytes of one modality to the model's input.

    Attributes
    ----------
    tensor
        The name of the model's input.
    dtype
        `float32` or `int64`, of the model's input.
    shape
        One row of the model's input as served; -1 is a free axis.
    raw_dtype, raw_shape
        Of one raw row, as `raw` gives it; -1 is a free axis.
    pad
        Fills raw rows of unlike length up to the longest.
    """

    tensor: str
    dtype: str
    shape: list[int]
    raw_dtype: str
    raw_shape: list[int]
    pad: int

    def raw(self, content: bytes) -> npt.NDArray[Any]:
        """One row, compact, as it is kept in memory; raises a `ValueError` that says what is wrong."""

    def finish(self, raw: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Stacked raw rows (B, ...) to the model's input."""

    def read(self, contents: Sequence[bytes]) -> npt.NDArray[Any]:
        """Contents to the model's input (B, ...)."""


def open_readers(specs: dict[str, dict[str, Any]], folder: Path) -> dict[str, Reader]:
    """A reader for each modality of `specs`, in the same order; `folder` holds the tokenizer's files."""
    return {name: reader_module(name).Reader(spec, folder) for name, spec in specs.items()}
