"""The optimiser and its schedule: AdamW, layer-wise rates, freezing, warm-up, cosine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from polyweft.errors import ConfigError
from polyweft.training.muon import MuonAdamW, MuonParams, matrices

if TYPE_CHECKING:
    from polyweft.training.checkpoint import Checkpoint


def freeze(module: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Take the parameters that `patterns` name out of training; their names.

    A pattern is a name's beginning up to a dot (`towers.image`) or has wildcards (`towers.*.encoder.*`).

    Raises
    ------
    ConfigError
        A pattern names no parameter, or nothing is left to train.
    """
    frozen: set[str] = set()
    names = [name for name, _ in module.named_parameters()]
    for pattern in patterns:
        hit = [n for n in names if n == pattern or n.startswith(f"{pattern}.") or fnmatchcase(n, pattern)]
        if not hit:
            tops = sorted({".".join(name.split(".")[:2]) for name in names})
            raise ConfigError(
                f"train.freeze: {pattern!r} names no parameter. The model has {', '.join(tops)}."
            )
        frozen.update(hit)
    for name, parameter in module.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    if names and not any(parameter.requires_grad for parameter in module.parameters()):
        raise ConfigError("train.freeze: nothing is left to train. Take a pattern out.")
    return sorted(frozen)


def adamw(
    module: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    betas: Sequence[float],
    layer_decay: float = 1.0,
    muon: MuonParams | None = None,
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, 2019); vectors and scalars (norms, biases, temperature) do not decay.

    With `layer_decay` below 1 each block's rate is that factor smaller than the next deeper one's (Clark et
    al., 2020, ELECTRA; Bao et al., 2022, BEiT); a group's `scale` holds its factor, see `set_rate`. Frozen
    parameters are left out. With `muon` the matrices are Muon's, see there.
    """
    turned = set(map(id, matrices(module))) if muon is not None else set()
    scales = layer_scales(module, layer_decay)
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and id(parameter) not in turned:
            key = (scales[name], parameter.ndim >= 2, isinstance(parameter, DTensor))
            groups.setdefault(key, []).append(parameter)
    listed: list[dict[str, Any]] = [
        {"params": parameters, "weight_decay": weight_decay if decays else 0.0, "scale": scale}
        for (scale, decays, _), parameters in groups.items()
    ]
    if muon is None:
        return torch.optim.AdamW(listed, lr=lr, betas=(betas[0], betas[1]), eps=1e-6, fused=True)
    for scale in sorted({scales[name] for name, p in module.named_parameters() if id(p) in turned}):
        parameters = [p for n, p in module.named_parameters() if id(p) in turned and scales[n] == scale]
        listed.append(
            {
                "params": parameters,
                "weight_decay": muon.weight_decay,
                "scale": scale * muon.lr / lr,
                "muon": muon.momentum,
            }
        )
    return MuonAdamW(listed, lr=lr, betas=(betas[0], betas[1]), eps=1e-6, fused=True)


def layer_scales(module: nn.Module, decay: float) -> dict[str, float]:
    """Each parameter's factor of the learning rate: `decay` ** (layers above it) in a stack of blocks.

    A stack is a ModuleList or Sequential of at least two modules of one class that all have parameters; one
    inside another's member belongs to that member. What comes before the only stack of its module (patch and
    token embeddings, positions) is one layer below the first block; everything else has factor 1.
    """
    order = [name for name, _ in module.named_parameters()]
    scales = dict.fromkeys(order, 1.0)
    if decay == 1.0:
        return scales
    stacks = _stacks(module)
    for place, (name, parameter) in enumerate(module.named_parameters()):
        inside = next((stack for stack in stacks if name.startswith(f"{stack}.")), None)
        if inside is not None:
            member = int(name.removeprefix(f"{inside}.").partition(".")[0])
            scales[name] = decay ** (stacks[inside] - 1 - member)
            continue
        stack = _only_stack_beside(name, list(stacks))
        if stack is not None and parameter.numel() > 1:
            first = next(i for i, other in enumerate(order) if other.startswith(f"{stack}."))
            if place < first:
                scales[name] = decay ** stacks[stack]
    return scales


def _stacks(module: nn.Module) -> dict[str, int]:
    """The outermost stacks of blocks, by name, and how many members each has."""
    found: dict[str, int] = {}
    for name, part in module.named_modules():
        if not isinstance(part, nn.ModuleList | nn.Sequential) or len(part) < 2:
            continue
        alike = len({type(block) for block in part}) == 1
        filled = all(any(True for _ in block.parameters()) for block in part)
        if alike and filled and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = len(part)
    return found


def _only_stack_beside(name: str, stacks: list[str]) -> str | None:
    """The stack in the nearest module around parameter `name` that has any, if it has just one."""
    around = name
    while around:
        around = around.rpartition(".")[0]
        inside = [stack for stack in stacks if not around or stack.startswith(f"{around}.")]
        if inside:
            return inside[0] if len(inside) == 1 else None
    return None


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group `rate` times its scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


def learning_rate(step: int, *, peak: float, warmup: int, total: int) -> float:
    """The rate of step `step` (from 0): linear warm-up to `peak`, then half a cosine down to 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def state_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state for a checkpoint, as `<parameter>:<slot>` (`towers.image.out.weight:exp_avg`)."""
    return {
        f"{name}:{slot}": tensor
        for name, parameter in module.named_parameters()
        for slot, tensor in optimizer.state.get(parameter, {}).items()
    }


def restore_state(
    module: nn.Module, optimizer: torch.optim.Optimizer, found: Checkpoint, prefix: str = "optimizer."
) -> None:
    """Put `state_tensors` back, in place, of a DTensor only the part held here.

    Slots get their parameter's memory order: the fused step walks both alike.
    """
    slots: dict[str, list[str]] = {}
    for stored in found.names(prefix):
        name, _, slot = stored.rpartition(":")
        slots.setdefault(name, []).append(slot)
    for name, parameter in module.named_parameters():
        for slot in slots.get(name, ()):
            like = found.shape(f"{prefix}{name}:{slot}") == tuple(parameter.shape)
            fresh = torch.zeros_like(parameter) if like else torch.zeros((), device=parameter.device)
            optimizer.state[parameter][slot] = fresh.detach()
    found.restore(state_tensors(module, optimizer), prefix)
