"""The one training loop, read top to bottom.

A run is a function of its settings, its data and the number of processes: order, captions, augmentation and
dropout are drawn from (seed, epoch) or (seed, step), never from a generator that runs on. So a run that is
killed and resumed from a checkpoint ends with the bytes of one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from polyweft.data.batches import (
    Arrays,
    batch_bounds,
    choose_contents,
    drop_modalities,
    epoch_order,
    share_of,
    take,
    together,
)
from polyweft.data.reader import Reader
from polyweft.models.family import Family
from polyweft.training import sharding
from polyweft.training.audio_augment import audio_draws
from polyweft.training.augment import draws, presence_draws
from polyweft.training.distributed import World
from polyweft.training.feed import Feed
from polyweft.training.gradients import Work
from polyweft.training.learner import Learner, Progress, Surroundings
from polyweft.training.params import TrainParams
from polyweft.training.settings import check_settings
from polyweft.training.system_metrics import process_megabytes
from polyweft.training.validation import ROWS_AT_ONCE, validate

LOG_EVERY = 10


@dataclass
class Result:
    """What a run leaves: the best weights, where it ended, its curve (columns: `names`), how fast it went."""

    weights: dict[str, Tensor]
    progress: Progress
    curve: list[list[float]]
    resumed_from: int
    samples_per_second: float


def fit(
    model: Family,
    params: TrainParams,
    readers: Mapping[str, Reader],
    train: Arrays,
    validation: Arrays,
    around: Surroundings,
    *,
    seed: int,
) -> Result:
    """Train `model` in place and return the weights of the best validation score.

    Raises
    ------
    TrainingError
        The data or the batch are smaller than they must be, the loss is not finite, or the run was asked to
        stop (it has left a checkpoint then).
    """
    world, bar = around.world, around.bar
    check_settings(params, model, train, world)
    bounds = batch_bounds(len(train), params.batch_size) if params.epochs else []
    total = len(bounds) * params.epochs
    if model.head is not None:
        targets = (torch.from_numpy(part) for part in (train.class_N, train.labels_NK, train.value_N))
        model.head.prepare(*targets)  # type: ignore[operator]
    feed, learner = Feed(readers, world.device), Learner(model, params, around, total)
    seen_M = np.array([model.head is None or name in model.head.sees for name in readers])  # type: ignore[operator]
    progress, resumed_from = learner.progress, learner.progress.step
    begin, seen = time.perf_counter(), 0
    for epoch in range(progress.step // max(len(bounds), 1), params.epochs):
        if progress.stopped:
            break
        order_N = epoch_order(
            len(train),
            seed=seed,
            epoch=epoch,
            difficulty_N=train.difficulty_N if params.curriculum == "difficulty" else None,
            curriculum_epochs=params.curriculum_epochs,
        )
        if params.order == "groups":
            order_N = together(order_N, train.group_N)
        chosen = choose_contents(train, seed=seed, epoch=epoch if params.captions == "drawn" else None)
        draws_NX = draws(len(train), seed=seed, epoch=epoch)
        audio_draws_NX = audio_draws(len(train), seed=seed, epoch=epoch)
        presence_NM = presence_draws(len(train), len(readers), seed=seed, epoch=epoch)
        size = _image_size(params, epoch)
        model.train()
        for first, last in bounds[progress.step - epoch * len(bounds) :]:
            rows_B, real_B = share_of(order_N[first:last], world.rank, world.size)
            batch = take(train, rows_B, chosen, real_B=real_B, positives=params.positives)
            present_BM = drop_modalities(
                batch.present_BM, presence_NM[rows_B], params.modality_dropout, seen_M=seen_M
            )
            work = Work(
                inputs=feed.inputs(
                    batch,
                    draws_BX=draws_NX[rows_B],
                    params=params.augment,
                    audio_draws_BX=audio_draws_NX[rows_B],
                    audio_params=params.augment_audio,
                    size=size,
                ),
                present_BM=torch.from_numpy(present_BM).to(world.device),
                targets=feed.targets(batch),
                seed=_step_seed(seed, progress.step, world),
            )
            shares = (share_of(order_N[first:last], rank, world.size)[0] for rank in range(world.size))
            row, stopping = learner.learn(work, [[train.ids[row] for row in share] for share in shares])
            seen += last - first
            bar.at(progress.step, total)
            if progress.step % LOG_EVERY == 0:
                speed = seen / (time.perf_counter() - begin)
                around.log(
                    {
                        **row,
                        "memory_mb": process_megabytes(),
                        "samples_per_second": round(speed, 1),
                        "epoch": epoch,
                    },
                    progress.step,
                )
            if last == len(train) and (
                (epoch + 1) % params.validate_every == 0 or epoch + 1 == params.epochs
            ):
                with learner.averaged():
                    scores = validate(
                        model,
                        validation,
                        feed,
                        world,
                        removing=params.modality_dropout > 0,
                        positives=params.positives,
                        rows_at_once=min(learner.micro_batch or ROWS_AT_ONCE, ROWS_AT_ONCE),
                    )
                    learner.choose(scores, epoch)
                around.log({f"validation_{name}": value for name, value in scores.items()}, progress.step)
                bar.say(_line(progress, row, epoch, params.epochs, seen / (time.perf_counter() - begin)))
            learner.keep(stopping=stopping)
            around.step_done()
    speed = seen / max(time.perf_counter() - begin, 1e-9)
    with learner.averaged():
        weights = learner.best or sharding.whole_state(model)
    return Result(weights, progress, learner.rows(), resumed_from, speed)


def _image_size(params: TrainParams, epoch: int) -> int | None:
    if not params.image_sizes:
        return None
    return params.image_sizes[epoch * len(params.image_sizes) // params.epochs]


def _step_seed(seed: int, step: int, world: World) -> int:
    key = np.random.SeedSequence([seed, step, world.rank]).generate_state(1, np.uint64)
    return int(key[0] >> np.uint64(2))


def _line(progress: Progress, row: dict[str, float], epoch: int, epochs: int, speed: float) -> str:
    scores = {k: v for k, v in progress.validations[-1].items() if k not in ("epoch", "score")}
    shown = "  ".join(f"{name} {value:.3f}" for name, value in scores.items())
    return f"epoch {epoch + 1}/{epochs}  loss {row['loss']:.3f}  {shown}  {speed:.0f} samples/s"
