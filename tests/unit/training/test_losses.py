"""The losses equal their definitions, and two processes equal one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from polyweft.training.losses import classification_loss, contrastive_loss

TWO_PROCESSES = """
import sys
import torch
from safetensors.torch import save_file
from torch import distributed
from polyweft.training.losses import classification_loss, contrastive_loss

world = int(sys.argv[1])
rank = int(sys.argv[2])
if world > 1:
    store = f"file://{sys.argv[3]}/store"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
torch.manual_seed(0)
rows = 8
inputs = torch.randn(rows, 6)
classes = torch.tensor([0, 1, 2, -1, 1, 0, -1, 2])
image_key = torch.arange(rows)
text_key = torch.tensor([0, 1, 2, 0, 4, 5, 2, 7])
paired = torch.tensor([1, 1, 1, 1, 0, 1, 1, 0]).bool()
weight = torch.randn(6, 5, requires_grad=True)
other = torch.randn(6, 5, requires_grad=True)
head = torch.randn(5, 3, requires_grad=True)
mine = slice(rank * rows // world, (rank + 1) * rows // world)
images = torch.nn.functional.normalize(inputs[mine] @ weight, dim=1)
texts = torch.nn.functional.normalize(inputs[mine] @ other, dim=1)
loss = contrastive_loss(
    images, texts, torch.tensor(7.0), image_key[mine], text_key[mine], paired[mine]
) + classification_loss(images @ head, classes[mine], 0.1)
loss.backward()
out = {"loss": loss.detach().reshape(1), "weight": weight.grad, "other": other.grad, "head": head.grad}
if world > 1:
    for tensor in out.values():
        distributed.all_reduce(tensor)
        tensor /= world
    distributed.destroy_process_group()
if rank == 0:
    save_file(out, f"{sys.argv[3]}/world-{world}.safetensors")
"""


def _unit(rows: int, size: int, seed: int) -> torch.Tensor:
    return functional.normalize(torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_two_processes_give_the_loss_and_gradients_of_one(tmp_path: Path) -> None:
    for world in (1, 2):
        workers = [
            subprocess.Popen([sys.executable, "-c", TWO_PROCESSES, str(world), str(rank), str(tmp_path)])
            for rank in range(world)
        ]
        assert [worker.wait(timeout=120) for worker in workers] == [0] * world
    from safetensors.torch import load_file

    one, two = (load_file(tmp_path / f"world-{world}.safetensors") for world in (1, 2))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(2, 9), seed=st.integers(0, 999), scale=st.floats(1.0, 100.0))
def test_with_one_positive_a_row_the_contrastive_loss_is_clips(rows: int, seed: int, scale: float) -> None:
    images, texts = _unit(rows, 8, seed), _unit(rows, 8, seed + 1)
    keys = torch.arange(rows)
    logits = scale * images @ texts.T
    clip = (functional.cross_entropy(logits, keys) + functional.cross_entropy(logits.T, keys)) / 2
    paired = torch.ones(rows, dtype=torch.bool)
    ours = contrastive_loss(images, texts, torch.tensor(scale), keys, keys, paired)
    torch.testing.assert_close(ours, clip, rtol=1e-4, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999))
def test_rows_that_lack_a_modality_change_nothing(seed: int) -> None:
    images, texts, keys = _unit(6, 8, seed), _unit(6, 8, seed + 1), torch.arange(6)
    paired = torch.tensor([True] * 4 + [False] * 2)
    scale = torch.tensor(10.0)
    whole = contrastive_loss(images, texts, scale, keys, keys, paired)
    part = contrastive_loss(images[:4], texts[:4], scale, keys[:4], keys[:4], paired[:4])
    torch.testing.assert_close(whole, part, rtol=1e-5, atol=1e-6)


def test_equal_captions_do_not_repel_each_other() -> None:
    images = texts = functional.normalize(torch.eye(4)[[0, 0, 1, 2]], dim=1)
    paired, rows = torch.ones(4, dtype=torch.bool), torch.arange(4)
    same = contrastive_loss(images, texts, torch.tensor(100.0), rows, torch.tensor([0, 0, 1, 2]), paired)
    apart = contrastive_loss(images, texts, torch.tensor(100.0), rows, rows, paired)
    assert same < apart + 1e-6
    # two positives that are equally near share the probability: the least loss is ln 2 for those rows
    assert same == pytest.approx(0.5 * torch.log(torch.tensor(2.0)).item(), abs=1e-4)


def test_rows_without_a_class_do_not_count() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    classes = torch.tensor([0, -1, 2, -1, 1])
    expected = functional.cross_entropy(logits[classes >= 0], classes[classes >= 0])
    torch.testing.assert_close(classification_loss(logits, classes, 0.0), expected)


def test_a_batch_with_no_pair_and_no_class_gives_zero() -> None:
    images = _unit(3, 4, 0)
    nothing = torch.zeros(3, dtype=torch.bool)
    keys = torch.arange(3)
    assert contrastive_loss(images, images, torch.tensor(1.0), keys, keys, nothing) == 0
    assert classification_loss(torch.zeros(3, 2), torch.full((3,), -1), 0.0) == 0
