"""FSDP2 over two gloo processes trains as DDP does, and resumes exactly, from parts of any number."""

from __future__ import annotations

import json
import multiprocessing
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fsdp_worker import train
from safetensors.torch import load_file
from torch import nn

from polyweft.models.transformer import Transformer
from polyweft.training import checkpoint
from polyweft.training.distributed import ALONE
from polyweft.training.sharding import clip_gradients, repeated_blocks, squared_norms

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["polyweft.training.sharding", "polyweft.training.optim", "torch._dynamo"]
)  # torch is imported once, not in every process


def _train(strategy: str, size: int, steps: int, folder: Path) -> np.ndarray:
    """The joined batch's loss and the gradient norm of each step taken."""
    folder.mkdir(exist_ok=True)
    workers = [
        FORKS.Process(target=train, args=(strategy, rank, size, steps, folder)) for rank in range(size)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * size
    return np.mean([json.loads((folder / f"losses-{r}.json").read_text()) for r in range(size)], axis=0)


@pytest.fixture(scope="module")
def six_steps(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """Six steps of FSDP2 over two processes, with a checkpoint after each."""
    folder = tmp_path_factory.mktemp("fsdp")
    return folder, _train("fsdp", 2, 6, folder)


def test_the_loss_curve_and_the_gradient_norms_are_those_of_ddp(
    six_steps: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    ddp = _train("ddp", 2, 6, tmp_path / "ddp")
    np.testing.assert_allclose(six_steps[1], ddp, atol=1e-6)
    one, two = (load_file(place / "weights-6.safetensors") for place in (six_steps[0], tmp_path / "ddp"))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], atol=1e-5, rtol=0)


def test_a_resumed_run_ends_with_the_same_bytes_though_the_last_checkpoint_is_damaged(
    six_steps: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    folder = tmp_path / "again"
    _train("fsdp", 2, 4, folder)
    damaged = folder / "step-000000004" / "rank-1-of-2.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(bytes(content))
    losses = _train("fsdp", 2, 6, folder)
    assert len(losses) == 3, "it went on from step 3, the checkpoint before the damaged one"
    same = [(place / "weights-6.safetensors").read_bytes() for place in (six_steps[0], folder)]
    assert same[0] == same[1]


def test_parts_of_two_processes_are_read_by_one(six_steps: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    shutil.copytree(six_steps[0] / "step-000000005", folder / "step-000000005")
    losses = _train("fsdp", 1, 6, folder)
    np.testing.assert_allclose(losses[-1], six_steps[1][-1], atol=1e-5)
    shutil.rmtree(folder / "step-000000006")
    plain = _train("ddp", 1, 6, folder)
    np.testing.assert_allclose(plain, losses, atol=1e-6)


def test_a_sharded_checkpoint_holds_each_tensor_once_and_gives_it_whole(
    six_steps: tuple[Path, np.ndarray],
) -> None:
    found = checkpoint.newest(six_steps[0])
    assert found is not None
    assert sorted(found.state["files"]) == ["rank-0-of-2.safetensors", "rank-1-of-2.safetensors"]
    weights = load_file(six_steps[0] / "weights-6.safetensors")
    whole = found.part("model.")
    assert found.shape("model.last.weight") == (3, 8)
    assert set(whole) == {name for name in weights if not name.startswith("ema.")}
    assert all(torch.equal(tensor, weights[name]) for name, tensor in whole.items())
    parts = [load_file(path) for path in found.place.glob("*.safetensors")]
    stored = sum(tensor.numel() for part in parts for tensor in part.values())
    assert stored == sum(tensor.numel() for tensor in found.part("").values())


def test_a_checkpoint_without_one_of_its_parts_is_passed_over(
    six_steps: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    for name in ("step-000000005", "step-000000006"):
        shutil.copytree(six_steps[0] / name, tmp_path / name)
    (tmp_path / "step-000000006" / "rank-0-of-2.safetensors").unlink()
    warnings: list[str] = []
    found = checkpoint.newest(tmp_path, warn=warnings.append)
    assert found is not None
    assert found.step == 5
    assert len(warnings) == 1
    assert re.match(r"checkpoint step-000000006 is damaged, .*step-000000005 is used", warnings[0])


def test_blocks_are_the_members_of_lists_of_one_class() -> None:
    model = nn.ModuleDict(
        {"body": Transformer(8, 3, 2), "other": nn.ModuleList([nn.Linear(2, 2), nn.GELU()])}
    )
    assert repeated_blocks(model) == list(model["body"].blocks)


def test_clipping_equals_torchs() -> None:
    torch.manual_seed(1)
    models = [nn.Linear(5, 7), nn.Linear(5, 7)]
    models[1].load_state_dict(models[0].state_dict())
    x = torch.randn(4, 5)
    for model in models:
        model(x).square().sum().backward()
    norm = nn.utils.clip_grad_norm_(models[0].parameters(), 0.3)
    squares = squared_norms(models[1], ALONE)
    assert clip_gradients(squares, 0.3) == pytest.approx(float(norm), rel=1e-6)
    torch.testing.assert_close(models[0].weight.grad, models[1].weight.grad)
