"""FSDP2: parameters, gradients and optimiser state divided over the processes (`train.strategy: fsdp`).

`shard` divides each block of the model and the rest; the model is then called and stepped as before. A
parameter is a DTensor of which each process holds some rows. It runs on GPUs with NCCL and on CPUs with gloo.
Parameters without a dimension (temperatures) cannot be divided: every process holds them, and
`average_whole_gradients` makes their gradients equal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from polyweft.training.distributed import World


def shard(
    module: nn.Module,
    world: World,
    *,
    blocks: Sequence[nn.Module],
    precision: torch.dtype = torch.float32,
    methods: Iterable[tuple[nn.Module, str]] = (),
) -> None:
    """Divide `module` over the processes, in place (Zhao et al., 2023; torch's FSDP2); alone, do nothing.

    Parameters
    ----------
    blocks
        The modules that are gathered, used and let go one at a time, such as Transformer blocks; see
        `repeated_blocks`. What is in none of them is gathered for the whole forward pass.
    precision
        In which modules compute. Parameters, gradients, their sum and the optimiser's state stay in fp32.
    methods
        Modules of `blocks` (or `module` itself) and the name of a method besides `forward` that uses their
        parameters: it gathers them first.
    """
    if world.size == 1:
        return
    mesh = init_device_mesh(world.device.type, (world.size,))
    policy = MixedPrecisionPolicy(
        param_dtype=None if precision == torch.float32 else precision,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    for parameter in module.parameters():  # FSDP2 takes no other memory order, such as channels_last
        parameter.data = parameter.data.contiguous()
    whole = {parameter for parameter in module.parameters() if parameter.ndim == 0}
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, ignored_params=whole)
    fully_shard(module, mesh=mesh, mp_policy=policy, ignored_params=whole)
    for owner, name in methods:
        register_fsdp_forward_method(owner, name)


def repeated_blocks(module: nn.Module) -> list[nn.Module]:
    """The members of every ModuleList in `module` that has at least two of one class: its blocks."""
    found: list[nn.Module] = []
    for part in module.modules():
        if isinstance(part, nn.ModuleList) and len(part) >= 2 and len({type(block) for block in part}) == 1:
            found += [block for block in part if any(True for _ in block.parameters())]
    return found


def average_whole_gradients(module: nn.Module, world: World) -> None:
    """Average the gradients of the parameters that every process holds whole; call it after `backward`."""
    if world.size == 1:
        return
    for parameter in module.parameters():
        if parameter.requires_grad and not isinstance(parameter, DTensor):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            distributed.all_reduce(parameter.grad)
            parameter.grad /= world.size


def squared_norms(module: nn.Module, world: World) -> dict[nn.Parameter, float]:
    """The squared 2-norm of every parameter's whole gradient, the same on each process.

    The gradients must be averaged already; a parameter without one is left out.
    """
    held = {p: p.grad for p in module.parameters() if p.grad is not None}
    squares = torch.zeros(len(held), dtype=torch.float64, device=world.device)
    local = [grad.to_local() if isinstance(grad, DTensor) else grad for grad in held.values()]
    filled = [place for place, grad in enumerate(local) if grad.numel()]
    if filled:
        norms = torch._foreach_norm([local[place] for place in filled])
        squares[filled] = torch.stack(norms).to(torch.float64).square()
    divided = [place for place, grad in enumerate(held.values()) if isinstance(grad, DTensor)]
    if divided and world.size > 1:
        parts = squares[divided]
        distributed.all_reduce(parts)
        squares[divided] = parts
    return dict(zip(held, squares.tolist(), strict=True))


def clip_gradients(squares: Mapping[nn.Parameter, float], limit: float) -> float:
    """Scale the gradients so that their joint norm, of `squared_norms`, is at most `limit`; the norm before.

    It does what `clip_grad_norm_` does for plain parameters, and takes plain and divided ones together, which
    that does not.
    """
    norm = math.sqrt(sum(squares.values()))
    factor = limit / (norm + 1e-6)
    if factor < 1.0 or math.isnan(factor):
        for parameter in squares:
            grad = parameter.grad
            if grad is not None:
                (grad.to_local() if isinstance(grad, DTensor) else grad).mul_(factor)
    return norm


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """The module's state on the CPU, whole, for export; every process must call it, and gets it."""
    return {name: _whole(tensor) for name, tensor in module.state_dict().items()}


def _whole(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu().clone()
