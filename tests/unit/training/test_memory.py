"""Out of memory halves the micro-batch: at once where there is one process, by a new start where more are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from polyweft.errors import TrainingError
from polyweft.training.distributed import ALONE, World
from polyweft.training.memory import (
    SmallerMicroBatchError,
    chosen_micro_batch,
    is_out_of_memory,
    run_with_halving,
)

PETABYTE = 2**50


def _needs(micro_batch: int, *, fits: int) -> int:
    """Ask torch for a petabyte when more than `fits` rows are wanted."""
    return len(torch.empty(PETABYTE if micro_batch > fits else 1, dtype=torch.uint8)[:1])


def test_a_step_is_tried_again_with_half_until_it_fits(tmp_path: Path) -> None:
    said: list[str] = []
    tried: list[int] = []

    def step(micro_batch: int) -> int:
        tried.append(micro_batch)
        return _needs(micro_batch, fits=6)

    assert run_with_halving(step, 25, ALONE, folder=tmp_path, say=said.append) == (1, 4)
    assert tried == [25, 13, 7, 4]
    assert "4 rows at a time" in said[-1]
    assert chosen_micro_batch(tmp_path, 25) == 4


def test_a_step_that_fits_leaves_no_trace(tmp_path: Path) -> None:
    assert run_with_halving(lambda micro: _needs(micro, fits=8), 8, ALONE, folder=tmp_path) == (1, 8)
    assert chosen_micro_batch(tmp_path, None) is None


def test_with_other_processes_training_starts_again(tmp_path: Path) -> None:
    world = World(1, 2, torch.device("cpu"))
    with pytest.raises(SmallerMicroBatchError, match="4 rows at a time"):
        run_with_halving(lambda micro: _needs(micro, fits=5), 8, world, folder=tmp_path)
    assert chosen_micro_batch(tmp_path, 8) == 4


def test_a_row_that_does_not_fit_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="gradient_checkpointing"):
        run_with_halving(lambda micro: _needs(micro, fits=0), 2, ALONE, folder=tmp_path, say=lambda _: None)


def test_other_errors_pass(tmp_path: Path) -> None:
    def step(micro_batch: int) -> int:
        return int((torch.ones(2) @ torch.ones(3)).item())

    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        run_with_halving(step, 4, ALONE, folder=tmp_path)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(ValueError("out of memory"))
