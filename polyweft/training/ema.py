"""An exponential moving average of the weights (Polyak and Juditsky, 1992), kept in fp32.

The decay warms up as in TensorFlow's ExponentialMovingAverage with `num_updates`: min(decay, (1 + n) /
(10 + n)) at update n, so that the first weights, which are noise, are forgotten.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class Ema:
    """The average of a module's parameters (of a DTensor the local part); buffers are not averaged."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.average = {
            name: parameter.detach().float().clone()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move the average towards the module's weights after step `step` (counted from 0), in place."""
        weight = 1.0 - min(self.decay, (1 + step) / (10 + step))
        averages, current = [], []
        for name, parameter in module.named_parameters():
            if name in self.average:
                averages.append(_local(self.average[name]))
                current.append(_local(parameter.detach()).float())
        torch._foreach_lerp_(averages, current, weight)

    @contextlib.contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Have `module` use the averaged weights inside the block, and its own again after it."""
        kept = {n: p.detach().clone() for n, p in module.named_parameters() if n in self.average}
        self._put(module, self.average)
        try:
            yield
        finally:
            self._put(module, kept)

    def tensors(self) -> dict[str, Tensor]:
        """The averages by parameter name, for a checkpoint; `Checkpoint.restore` takes them back in place."""
        return self.average

    @staticmethod
    @torch.no_grad()
    def _put(module: nn.Module, weights: dict[str, Tensor]) -> None:
        for name, parameter in module.named_parameters():
            if name in weights:
                _local(parameter).copy_(_local(weights[name]))


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
