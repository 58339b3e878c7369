"""Training and evaluation mode of modules, and the running statistics that the latter needs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; each part then returns to the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def calibrated(module: nn.Module, show: Callable[[], Any]) -> Iterator[None]:
    """For a while, running statistics of all batch norms are those of what `show()` passes through the module.

    An untrained network has none: its running mean is 0 and its variance 1, whatever it sees. `show` runs it in
    evaluation mode, where each batch is normalised by its own statistics; their mean over the batches is then kept.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    before = [[buffer.clone() for buffer in _running(norm)] for norm in norms]
    seen: dict[nn.Module, list[tuple[Tensor, ...]]] = {norm: [] for norm in norms}

    def normalise_by_own(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach().transpose(0, 1).flatten(1)
        if len(x) != len(norm.running_mean):  # some channels of an expansion, which are made a few at a time
            return
        n = x.shape[1]
        variance, mean = torch.var_mean(x.to(norm.running_mean.dtype), 1, correction=0)
        seen[norm].append((mean, variance * n / max(n - 1, 1)))  # as torch keeps it; a batch is divided by the other
        _set(norm, mean, variance)

    hooks = [norm.register_forward_pre_hook(normalise_by_own) for norm in norms]
    try:
        try:
            show()
        finally:
            for hook in hooks:
                hook.remove()
        for norm, batches in seen.items():
            if batches:
                _set(norm, *(torch.stack(values).mean(0) for values in zip(*batches, strict=True)))
        yield
    finally:
        for norm, buffers in zip(norms, before, strict=True):
            _set(norm, *buffers)


def _running(norm: Any) -> tuple[Tensor, Tensor]:
    return norm.running_mean, norm.running_var


@torch.no_grad()
def _set(norm: Any, *values: Tensor) -> None:
    for buffer, value in zip(_running(norm), values, strict=True):
        buffer.copy_(value)
