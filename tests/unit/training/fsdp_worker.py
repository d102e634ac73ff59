"""A process of the sharding tests: it trains a small model, with a checkpoint a step."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from polyweft.models.transformer import Transformer
from polyweft.training import checkpoint
from polyweft.training.distributed import World
from polyweft.training.ema import Ema
from polyweft.training.optim import adamw, restore_state, state_tensors
from polyweft.training.sharding import (
    average_whole_gradients,
    clip_gradients,
    repeated_blocks,
    shard,
    squared_norms,
    whole_state,
)
from tests.group import joined


class Small(nn.Module):
    """Blocks, a width that two processes do not divide evenly, and a temperature without a dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.body = Transformer(8, 2, 2)
        self.last = nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, L, 5) to (B, 3)."""
        out: torch.Tensor = self.last(self.body(self.first(x)).mean(1)) * self.scale.exp()
        return out


def train(strategy: str, rank: int, size: int, steps: int, folder: Path) -> None:
    """Train to step `steps`, going on from the newest checkpoint; at the end write the whole weights."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    with joined(folder / f"port-{steps}", rank, size) if size > 1 else nullcontext():
        _train(strategy, World(rank, size, torch.device("cpu")), steps, folder)


def _train(strategy: str, world: World, steps: int, folder: Path) -> None:
    rank, size = world.rank, world.size
    torch.manual_seed(0)
    model = Small()
    called: nn.Module = model
    if strategy == "fsdp":
        shard(model, world, blocks=repeated_blocks(model))
    elif size > 1:
        called = DistributedDataParallel(model)
    optimizer = adamw(model, lr=1e-2, weight_decay=0.1, betas=[0.9, 0.98])
    ema = Ema(model, 0.9)
    found = checkpoint.newest(folder, world)
    begin = 0
    if found is not None:
        found.restore(model.state_dict(), "model.")
        found.restore(ema.tensors(), "ema.")
        restore_state(model, optimizer, found)
        begin = found.step
    losses = []
    for step in range(begin, steps):
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(4, 3, 5, generator=generator), torch.randn(4, 3, generator=generator)
        mine = slice(rank * 4 // size, (rank + 1) * 4 // size)
        loss = (called(x[mine]) - y[mine]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if strategy == "fsdp":
            average_whole_gradients(model, world)
        norm = clip_gradients(squared_norms(model, world), 0.5)
        optimizer.step()
        ema.update(model, step)
        losses.append([float(loss.detach()), norm])
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        tensors |= {f"optimizer.{name}": tensor for name, tensor in state_tensors(model, optimizer).items()}
        tensors |= {f"ema.{name}": tensor for name, tensor in ema.tensors().items()}
        checkpoint.save(folder, step + 1, tensors, {}, world=world)
    weights = whole_state(model)
    with ema.applied(model):
        weights |= {f"ema.{name}": tensor for name, tensor in whole_state(model).items()}
    if rank == 0:
        save_file(weights, folder / f"weights-{steps}.safetensors")
    (folder / f"losses-{rank}.json").write_text(json.dumps(losses))
