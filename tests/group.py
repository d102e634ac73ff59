"""A group of gloo processes for tests."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from torch import distributed

from polyweft.io import write_text
from polyweft.training.distributed import gloo

SECONDS = 60.0


@contextlib.contextmanager
def joined(port: Path, rank: int, size: int) -> Iterator[None]:
    """Inside, this process is `rank` of `size`; all meet at the port that rank 0 leaves in the file `port`.

    A store in a file will not do: who leaves it last may wait for the file that another has removed.
    """
    if rank == 0:
        store = distributed.TCPStore("127.0.0.1", 0, size, True, wait_for_workers=False)
        write_text(port, str(store.port))
    else:
        end = time.monotonic() + SECONDS
        while not port.exists():
            assert time.monotonic() < end, f"no {port} of rank 0 in {SECONDS:.0f} s"
            time.sleep(0.02)
        store = distributed.TCPStore("127.0.0.1", int(port.read_text()), size, False, wait_for_workers=False)
    distributed.init_process_group(gloo(), store=store, rank=rank, world_size=size)
    yield
    distributed.barrier()
    distributed.destroy_process_group()
    if rank == 0:
        port.unlink()
