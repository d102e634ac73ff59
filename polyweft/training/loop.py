"""The one training loop, read top to bottom.

A run is a function of its settings, its data and the number of processes: order, captions, augmentation and
dropout are drawn from (seed, epoch) or (seed, step), never from a generator that runs on. So a run that is
killed and resumed from a checkpoint ends with the bytes of one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from polyweft.data.batches import Arrays, Batch, caption_choice, epoch_order, take
from polyweft.data.decode import ImageSpec
from polyweft.errors import TrainingError
from polyweft.models.dual_tower import MAX_LOGIT_SCALE, DualTower
from polyweft.progress import Bar
from polyweft.training import checkpoint
from polyweft.training.augment import augment, draws
from polyweft.training.distributed import World
from polyweft.training.losses import classification_loss, contrastive_loss
from polyweft.training.optim import adamw, learning_rate
from polyweft.training.params import TrainParams
from polyweft.training.validation import Pixels, validate

Log = Callable[[dict[str, float], int], None]

CURVE = ("step", "epoch", "loss", "contrastive", "classification", "lr", "grad_norm", "temperature")


@dataclass
class Progress:
    """Where a run stands; with the weights and the optimiser's state it is all that a checkpoint holds."""

    step: int = 0
    best_score: float = -1.0
    best_epoch: int = 0
    stale_epochs: int = 0
    stopped: bool = False
    curve: list[list[float]] = field(default_factory=list)
    validations: list[dict[str, float]] = field(default_factory=list)


@dataclass
class Result:
    """What a run leaves: the best weights, where it ended, how fast it went."""

    weights: dict[str, Tensor]
    progress: Progress
    resumed_from: int
    samples_per_second: float


def fit(
    model: DualTower,
    params: TrainParams,
    spec: ImageSpec,
    train: Arrays,
    validation: Arrays,
    world: World,
    *,
    seed: int,
    checkpoints: Path,
    log: Log,
    bar: Bar,
) -> Result:
    """Train `model` in place and return the weights of the best validation score.

    Raises
    ------
    TrainingError
        The data are smaller than a batch, the batch does not divide among the processes, or the loss is
        not finite.
    """
    rows_each = _rows_each(params, train, world)
    steps_an_epoch = len(train) // params.batch_size
    total = steps_an_epoch * params.epochs
    model.to(device=world.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    wrapped: nn.Module = DistributedDataParallel(model) if world.size > 1 else model
    optimizer = adamw(model, lr=params.lr, weight_decay=params.weight_decay, betas=params.betas)
    pixels = Pixels(spec.mean, spec.std, world.device)
    fill_3 = torch.tensor(spec.background, device=world.device) / 255.0
    progress, best = _resume(model, optimizer, checkpoints, bar.say)
    resumed_from = progress.step
    begin, seen = time.perf_counter(), 0
    for epoch in range(progress.step // max(steps_an_epoch, 1), params.epochs):
        if progress.stopped:
            break
        order_N = epoch_order(len(train), seed=seed, epoch=epoch)
        caption_N = caption_choice(train, seed=seed, epoch=epoch)
        draws_N10 = draws(len(train), seed=seed, epoch=epoch)
        model.train()
        for index in range(progress.step - epoch * steps_an_epoch, steps_an_epoch):
            first = index * params.batch_size + world.rank * rows_each
            batch = take(train, order_N[first : first + rows_each], caption_N, positives=params.positives)
            rate = learning_rate(progress.step, peak=params.lr, warmup=params.warmup_steps, total=total)
            for group in optimizer.param_groups:
                group["lr"] = rate
            torch.manual_seed(_step_seed(seed, progress.step, world))
            unit = augment(
                pixels.unit(batch.pixels_BSS3),
                _tensor(draws_N10[batch.rows_B], world),
                params.augment,
                fill_3,
            )
            losses = _losses(wrapped, model, pixels.normalise(unit), batch, params, world)
            if not math.isfinite(float(losses[0].detach())):
                raise TrainingError(_not_finite(progress.step, [train.ids[row] for row in batch.rows_B]))
            optimizer.zero_grad(set_to_none=True)
            losses[0].backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(model.parameters(), params.clip_norm)
            optimizer.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0.0, MAX_LOGIT_SCALE)
            means = _mean_over_processes(torch.stack([part.detach() for part in losses]), world)
            temperature = math.exp(-float(model.logit_scale.detach()))
            row = [progress.step, epoch, *means, rate, float(norm), temperature]
            progress.curve.append([float(f"{value:.6g}") for value in row])
            progress.step += 1
            seen += params.batch_size
            bar.at(progress.step, total)
            if progress.step % 10 == 0:
                log(dict(zip(CURVE[2:], progress.curve[-1][2:], strict=True)), progress.step)
            last = index + 1 == steps_an_epoch
            if last and ((epoch + 1) % params.validate_every == 0 or epoch + 1 == params.epochs):
                best = _choose(model, best, validation, pixels, params, progress, epoch, world)
                log({f"validation_{k}": v for k, v in progress.validations[-1].items()}, progress.step)
                speed = seen / (time.perf_counter() - begin)
                bar.say(_line(progress, epoch, params.epochs, speed))
            if world.is_main and (progress.step % params.checkpoint_steps == 0 or progress.stopped):
                checkpoint.save(checkpoints, progress.step, _tensors(model, optimizer, best), vars(progress))
    speed = seen / max(time.perf_counter() - begin, 1e-9)
    return Result(best or _weights(model), progress, resumed_from, speed)


def _rows_each(params: TrainParams, train: Arrays, world: World) -> int:
    if params.epochs and len(train) < params.batch_size:
        raise TrainingError(
            f"train.batch_size is {params.batch_size} but the train split has {len(train)} samples; "
            "lower train.batch_size or bring more data."
        )
    if params.batch_size % world.size:
        raise TrainingError(
            f"train.batch_size {params.batch_size} does not divide among {world.size} processes; "
            "choose a multiple of train.processes."
        )
    return params.batch_size // world.size


def _losses(
    wrapped: nn.Module, model: DualTower, inputs: Tensor, batch: Batch, params: TrainParams, world: World
) -> tuple[Tensor, Tensor, Tensor]:
    """The weighted sum, the contrastive and the classification loss of this process's rows."""
    precision = torch.bfloat16 if params.precision == "bf16" else torch.float32
    present_B2 = _tensor(batch.present_B2, world)
    # On a CPU in bf16 six ViT-B blocks took 757 ms with the fused attention and 546 ms with the plain form.
    attention = SDPBackend.MATH if world.device.type == "cpu" else SDPBackend.FLASH_ATTENTION
    with (
        sdpa_kernel([attention, SDPBackend.MATH]),
        torch.autocast(world.device.type, dtype=precision, enabled=params.precision != "fp32"),
    ):
        image_BD, text_BD, logits_BC = wrapped(
            inputs.contiguous(memory_format=torch.channels_last), _tensor(batch.ids_BT, world), present_B2
        )
    contrastive = contrastive_loss(
        image_BD,
        text_BD,
        model.logit_scale.exp(),
        _tensor(batch.image_key_B, world),
        _tensor(batch.text_key_B, world),
        present_B2.bool().all(dim=1),
    )
    classification = contrastive.new_zeros(())
    if logits_BC is not None:
        classification = classification_loss(logits_BC, _tensor(batch.class_B, world), params.label_smoothing)
    loss = params.contrastive_weight * contrastive + params.classification_weight * classification
    return loss, contrastive, classification


def _choose(
    model: DualTower,
    best: dict[str, Tensor] | None,
    validation: Arrays,
    pixels: Pixels,
    params: TrainParams,
    progress: Progress,
    epoch: int,
    world: World,
) -> dict[str, Tensor] | None:
    """Validate, keep the weights if they are the best so far, and say in `progress` whether to stop."""
    scores = validate(model, validation, pixels, world) if len(validation) else {}
    progress.validations.append({"epoch": epoch, **{k: float(f"{v:.6g}") for k, v in scores.items()}})
    score = scores.get("score")
    if score is None:
        return None
    if score > progress.best_score:
        progress.best_score, progress.best_epoch, progress.stale_epochs = score, epoch + 1, 0
        return _weights(model)
    progress.stale_epochs += params.validate_every
    progress.stopped = progress.stale_epochs >= params.early_stopping_epochs
    return best


def _resume(
    model: DualTower, optimizer: torch.optim.Optimizer, folder: Path, say: Callable[[str], None]
) -> tuple[Progress, dict[str, Tensor] | None]:
    found = checkpoint.latest(folder)
    if found is None:
        return Progress(), None
    tensors, state, warnings = found
    for warning in warnings:
        say(f"warning: {warning}")
    model.load_state_dict(_part(tensors, "model."))
    optimizer_state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _part(tensors, "optimizer.").items():
        number, _, slot = name.partition(".")
        optimizer_state.setdefault(int(number), {})[slot] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": optimizer_state, "param_groups": groups})
    for parameter, slots in optimizer.state.items():
        for slot, tensor in slots.items():  # in the parameter's memory order: the fused step walks both alike
            if tensor.shape == parameter.shape:
                slots[slot] = torch.empty_like(parameter).copy_(tensor)
    progress = Progress(**{name: state[name] for name in vars(Progress())})
    say(f"resumed from step {progress.step}")
    return progress, _part(tensors, "best.") or None


def _tensors(
    model: DualTower, optimizer: torch.optim.Optimizer, best: dict[str, Tensor] | None
) -> dict[str, Tensor]:
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in (best or {}).items()}
    for number, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{slot}": tensor for slot, tensor in slots.items()}
    return tensors


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _weights(model: DualTower) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def _mean_over_processes(values: Tensor, world: World) -> list[float]:
    if world.size > 1:
        distributed.all_reduce(values)
        values = values / world.size
    return [float(value) for value in values]


def _step_seed(seed: int, step: int, world: World) -> int:
    return int(np.random.SeedSequence([seed, step, world.rank]).generate_state(1)[0])


def _tensor(array: Any, world: World) -> Tensor:
    return torch.from_numpy(array).to(world.device)


def _line(progress: Progress, epoch: int, epochs: int, speed: float) -> str:
    scores = ", ".join(f"{k} {v:.3f}" for k, v in progress.validations[-1].items() if k != "epoch")
    return f"epoch {epoch + 1}/{epochs}  loss {progress.curve[-1][2]:.3f}  {scores}  {speed:.0f} samples/s"


def _not_finite(step: int, ids: list[str]) -> str:
    shown = ", ".join(ids[:8]) + (", ..." if len(ids) > 8 else "")
    return (
        f"the loss of step {step} is not finite, over the samples {shown}. Lower train.lr, raise "
        "train.warmup_steps, or look at these samples; the last checkpoint is kept."
    )
