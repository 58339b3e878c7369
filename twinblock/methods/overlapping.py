"""Learners that share blocks, trained as one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from twinblock.methods.learner import Batch, Learner, Signal


class OverlappingLearners(nn.Module):
    """Learners that share blocks, as one: the loss is the sum of theirs, and each begins at the other's second block.

    The local units of LoCo (Xiong et al. 2020, arXiv 2008.01342, section 3): a shared block learns from both losses.
    It runs once for each, so its batch statistics advance twice a step.
    """

    def __init__(self, parts: Sequence[Learner]):
        super().__init__()
        self.learners = nn.ModuleList(parts)

    @property
    def parts(self) -> Sequence[Learner]:
        return tuple(self.learners)  # pyright: ignore[reportReturnType]

    def forward(self, signal: Signal, batch: Batch) -> tuple[Tensor, Signal, list[tuple[Any, ...]]]:
        losses, rests = [], []
        for learner in self.parts:
            loss, signal, *rest = learner(signal, batch)
            parameters = [p for p in learner.parameters() if p.requires_grad]
            losses.append(_Differentiated.apply(loss.detach(), torch.autograd.grad(loss, parameters), *parameters))
            rests.append(tuple(rest))
        return torch.stack(losses).sum(), signal, rests

    def after_step(self, step: int, total: int, rests: Sequence[tuple[Any, ...]]) -> None:
        for learner, rest in zip(self.parts, rests, strict=True):
            learner.after_step(step, total, *rest)


class _Differentiated(torch.autograd.Function):
    """A loss whose gradient was taken at once, so that its graph is freed before the next one is built."""

    @staticmethod
    def forward(ctx, loss, gradients, *parameters):
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx, *upstream):
        return None, None, *(upstream[0] * gradient for gradient in ctx.gradients)
