"""What the processes of a training meet in."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
from torch import distributed

from polyweft.training.distributed import gloo


def test_gloo_completes_exchanges_in_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two write into one string without a lock, and a process crashes now and then."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    store = distributed.HashStore()
    distributed.init_process_group(gloo(), store=store, rank=0, world_size=1, timeout=timedelta(seconds=7))
    try:
        assert distributed.group.WORLD is not None
        options = distributed.group.WORLD._get_backend(torch.device("cpu")).options
        assert options._threads == 1
        assert options._timeout == timedelta(seconds=7)
        assert options.backend == "gloo"
        rows = torch.sparse_coo_tensor([[0, 2]], [[1.0], [2.0]], (3, 1))
        distributed.all_reduce(rows)  # torch's own gloo takes these as well
        assert rows.to_dense().tolist() == [[1.0], [0.0], [2.0]]
    finally:
        distributed.destroy_process_group()
