"""What every objective has in common: facts for a training loop, and full precision."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from twinblock.core.errors import InputError

HALF = (torch.float16, torch.bfloat16)


class Objective(nn.Module):
    """Base of the objectives; the facts say what a training loop, ours or another, may do.

    `symmetric`: f(a, b) = f(b, a), in value and gradient. `detaches_target`: no gradient reaches the target.
    `separable`: the mean over equal micro-batches is the value of the whole batch, so another loop may accumulate
    gradients. `labelled`: the target is the labels.
    """

    symmetric = False
    detaches_target = False
    separable = False
    labelled = False

    def pairs(self, sizes: Sequence[int]) -> list[tuple[int, int | None]]:
        """Which views are compared, as (online, target), given the side of each view in pixels; None: the labels.

        By default every view with every other one of the largest size: smaller crops are never targets. A learner
        leaves out a pair whose mirror image gives the same loss. A labelled objective compares every view with labels.
        """
        if getattr(self, "labelled", False):
            return [(i, None) for i in range(len(sizes))]
        return [(i, j) for i in range(len(sizes)) for j, size in enumerate(sizes) if i != j and size == max(sizes)]

    def after_step(self, t: Tensor) -> None:
        """Move the objective's buffers, given the targets of the global batch; most have none."""


def full_precision(
    forward: Callable[[Any, Tensor, Tensor], Tensor],
) -> Callable[[Any, Tensor, Tensor], Tensor]:
    """Runs an objective's forward with autocast off and half-precision inputs raised to float32.

    Raises InputError for embeddings of different shapes, which would be broadcast.
    """

    @functools.wraps(forward)
    def run(self: Any, z: Tensor, t: Tensor) -> Tensor:
        if z.shape != t.shape and not self.labelled:
            raise InputError(f"{type(self).__name__} compares embeddings of {tuple(z.shape)} with {tuple(t.shape)}")
        with torch.autocast(z.device.type, enabled=False):
            return forward(self, *(x.float() if x.dtype in HALF else x for x in (z, t)))

    return run
