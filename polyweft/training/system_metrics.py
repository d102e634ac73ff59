"""What the machine does while training runs, under the names of MLflow's own system metrics.

MLflow's sampler would need the run's id and the server in the training process; here a thread samples, and
the numbers go the way of every other metric.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import psutil
import torch

MEGABYTE = 1e6
SECONDS = 10.0
"""Between two samples, as in MLflow."""

Log = Callable[[dict[str, float], int], None]


@contextlib.contextmanager
def sampled(log: Log | None, *, seconds: float = SECONDS) -> Iterator[None]:
    """Hand a sample to `log` every `seconds` inside the block (None: no sampling), counted from 0.

    A sample is taken at once and at the end too, so that a short run has some.
    """
    if log is None:
        yield
        return
    ended = threading.Event()

    def work() -> None:
        psutil.cpu_percent()  # the first call starts the measurement, and gives 0
        number, wait = 0, min(seconds, 1.0)
        while not ended.wait(wait):
            log(sample(), number)
            number, wait = number + 1, seconds
        log(sample(), number)

    thread = threading.Thread(target=work, name="system-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def sample() -> dict[str, float]:
    """CPU, memory and GPUs now, in percent and megabytes (10^6 bytes); CPU since the last call."""
    memory = psutil.virtual_memory()
    values = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": memory.used / MEGABYTE,
        "system/system_memory_usage_percentage": memory.percent,
        "system/process_memory_usage_megabytes": process_megabytes(),
    }
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        values[f"system/gpu_{number}_memory_usage_megabytes"] = (total - free) / MEGABYTE
        values[f"system/gpu_{number}_memory_usage_percentage"] = 100.0 * (total - free) / total
        with contextlib.suppress(ModuleNotFoundError, RuntimeError):  # needs nvidia-ml-py
            values[f"system/gpu_{number}_utilization_percentage"] = float(torch.cuda.utilization(number))
    return values


def process_megabytes() -> float:
    """Memory of this process and of those below it (resident, 10^6 bytes)."""
    total = 0
    own = psutil.Process()
    for process in [own, *own.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss
    return total / MEGABYTE
