"""A trace of some training steps, to be opened in Perfetto or chrome://tracing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, schedule

from polyweft.training.distributed import World

SKIPPED = 2
"""Steps before the trace begins: the first ones allocate, compile and connect."""


@contextlib.contextmanager
def profiled(steps: int, path: Path, world: World) -> Iterator[Callable[[], None]]:
    """Trace `steps` steps of the main process into `path` (`.json.gz`); 0 steps: nothing.

    Gives the function to call after each step. The trace has times and names of this machine: it belongs
    below `reports/`, which git does not track, not among a stage's outputs. Training that ends earlier leaves
    a shorter trace.
    """
    if steps == 0 or not world.is_main:
        yield lambda: None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    activities = [ProfilerActivity.CPU]
    if world.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(
        activities=activities,
        schedule=schedule(wait=SKIPPED - 1, warmup=1, active=steps, repeat=1),
        on_trace_ready=lambda trace: trace.export_chrome_trace(str(path)),
        record_shapes=True,
        profile_memory=True,
    ) as running:
        yield running.step
