"""Training and evaluation mode of modules, and the running statistics that the latter needs."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def has_batch_norm(module: nn.Module) -> bool:
    """Whether anything in it takes statistics of a batch."""
    return any(isinstance(part, _BatchNorm) for part in module.modules())


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


def computed_again(module: nn.Module, *inputs: Any) -> Any:
    """`module(*inputs)`, of which backward computes all maps again instead of holding them.

    The second time the module has the tensors that it has now, is in the same context (whether paths are dropped, say),
    and moves no running statistics.
    """
    context = copy_context()
    parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    times = 0

    def run(*inputs: Any) -> Any:
        nonlocal times
        times += 1
        held = buffers if times == 1 else {name: buffer.clone() for name, buffer in buffers.items()}
        # the tensors are given: those of a pruned network lie in the modules in forward alone
        return context.run(functional_call, module, {**parameters, **held}, inputs)

    return checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=False)


@contextmanager
def calibrated(module: nn.Module, show: Callable[[], Any]) -> Iterator[None]:
    """For a while, running statistics of all batch norms are those of what `show()` passes through the module.

    An untrained network has none: its running mean is 0 and its variance 1, whatever it sees. `show` runs it in
    evaluation mode, where each batch is normalised by its own statistics; their mean over the batches is then kept.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    buffers = {norm: _running(norm) for norm in norms}
    before = {norm: [buffer.clone() for buffer in pair] for norm, pair in buffers.items()}
    seen: dict[tuple[_BatchNorm, int], list[tuple[Tensor, ...]]] = defaultdict(list)

    def normalise_by_own(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach().transpose(0, 1).flatten(1)
        n = x.shape[1]
        variance, mean = torch.var_mean(x.to(norm.running_mean.dtype), 1, correction=0)
        # an expansion makes some channels at a time, and its norm has that part of its statistics for a while
        start = norm.running_mean.storage_offset() - buffers[norm][0].storage_offset()
        seen[norm, start].append((mean, variance * n / max(n - 1, 1)))  # as torch keeps it
        _set(_running(norm), (mean, variance))  # a batch is divided by the other

    hooks = [norm.register_forward_pre_hook(normalise_by_own) for norm in norms]
    try:
        try:
            show()
        finally:
            for hook in hooks:
                hook.remove()
        for (norm, start), batches in seen.items():
            means = [torch.stack(values).mean(0) for values in zip(*batches, strict=True)]
            _set([buffer[start : start + len(means[0])] for buffer in buffers[norm]], means)
        yield
    finally:
        for norm, values in before.items():
            _set(buffers[norm], values)


def _running(norm: Any) -> tuple[Tensor, Tensor]:
    return norm.running_mean, norm.running_var


@torch.no_grad()
def _set(buffers: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for buffer, value in zip(buffers, values, strict=True):
        buffer.copy_(value)
