"""Two processes give the loss and the gradients that one gives on the joined batch, for every loss."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.unit.losses.joined_batch import outcome

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("world", [2])
def test_several_processes_give_the_loss_and_gradients_of_one(tmp_path: Path, world: int) -> None:
    command = [sys.executable, "-m", "tests.unit.losses.joined_batch"]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen([*command, str(rank), str(world), str(tmp_path)], cwd=ROOT, env=environment)
        for rank in range(world)
    ]
    one = outcome(0, 1)
    assert [worker.wait(timeout=120) for worker in workers] == [0] * world
    several = load_file(tmp_path / "out.safetensors")
    assert set(several) == set(one)
    assert "trimodal siglip bias" in one
    for name, expected in one.items():
        assert expected.abs().sum() > 0, name
        torch.testing.assert_close(
            several[name], expected, rtol=0, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )
