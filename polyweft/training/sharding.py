"""FSDP2: parameters, gradients and optimiser state divided over the processes (`train.strategy: fsdp`).

`shard` divides each block of the model and the rest; the model is then called and stepped as before. A
parameter is a DTensor of which each process holds some rows. It runs on GPUs with NCCL and on CPUs with gloo.
Parameters without a dimension (temperatures) cannot be divided: every process holds them, and
`average_whole_gradients` makes their gradients equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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


def clip_gradients(module: nn.Module, limit: float, world: World) -> float:
    """Scale the gradients so that their joint norm is at most `limit`; the norm before, the same everywhere.

    It equals `clip_grad_norm_` for plain parameters, and takes plain and divided ones together, which that
    does not.
    """
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    whole = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    divided = [gradient.to_local() for gradient in gradients if isinstance(gradient, DTensor)]
    squares = _square(divided, world)
    if divided and world.size > 1:
        distributed.all_reduce(squares)
    norm = (squares + _square(whole, world)).sqrt()
    factor = torch.clamp(limit / (norm + 1e-6), max=1.0).to(torch.float32)
    for gradient in whole + divided:
        gradient.mul_(factor)
    return float(norm)


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """The module's state on the CPU, whole, for export; every process must call it, and gets it."""
    return {name: _whole(tensor) for name, tensor in module.state_dict().items()}


def _whole(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu().clone()


def _square(gradients: list[Tensor], world: World) -> Tensor:
    total = torch.zeros((), dtype=torch.float64, device=world.device)
    norms = torch._foreach_norm([g for g in gradients if g.numel()]) if gradients else ()
    for norm in norms:
        total += norm.to(torch.float64).square()
    return total
