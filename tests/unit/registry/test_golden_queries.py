"""Golden queries: what counts as equal, and that everything else fails closed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from polyweft.errors import ServingError
from registry.golden import ask_export, compare, load_golden
from tests.serving.tiny import write_tiny_export

FLOATS = st.floats(-10, 10, width=32)


@given(arrays(np.float32, (3, 2), elements=FLOATS), st.floats(1e-3, 1), st.integers(0, 5))
def test_the_difference_is_the_largest_component(array: np.ndarray, shift: float, place: int) -> None:
    moved = array.astype(np.float64)
    moved.flat[place] += shift
    assert compare({"a": moved}, {"a": array})["a"] == pytest.approx(shift, rel=1e-9)
    assert compare({"a": array}, {"a": array}) == {"a": 0.0}


@pytest.mark.parametrize(
    "given_arrays",
    [{}, {"a": np.zeros((2, 3))}, {"a": np.array([[np.nan, 0], [0, 0]])}, {"a": np.full((2, 2), np.inf)}],
    ids=["missing", "shape", "nan", "infinite"],
)
def test_what_cannot_be_compared_is_infinitely_far(given_arrays: dict[str, np.ndarray]) -> None:
    assert compare(given_arrays, {"a": np.zeros((2, 2), np.float32)}) == {"a": float("inf")}


@pytest.mark.parametrize("sees", ["image", "text", "both"])
def test_the_export_itself_answers_as_expected(tmp_path: Path, sees: str) -> None:
    export = write_tiny_export(tmp_path / "export", seed=3, sees=sees)
    assert ask_export(export, load_golden(export / "golden"), threads=1) <= 1e-5


def test_absent_modalities_are_empty_bytes(tmp_path: Path) -> None:
    golden = load_golden(write_tiny_export(tmp_path / "export", seed=3) / "golden")
    assert len(golden) == 4
    assert golden.images[1] == b""
    assert golden.texts[2] == b""


def test_broken_golden_queries_are_named(tmp_path: Path) -> None:
    export = write_tiny_export(tmp_path / "export", seed=3)
    (export / "golden" / "golden.safetensors").write_bytes(b"junk")
    with pytest.raises(ServingError, match="cannot be read"):
        load_golden(export / "golden")
    (export / "golden" / "golden.json").unlink()
    with pytest.raises(ServingError, match=r"golden\.json"):
        load_golden(export / "golden")


def test_answers_for_other_rows_are_refused(tmp_path: Path) -> None:
    export = write_tiny_export(tmp_path / "export", seed=3)
    (export / "golden" / "golden.json").write_text("[]")
    with pytest.raises(ServingError, match="0 queries"):
        load_golden(export / "golden")
