"""Several processes, and micro-batches, give the losses and gradients of one process on the joined batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from polyweft.training.distributed import ALONE
from tests import small
from tests.unit.training.joined_step import outcome

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared rows, and what two processes made of them."""
    place = tmp_path_factory.mktemp("joined")
    small.prepare(place / "prepared")
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.unit.training.joined_step"]
    workers = [
        subprocess.Popen([*command, str(rank), "2", str(place)], cwd=ROOT, env=environment)
        for rank in range(2)
    ]
    assert [worker.wait(timeout=180) for worker in workers] == [0, 0]
    return place


@pytest.fixture(scope="module")
def one(folder: Path) -> dict[str, Tensor]:
    """One process, all rows at once."""
    return outcome(ALONE, folder / "prepared", folder / "one", None)


def _same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= 1e-6, name


def test_every_loss_and_every_tower_takes_part(one: dict[str, Tensor]) -> None:
    moved = {name.split()[0] for name, value in one.items() if value.abs().max() > 1e-4}
    cases = ("infonce", "siglip", "trimodal", "captioner")
    assert moved == {*cases, *(f"{case}-at-1" for case in cases)}
    for tower in ("image", "text", "audio"):
        assert any(
            f"trimodal towers.{tower}" in name and value.abs().max() > 1e-5 for name, value in one.items()
        )


def test_one_process_in_micro_batches(folder: Path, one: dict[str, Tensor]) -> None:
    _same(outcome(ALONE, folder / "prepared", folder / "micro", 4), one)


def test_two_processes_with_accumulation_1(folder: Path, one: dict[str, Tensor]) -> None:
    _same(load_file(folder / "two-None.safetensors"), one)


def test_two_processes_with_accumulation_4(folder: Path, one: dict[str, Tensor]) -> None:
    _same(load_file(folder / "two-2.safetensors"), one)
