"""What takes a step: a model with its optimiser, its averaged and best weights, and its checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from polyweft.errors import TrainingError
from polyweft.io import write_json
from polyweft.models.family import Family
from polyweft.progress import Bar
from polyweft.training import checkpoint, optim, sharding
from polyweft.training.curve import Curve
from polyweft.training.distributed import World, mean_over_processes
from polyweft.training.ema import Ema
from polyweft.training.gradients import (
    Step,
    Teacher,
    Work,
    average_gradients,
    backward_cached,
    backward_whole,
    send_rows_of_word_tables,
)
from polyweft.training.memory import chosen_micro_batch, run_with_halving
from polyweft.training.params import TrainParams

Log = Callable[[dict[str, float], int], None]
SHOWN_ROWS = 8
PRECISION = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Progress:
    """Where a run stands; with the weights and the optimiser's state it is all that a checkpoint holds."""

    step: int = 0
    best_score: float = -1.0
    best_epoch: int = 0
    stale_epochs: int = 0
    stopped: bool = False
    loss_scale: float = 65536.0
    steps_at_scale: int = 0
    names: list[str] = field(default_factory=list)
    validations: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Surroundings:
    """Where a run happens: its process, its folder of checkpoints, who is told what, when to stop."""

    world: World
    checkpoints: Path
    log: Log
    bar: Bar
    stopping: Callable[[], bool] = lambda: False
    step_done: Callable[[], None] = lambda: None
    teacher: Teacher | None = None


class Learner:
    """The model with its optimiser: takes steps, keeps the best weights, writes and reads checkpoints."""

    def __init__(self, model: Family, params: TrainParams, around: Surroundings, total: int) -> None:
        self.model, self.params, self.around, self.total = model, params, around, total
        world = around.world
        self.world, self.micro_batch = world, chosen_micro_batch(around.checkpoints, params.micro_batch)
        model.to(device=world.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optim.freeze(model, params.freeze)
        if params.gradient_checkpointing:
            _checkpoint_activations(model)
        if params.strategy == "fsdp":
            blocks = sharding.repeated_blocks(model)
            sharding.shard(model, world, blocks=blocks, methods=[(model, "losses")])
        self.step = Step(model, around.teacher)
        self.whole: nn.Module = self.step
        if params.strategy == "ddp" and world.size > 1:
            # Unused parameters are looked for, which also keeps the order of the sums: torch would otherwise
            # divide the gradients anew after the first step, and a resumed run would round differently.
            send_rows_of_word_tables(model, world, compiled=params.compile)
            self.whole = DistributedDataParallel(
                self.step, find_unused_parameters=True, gradient_as_bucket_view=True
            )
        if params.compile:
            self.whole = torch.compile(self.whole)  # type: ignore[assignment]
        self.optimizer = optim.adamw(
            model,
            lr=params.lr,
            weight_decay=params.weight_decay,
            betas=params.betas,
            layer_decay=params.layer_decay,
            muon=params.muon,
        )
        self.ema = Ema(model, params.ema_decay) if params.ema_decay else None
        self.best: dict[str, Tensor] | None = None
        self.progress, mark = self._resume()
        self.curve = Curve(around.checkpoints, mark) if world.is_main else None
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=params.precision == "fp16")
        if self.scaler.is_enabled():
            place = {"scale": self.progress.loss_scale, "_growth_tracker": self.progress.steps_at_scale}
            self.scaler.load_state_dict(self.scaler.state_dict() | place)

    def learn(self, work: Work, ids: Sequence[Sequence[str]]) -> tuple[dict[str, float], bool]:
        """Take one step; the row of the curve that it adds, and whether any process was asked to stop.

        `ids` names the batch's samples, by process.

        Raises
        ------
        TrainingError
            A loss, or the gradient, is not finite: the weights are those before the step, and stand in a
            checkpoint.
        """
        params, progress = self.params, self.progress
        rate = optim.learning_rate(
            progress.step, peak=params.lr, warmup=params.warmup_steps, total=self.total
        )
        optim.set_rate(self.optimizer, rate)
        rows = self.micro_batch or len(work.present_BM)
        losses, fitting = run_with_halving(
            lambda micro: self.backward(work, micro),
            rows,
            self.world,
            folder=self.around.checkpoints,
            say=self.around.bar.say,
        )
        self.micro_batch = fitting if fitting < rows else self.micro_batch
        names = list(losses)
        # Every process must hear of a request to stop at the same step: it travels with the losses.
        stopping = torch.tensor(float(self.around.stopping()), device=self.world.device)
        local = torch.stack([*(loss.float() for loss in losses.values()), stopping])
        *means, asked = mean_over_processes(local.clone(), self.world).tolist()
        if not all(math.isfinite(value) for value in means):
            bad = ", ".join(f"{n} {v}" for n, v in zip(names, means, strict=True) if not math.isfinite(v))
            raise self._not_finite(f"the loss of step {progress.step} is not finite ({bad})", local, ids)
        self.scaler.unscale_(self.optimizer)
        squares = sharding.squared_norms(self.model, self.world)
        norms = {f"grad_norm_{name}": _norm(squares, tower) for name, tower in self.model.towers.items()}
        norm = sharding.clip_gradients(squares, params.clip_norm)
        if not math.isfinite(norm) and not self.scaler.is_enabled():  # the scaler passes such a step over
            raise self._not_finite(f"the gradient of step {progress.step} is not finite", None, ids)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.model.after_step()
        if self.ema is not None:
            self.ema.update(self.model, progress.step)
        progress.step += 1
        row = {"loss": sum(means), **dict(zip(names, means, strict=True)), "lr": rate, "grad_norm": norm}
        row |= {**norms, **self.model.facts()}
        progress.names = ["step", *row]
        if self.curve is not None:
            self.curve.append([progress.step - 1, *(float(f"{value:.6g}") for value in row.values())])
        return row, asked > 0

    def backward(self, work: Work, micro_batch: int | None) -> dict[str, Tensor]:
        """Gradients of one step into the parameters, averaged over the processes; the losses of this one."""
        self.optimizer.zero_grad(set_to_none=True)
        if micro_batch is None or micro_batch >= len(work.present_BM):
            losses = backward_whole(self.whole, work, self._autocast, self.scaler.scale)
        else:
            losses = backward_cached(
                self.step, work, self._autocast, self.scaler.scale, micro_batch=micro_batch
            )
            if self.params.strategy == "ddp":
                average_gradients(self.model)
        if self.params.strategy == "fsdp":
            sharding.average_whole_gradients(self.model, self.world)
        return losses

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the model has the weights that count: the averaged ones, where there are such."""
        return nullcontext() if self.ema is None else self.ema.applied(self.model)

    def choose(self, scores: dict[str, float], epoch: int) -> None:
        """Keep the weights if their score is the best so far, and note whether to stop."""
        progress = self.progress
        progress.validations.append({"epoch": epoch, **{k: float(f"{v:.6g}") for k, v in scores.items()}})
        score = scores.get("score")
        if score is None:
            self.best = None
        elif score > progress.best_score:
            progress.best_score, progress.best_epoch, progress.stale_epochs = score, epoch + 1, 0
            self.best = sharding.whole_state(self.model)
        else:
            progress.stale_epochs += self.params.validate_every
            progress.stopped = progress.stale_epochs >= self.params.early_stopping_epochs

    def keep(self, *, stopping: bool) -> None:
        """Write a checkpoint where one is due; with `stopping`, write one and end the run."""
        due = self.progress.step % self.params.checkpoint_steps == 0 or self.progress.stopped
        if due or stopping:
            self._save()
        if stopping:
            raise TrainingError(
                f"stopped after step {self.progress.step}; a checkpoint holds it. Run `dvc repro` to go on."
            )

    def rows(self) -> list[list[float]]:
        """The curve so far; empty but on the main process."""
        return [] if self.curve is None else self.curve.rows()

    def _autocast(self) -> AbstractContextManager[object]:
        stack = ExitStack()
        # For attention across modalities (the towers' own is in `models.transformer`): backends whose
        # gradients are the same each time, and on a CPU the plain one, which is faster in bf16.
        backend = SDPBackend.MATH if self.world.device.type == "cpu" else SDPBackend.FLASH_ATTENTION
        stack.enter_context(sdpa_kernel([backend, SDPBackend.MATH]))
        precision = PRECISION[self.params.precision]
        if precision is not torch.float32:
            stack.enter_context(torch.autocast(self.world.device.type, dtype=precision))
        return stack

    def _save(self) -> None:
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        state = optim.state_tensors(self.model, self.optimizer)
        tensors |= {f"optimizer.{name}": tensor for name, tensor in state.items()}
        tensors |= {f"best.{name}": tensor for name, tensor in (self.best or {}).items()}
        if self.ema is not None:
            tensors |= {f"ema.{name}": tensor for name, tensor in self.ema.tensors().items()}
        if self.scaler.is_enabled():
            scaling = self.scaler.state_dict()
            self.progress.loss_scale = float(scaling["scale"])
            self.progress.steps_at_scale = int(scaling["_growth_tracker"])
        checkpoint.save(
            self.around.checkpoints,
            self.progress.step,
            tensors,
            vars(self.progress),
            world=self.world,
            curve=self.curve,
        )

    def _not_finite(self, what: str, local: Tensor | None, ids: Sequence[Sequence[str]]) -> TrainingError:
        """Keep the weights, and name the rows of the processes whose values, `local`, are not finite."""
        self.optimizer.zero_grad(set_to_none=True)
        self._save()
        faulty = torch.zeros(self.world.size, device=self.world.device)
        faulty[self.world.rank] = 1.0 if local is None or not local.isfinite().all() else 0.0
        flags = mean_over_processes(faulty, self.world).tolist()
        shares = [share for share, flag in zip(ids, flags, strict=True) if flag]
        rows = list(dict.fromkeys(row for share in shares for row in share))
        folder = self.around.checkpoints
        listed, place = folder / "not-finite.json", folder / f"step-{self.progress.step:09d}"
        if self.world.is_main:
            write_json(listed, {"what": what, "rows": rows})
        more = f" and {len(rows) - SHOWN_ROWS} more, all in {listed}" if len(rows) > SHOWN_ROWS else ""
        return TrainingError(
            f"{what}; its rows: {', '.join(rows[:SHOWN_ROWS])}{more}. The weights before it are kept in "
            f"{place}. Mend the rows at their source, lower train.lr or train in fp32, and run `dvc repro`: "
            "it begins anew, with these weights if train.init_from names their folder."
        )

    def _resume(self) -> tuple[Progress, dict[str, Any] | None]:
        bar = self.around.bar
        place, warn = self.around.checkpoints, lambda text: bar.say(f"warning: {text}")
        found = checkpoint.newest(place, self.world, warn)
        if found is None:
            return Progress(), None
        found.restore(self.model.state_dict(), "model.")
        optim.restore_state(self.model, self.optimizer, found)
        if self.ema is not None:
            found.restore(self.ema.tensors(), "ema.")
        self.best = found.part("best.") or None
        progress = Progress(**{name: found.state[name] for name in vars(Progress())})
        bar.say(f"resumed from step {progress.step}")
        return progress, found.state.get("curve")


def _checkpoint_activations(model: nn.Module) -> None:
    for module in model.modules():
        if hasattr(module, "checkpointing"):
            module.checkpointing = True  # type: ignore[assignment]


def _norm(squares: Mapping[nn.Parameter, float], module: nn.Module) -> float:
    return math.sqrt(sum(squares.get(parameter, 0.0) for parameter in module.parameters()))
