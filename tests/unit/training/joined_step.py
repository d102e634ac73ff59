"""One step's losses and gradients, in one process or its part of several: `python -m ... RANK WORLD FOLDER`.

FOLDER holds the prepared rows; a process of several leaves what `Learner.backward` gave, which is averaged.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyweft.data.batches import choose_contents, share_of, take
from polyweft.progress import Bar
from polyweft.training import sharding
from polyweft.training.distributed import World, mean_over_processes
from polyweft.training.feed import Feed
from polyweft.training.gradients import Work
from polyweft.training.learner import Learner, Surroundings
from tests import small
from tests.group import joined

STILL = {"tower": "transformer", "transformer": {"width": 16, "layers": 1, "heads": 2, "dropout": 0.0}}
HEAD = {**small.HEAD, "dropout": 0.0, "tasks": {"single_label": 1.0}}
TOWERS = {**small.DUAL_TOWER, "encoders": {"image": small.IMAGE, "text": STILL}, "head": HEAD}
TRIMODAL = {
    **TOWERS,
    "family": "trimodal",
    "encoders": {"image": small.IMAGE, "text": STILL, "audio": small.AUDIO},
    "head": {**HEAD, "sees": ["image", "text", "audio"], "fusion": "attention"},
}
# SigLIP's loss begins at 26 here, of which float32's last place is 2e-6; a tenth of it can be told to 1e-6.
CASES: dict[str, dict[str, Any]] = {
    "infonce": {**TOWERS, "contrast": {"loss": "infonce"}},
    "siglip": {**TOWERS, "contrast": {"loss": "siglip", "chunk": 3, "weight": 0.1}},
    "trimodal": {**TRIMODAL, "contrast": {"loss": "infonce"}},
    "captioner": {
        **TOWERS,
        "family": "captioner",
        "contrast": {"loss": "infonce"},
        "matching": {"weight": 1.0, "negatives": "nearest"},
        "captioning": {"weight": 1.0, "label_smoothing": 0.1},
        "decoder": {"width": 16, "layers": 1, "heads": 2, "dropout": 0.0},
        "generation": {"strategy": "greedy", "max_tokens": 5},
    },
}
ROWS = 16
CLIP = 1.0
"""Norm that gradients are clipped to, as the optimiser gets them; before, some reach 65, where 1e-6 is below
the last place of float32."""


def outcome(world: World, prepared: Path, folder: Path, micro_batch: int | None) -> dict[str, Tensor]:
    """Every case's losses and gradients, the processes' mean: clipped, and as they come at temperature 1.

    There cosines are not multiplied by 14 (and SigLIP's bias is -2, not -10), so that float32 has places
    enough for gradients that no one clips, and for SigLIP's loss at its full weight.
    """
    out: dict[str, Tensor] = {}
    for case, clipped in product(CASES, (True, False)):
        torch.manual_seed(3)
        name, section = (case, CASES[case]) if clipped else (f"{case}-at-1", _full_weight(CASES[case]))
        model, context = small.built(prepared, section)
        if not clipped:
            at_1 = {"logit_scale": torch.tensor(0.0), "bias": torch.tensor(-2.0)}
            model.scale.load_state_dict({place: at_1[place] for place in model.scale.state_dict()})
        arrays = small.arrays(prepared, context)
        rows_B, real_B = share_of(np.arange(ROWS), world.rank, world.size)
        batch = take(arrays, rows_B, choose_contents(arrays, seed=0, epoch=0), real_B=real_B)
        feed = Feed(context.readers, world.device)
        work = Work(feed.inputs(batch), torch.from_numpy(batch.present_BM), feed.targets(batch), seed=5)
        with Bar("test", shown=False) as bar:
            around = Surroundings(world, folder / name, lambda metrics, step: None, bar)
            learner = Learner(model, small.train_params(), around, total=10)
            losses = learner.backward(work, micro_batch)
            if clipped:
                sharding.clip_gradients(sharding.squared_norms(model, world), CLIP)
        for loss, value in losses.items():
            out[f"{name} {loss}"] = mean_over_processes(value.reshape(1).clone(), world)
        for parameter, value in model.named_parameters():
            if value.grad is not None:
                out[f"{name} {parameter}"] = value.grad.detach().clone().contiguous()
    return out


def _full_weight(section: dict[str, Any]) -> dict[str, Any]:
    return {**section, "contrast": {**section["contrast"], "weight": 1.0}}


def main() -> None:
    """Write `two-<micro_batch>.safetensors` on the first process."""
    from safetensors.torch import save_file

    rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    world = World(rank, size, torch.device("cpu"))
    with joined(folder / "port", rank, size):
        for micro_batch in (None, 2):
            found = outcome(world, folder / "prepared", folder / "work", micro_batch)
            if rank == 0:
                save_file(found, folder / f"two-{micro_batch}.safetensors")


if __name__ == "__main__":
    main()
