"""Out of memory: the micro-batch is halved, and training goes on with the same gradients.

Alone, a process tries the step again at once. With others that would not do: they may wait for it in an
exchange of this very step. So the new size is written to `micro_batch.json` beside the checkpoints and
training ends with a `SmallerMicroBatchError`; the stage then starts it again from the last checkpoint. The
file stays with the checkpoints, so that a resumed run goes on with the size that fitted.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from polyweft.errors import TrainingError
from polyweft.io import read_json, write_json
from polyweft.training.distributed import World

FILE = "micro_batch.json"

T = TypeVar("T")


class SmallerMicroBatchError(TrainingError):
    """A process among several ran out of memory; `micro_batch.json` has the size to start again with."""


def chosen_micro_batch(folder: Path, given: int | None) -> int | None:
    """The rows at once that fitted before (`micro_batch.json` in `folder`), or else `given`."""
    return int(read_json(folder / FILE)["micro_batch"]) if (folder / FILE).exists() else given


def run_with_halving(
    step: Callable[[int], T],
    micro_batch: int,
    world: World,
    *,
    folder: Path | None = None,
    say: Callable[[str], None] = print,
) -> tuple[T, int]:
    """Call `step(micro_batch)`, with half of it again whenever memory runs out; the result and the last size.

    Raises
    ------
    SmallerMicroBatchError
        Memory ran out with other processes about: the new size is in `folder`; start training again.
    TrainingError
        One row does not fit.
    """
    while True:
        try:
            return step(micro_batch), micro_batch
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside of the handler: the error's traceback kept the step's tensors alive.
        gc.collect()
        if world.device.type == "cuda":
            torch.cuda.empty_cache()
        if micro_batch == 1:
            raise TrainingError(
                "memory runs out with one row at a time; make the model or the images smaller, turn "
                "train.gradient_checkpointing on, or train on a larger machine."
            )
        micro_batch = -(-micro_batch // 2)
        if folder is not None:
            write_json(folder / FILE, {"micro_batch": micro_batch})
        message = f"memory ran out; {micro_batch} rows at a time from here on, with the same gradients"
        if world.size > 1:
            raise SmallerMicroBatchError(f"{message}. Run `dvc repro` to go on from the last checkpoint.")
        say(f"warning: {message}")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether `error` says that the device's or the machine's memory does not suffice."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)
