"""The process group of a training worker: joined on entry, left on exit, on loopback by default."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.distributed_c10d import PrefixStore, Store

STORE_VARIABLE = "POLYWEFT_STORE"
"""Where `launch` keeps the store that the workers meet at (host:port); without it torchrun's own is used."""

DEVICE_VARIABLE = "POLYWEFT_FIRST_DEVICE"

PATIENCE = timedelta(minutes=10)


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


ALONE = World(0, 1, torch.device("cpu"))


@contextlib.contextmanager
def world() -> Iterator[World]:
    """Join the group that torchrun describes in the environment: NCCL with GPUs, gloo without."""
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    cuda = torch.cuda.is_available()
    # Two agents on one machine number their workers from 0 each: an agent is told its first device.
    local = int(os.environ.get("LOCAL_RANK", "0")) + int(os.environ.get(DEVICE_VARIABLE, "0"))
    device = torch.device("cuda", local) if cuda else ALONE.device
    if cuda:
        torch.cuda.set_device(device)
    if size == 1:
        yield World(rank, size, device)
        return
    backend = "nccl" if cuda else gloo()
    address = os.environ.get(STORE_VARIABLE)
    one_machine = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) == size
    if one_machine or os.environ.get("MASTER_ADDR") == "127.0.0.1":  # nothing leaves it
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if address:
        store = _store(address, rank)
        distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    else:
        distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield World(rank, size, device)
    finally:
        distributed.destroy_process_group()


def gloo() -> str:
    """The backend for `init_process_group` on a CPU: gloo with one thread for its exchanges instead of two.

    Both of torch's threads write the name of what they completed into one string that no lock guards
    (`ProcessGroupGloo::runLoop`, torch 2.13). A name of 16 letters or more, as that of a sparse tensor's
    exchange has, lies in memory that is then freed twice: a process crashed once in some 10,000 steps. All
    processes queue their exchanges in the same order, so one thread can take them one after the other.
    """
    distributed.Backend.register_backend("gloo_of_one_thread", _gloo_of_one_thread, devices=["cpu"])
    return "gloo_of_one_thread"


def _gloo_of_one_thread(store: Store, rank: int, size: int, timeout: timedelta) -> Any:
    gloo: Any = distributed.ProcessGroupGloo
    options, interfaces = gloo._Options(), os.environ.get("GLOO_SOCKET_IFNAME", "")
    options._threads, options._timeout = 1, timeout
    named = [gloo.create_device(interface=name) for name in interfaces.split(",") if name]
    options._devices = named or [gloo.create_default_device()]
    return gloo(store, rank, size, options)


def agree(flag: bool, world: World) -> bool:
    """Tell whether `flag` is true on any process; every process must call it, and all get the same answer."""
    if world.size == 1:
        return flag
    value = torch.tensor([int(flag)], dtype=torch.int32, device=world.device)
    distributed.all_reduce(value, distributed.ReduceOp.MAX)
    return bool(value.item())


def mean_over_processes(values: Tensor, world: World) -> Tensor:
    """The mean of each process's `values`; every process must call it."""
    if world.size > 1:
        distributed.all_reduce(values)
        values = values / world.size
    return values


def _store(address: str, rank: int) -> Store:
    """The launcher's store, under a prefix of this round's: torchrun draws a new port for each round."""
    host, _, port = address.rpartition(":")
    round_ = f"workers/{os.environ.get('TORCHELASTIC_RUN_ID', '')}/{os.environ.get('MASTER_PORT', '')}"
    client = distributed.TCPStore(  # type: ignore[attr-defined]
        host, int(port), None, False, PATIENCE, wait_for_workers=False
    )
    store = PrefixStore(round_, client)
    if rank == 0 and store.add("rounds", 1) > 1:
        raise ConnectionError("another round of workers met under this port; torchrun starts them again")
    return store
