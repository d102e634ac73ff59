"""Polyweft's training step: `Learner.learn`, which the loop calls once a batch."""

from __future__ import annotations

import argparse
import os
import tempfile
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from bench.training.workload import (
    ADAMW,
    BATCH,
    EMBEDDING,
    END_ID,
    IMAGE,
    IMAGE_INPUT,
    TEXT,
    batches,
    only_exact_products,
    serve,
)
from polyweft.losses.targets import Targets
from polyweft.models.build import build_model
from polyweft.models.family import BuildContext, Family, ModelParams
from polyweft.progress import Bar
from polyweft.training.allocator import keep_freed_memory
from polyweft.training.distributed import World, world
from polyweft.training.gradients import Work
from polyweft.training.learner import Learner, Surroundings
from polyweft.training.params import TrainParams


def model() -> Family:
    """A dual tower of the workload's sizes: class token, InfoNCE, the text read at its end token."""
    sizes = {name: IMAGE[name] for name in ("patch", "layers", "width", "heads")}
    image = {**IMAGE_INPUT, "vit": {**sizes, "pool": "class_token"}}
    sizes = {name: TEXT[name] for name in ("layers", "width", "heads")}
    text = {"tower": "transformer", "transformer": {**sizes, "dropout": 0.0}}
    params = ModelParams.model_validate(
        {
            "family": "dual_tower",
            "encoders": {"image": image, "text": text},
            "embedding_size": EMBEDDING,
            "feature_size": IMAGE["width"],
            "contrast": {"loss": "infonce"},
        }
    )
    # The vocabulary's size without the vocabulary: the ids are drawn, no text is read.
    tokenizer = SimpleNamespace(vocabulary_size=TEXT["vocabulary"], end_id=END_ID, max_tokens=TEXT["tokens"])
    readers: dict[str, Any] = {"image": None, "text": SimpleNamespace(tokenizer=tokenizer)}
    return build_model(params, BuildContext([], [], readers, {}))


def train_params(precision: str, processes: int, *, compiled: bool) -> TrainParams:
    """The trainer's section with the workload's optimiser."""
    return TrainParams.model_validate(
        {
            "processes": processes,
            "strategy": "ddp",
            "epochs": 1,
            "batch_size": BATCH,
            "lr": ADAMW["lr"],
            "weight_decay": ADAMW["weight_decay"],
            "betas": [ADAMW["beta1"], ADAMW["beta2"]],
            "warmup_steps": 0,
            "clip_norm": 1.0,
            "precision": precision,
            "compile": compiled,
            "positives": "content",
            "augment": {"shift": 0.0, "scale": 0.0, "rotate": 0.0, "flip": False}
            | {"brightness": 0.0, "contrast": 0.0, "color": 0.0},
            "early_stopping_epochs": 1,
            "validate_every": 1,
            "checkpoint_steps": 10**6,
        }
    )


def works(here: World, words: str) -> list[Work]:
    """A few batches, ready in memory; each process's share of the rows."""
    rows = BATCH // here.size
    share = slice(here.rank * rows, (here.rank + 1) * rows)
    ready = []
    for pixels, ids in islice(batches(BATCH, words), 4):
        longest = int((ids == END_ID).argmax(axis=1).max()) + 1  # as the text reader pads
        tokens = torch.from_numpy(ids[share, :longest].copy())
        keys = torch.arange(BATCH)[share]
        present = torch.ones(rows, 2)
        targets = Targets(
            class_B=torch.full((rows,), -1),
            labels_BK=torch.zeros(rows, 0),
            value_B=torch.full((rows,), torch.nan),
            keys={"image": keys, "text": keys},
            present_BM=present,
            modalities=["image", "text"],
            ids_BT=tokens,
        )
        inputs = {"image": torch.from_numpy(pixels[share].copy()), "text": tokens}
        ready.append(Work(inputs, present, targets, seed=1))
    return ready


def main() -> None:
    """Build, then answer requests for steps."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--precision", choices=["bf16", "fp32"], required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--words", required=True)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    only_exact_products()
    torch.use_deterministic_algorithms(True)  # as the trainer does, and with it:
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.manual_seed(17)
    trained = model()
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    params = train_params(options.precision, processes, compiled=options.compile)
    with world() as here, tempfile.TemporaryDirectory() as folder, Bar("bench", shown=False) as bar:
        around = Surroundings(here, Path(folder), lambda row, step: None, bar)
        learner = Learner(trained, params, around, total=10**6)
        trained.train()
        ready = works(here, options.words)

        def step(count: int) -> float:
            for _ in range(count):
                row, _ = learner.learn(ready[learner.progress.step % len(ready)], [])
            return row["loss"]

        serve(step)


if __name__ == "__main__":
    main()
