"""One step's losses and gradients: in one pass, or in micro-batches that give the same gradients.

A contrastive loss compares every row with every other, so the mean of micro-batches' losses is another loss.
Exact accumulation (Gao et al., 2021, GradCache): embed every micro-batch without gradients, take the one loss
of all rows and its gradient towards the outputs, then embed again and send these gradients back. The random
state is set anew before both passes, so that dropout is the same in both.

Shape suffixes: B rows of this process, M modalities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, distributed, nn

from polyweft.losses.targets import Targets
from polyweft.models.family import Family
from polyweft.models.words import WordTable
from polyweft.training.distributed import World


class Teacher(Protocol):
    """A further source of losses that looks at the inputs as well, such as a larger model."""

    def outputs(self, inputs: dict[str, Tensor], present_BM: Tensor) -> dict[str, Tensor]:
        """What it makes of each row, without gradients; names begin with `teacher.`."""

    def losses(self, outputs: Mapping[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """Named losses from the model's outputs and its own."""


@dataclass(frozen=True)
class Work:
    """What a step computes on: the model's inputs, presence for its head, the losses' targets, a seed."""

    inputs: dict[str, Tensor]
    present_BM: Tensor
    targets: Targets
    seed: int


class Step(nn.Module):
    """A model's forward pass and losses in one module, for wrappers that must see both."""

    def __init__(self, model: Family, teacher: Teacher | None = None) -> None:
        super().__init__()
        self.model = model
        self.teacher = teacher  # no Module: its weights are not this one's

    def forward(self, inputs: dict[str, Tensor], present_BM: Tensor, targets: Targets) -> dict[str, Tensor]:
        """The named losses of all rows at once."""
        outputs = self.model(inputs, present_BM) | self.taught(inputs, present_BM)
        return self.losses(outputs, targets)

    def taught(self, inputs: dict[str, Tensor], present_BM: Tensor) -> dict[str, Tensor]:
        """The teacher's outputs."""
        return {} if self.teacher is None else self.teacher.outputs(inputs, present_BM)

    def losses(self, outputs: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """The family's losses, and the teacher's."""
        losses = self.model.losses(outputs, targets)
        return losses | ({} if self.teacher is None else self.teacher.losses(outputs, targets))


def backward_whole(
    step: nn.Module,
    work: Work,
    autocast: Callable[[], AbstractContextManager[object]],
    scale: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """All rows at once; `step` is a `Step`, or one in DistributedDataParallel, which averages gradients."""
    torch.manual_seed(work.seed)
    with autocast():
        losses: dict[str, Tensor] = step(work.inputs, work.present_BM, work.targets)
    scale(_total(losses)).backward()  # type: ignore[no-untyped-call]
    _fill_rows(step)
    return {name: loss.detach() for name, loss in losses.items()}


def backward_cached(
    step: Step,
    work: Work,
    autocast: Callable[[], AbstractContextManager[object]],
    scale: Callable[[Tensor], Tensor],
    *,
    micro_batch: int,
) -> dict[str, Tensor]:
    """In micro-batches, with the gradients of `backward_whole`; these are not averaged over processes."""
    parts: list[dict[str, Tensor]] = []
    for number, rows in enumerate(_slices(len(work.present_BM), micro_batch)):
        with torch.no_grad():
            parts.append(_forward(step, work, rows, number, autocast, taught=True))
    outputs = {name: torch.cat([part[name].detach() for part in parts]) for name in parts[0]}
    for name, tensor in outputs.items():
        tensor.requires_grad_(tensor.is_floating_point() and not name.startswith("teacher."))
    torch.manual_seed(work.seed)
    with autocast():
        losses = step.losses(outputs, work.targets)
    scale(_total(losses)).backward()  # type: ignore[no-untyped-call]
    for number, rows in enumerate(_slices(len(work.present_BM), micro_batch)):
        again = _forward(step, work, rows, number, autocast)
        sent = [(again[n], g[rows]) for n, g in _gradients(outputs).items() if again[n].requires_grad]
        if sent:
            torch.autograd.backward([tensor for tensor, _ in sent], [grad for _, grad in sent])
    _fill_rows(step)
    return {name: loss.detach() for name, loss in losses.items()}


def send_rows_of_word_tables(model: nn.Module, world: World, *, compiled: bool) -> None:
    """Let DistributedDataParallel, made after this, exchange of each word table the batch's rows alone.

    Only gloo can do it, not NCCL, and torch.compile not at all; there nothing changes. Of the 83 MB of
    gradients of a small dual tower, 50 are those of its 49,408 words: without them two processes on two cores
    take 2% less time for a step.
    """
    for module in model.modules():
        if isinstance(module, WordTable):
            module.sparse = world.device.type == "cpu" and not compiled


def average_gradients(module: nn.Module) -> None:
    """The mean over the processes of every parameter's gradient; one that is nowhere used stays None.

    Always in the same flat order, so that sums over many processes round alike in each run.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return
    used = [p for p in module.parameters() if p.requires_grad]
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in used]
    flat = torch.cat([grad.reshape(-1).float() for grad in grads])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    place = 0
    for parameter, grad in zip(used, grads, strict=True):
        parameter.grad = grad.copy_(flat[place : place + grad.numel()].view_as(grad))
        place += grad.numel()


def _fill_rows(module: nn.Module) -> None:
    """Make whole again what came as rows: norms, clipping and the optimiser take all of a table."""
    for parameter in module.parameters():
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.to_dense()


def _forward(
    step: Step,
    work: Work,
    rows: slice,
    number: int,
    autocast: Callable[[], AbstractContextManager[object]],
    *,
    taught: bool = False,
) -> dict[str, Tensor]:
    torch.manual_seed(work.seed + 1 + number)
    inputs = {name: tensor[rows] for name, tensor in work.inputs.items()}
    with autocast():
        outputs: dict[str, Tensor] = step.model(inputs, work.present_BM[rows])
        return outputs | (step.taught(inputs, work.present_BM[rows]) if taught else {})


def _gradients(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.grad for name, tensor in outputs.items() if tensor.grad is not None}


def _slices(rows: int, size: int) -> Iterator[slice]:
    for begin in range(0, rows, size):
        yield slice(begin, min(begin + size, rows))


def _total(losses: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()
