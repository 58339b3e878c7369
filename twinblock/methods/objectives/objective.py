"""What every objective has in common: facts for a training loop, and full precision."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from twinblock.core.errors import InputError

HALF = (torch.float16, torch.bfloat16)


class Objective(nn.Module):
    """Base of the objectives; the facts say what a training loop, ours or another, may do.

    `symmetric`: f(a, b) = f(b, a), in value and gradient. `detaches_target`: no gradient reaches the target.
    `separable`: the mean over equal micro-batches is the value of the whole batch, so another loop may accumulate
    gradients. `labelled`: the target is the labels. `least_rows`: with fewer samples the formula has
    no value.
    """

    symmetric = False
    detaches_target = False
    separable = False
    labelled = False
    least_rows = 1

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

    Raises InputError for embeddings that are no matrices (n, d), for two of different shapes, which would be
    broadcast, and for fewer rows than the formula needs, which would give NaN.
    """

    @functools.wraps(forward)
    def run(self: Any, z: Tensor, t: Tensor) -> Tensor:
        name, shape = type(self).__name__, tuple(z.shape)
        if z.ndim != 2:
            raise InputError(f"{name} takes embeddings of shape (n, d), one row a sample, not {shape}")
        if t.shape != (z.shape[:1] if self.labelled else z.shape):
            what = f"{name} compares {'scores' if self.labelled else 'embeddings'} of {shape} with "
            raise InputError(f"{what}{'labels of ' if self.labelled else ''}{tuple(t.shape)}")
        if len(z) < self.least_rows:
            raise InputError(f"{name} needs {self.least_rows} samples or more, not {len(z)}: leave this batch out")
        with torch.autocast(z.device.type, enabled=False):
            return forward(self, *(x.float() if x.dtype in HALF else x for x in (z, t)))

    return run


def off_diagonal_squares(matrix: Float[Tensor, "d d"]) -> Float[Tensor, ""]:
    """`sum_{i != j} M_ij^2`; consumes the matrix.

    The diagonal is left out, not subtracted from the whole: where it is most of the whole, float32 would keep
    nothing of the rest. For the same reason |x^T x|^2 is not had from the smaller x x^T.
    """
    return matrix.fill_diagonal_(0).square().sum()
