"""The process group of a training worker: joined on entry, left on exit, on loopback by default."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed


@dataclass(frozen=True)
class World:
    """This worker's place: `rank` of `size`, and the device its tensors live on."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True for the one worker that writes files and logs."""
        return self.rank == 0


@contextlib.contextmanager
def world() -> Iterator[World]:
    """Join the group that torchrun describes in the environment: NCCL with GPUs, gloo without."""
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    cuda = torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if size == 1:
        yield World(rank, size, device)
        return
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) == size:  # one machine: nothing leaves it
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    distributed.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(minutes=10))
    try:
        yield World(rank, size, device)
    finally:
        distributed.destroy_process_group()
