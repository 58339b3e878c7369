"""What every objective has in common: facts for a training loop, and full precision."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from twinblock.core.errors import InputError
from twinblock.core.types import Positive

HALF = (torch.float16, torch.bfloat16)
Temperature = Annotated[Positive, Field(description="Divides the cosines: low values weigh near images.")]


class Objective(nn.Module):
    """Base of the objectives; the facts say what a training loop, ours or another, may do.

    `family`: what it rests on, in a word. `symmetric`: f(a, b) = f(b, a), in value and gradient. `detaches_target`: no
    gradient reaches the target. `separable`: the mean over equal micro-batches is the value of the whole batch, so
    another loop may accumulate gradients. `labelled`: the target is the labels. `needs_labels`: it looks at those of
    the batch. `averaged`: the loss of a step is the mean over the pairs of views, not the sum. `least_rows`: with fewer
    samples the formula has no value. `compares_images`: one image alone has nothing to be compared with. `repels`:
    something holds the embeddings of different images apart.

    An objective may make what it compares with in a step of its own: `made_of(t)`, and then `forward(z, t)` is
    `compare(z, made_of(t))`. A loop calls the first once for each target, however many views meet it.
    """

    family = "others"
    symmetric = False
    detaches_target = False
    separable = False
    labelled = False
    averaged = False
    needs_labels = False
    least_rows = 1
    compares_images = False
    repels = True

    @classmethod
    def chance(cls, fields: Any, batch: int) -> float | None:
        """The least loss of embeddings that say nothing of what belongs together; None where that is not known.

        `fields` hold the constructor's arguments; `batch`: images in a step. If the positive is as likely any of the
        candidates, its mean similarity is that of all. By Jensen's inequality the mean of log sum exp(s) - s[positive]
        is then at least the logarithm of their number, whatever the temperature.
        """
        return None

    def pairs(self, sizes: Sequence[int]) -> list[tuple[int, int | None]]:
        """Which views are compared, as (online, target), given the side of each view in pixels; None: the labels.

        By default every view with every other one of the largest size: smaller crops are never targets. A learner
        leaves out a pair whose mirror image gives the same loss. A labelled objective compares every view with labels.
        """
        if getattr(self, "labelled", False):
            return [(i, None) for i in range(len(sizes))]
        return [(i, j) for i in range(len(sizes)) for j, size in enumerate(sizes) if i != j and size == max(sizes)]

    def shares(self, z: Tensor) -> Tensor | None:
        """How embeddings (n, d) are shared out among prototypes, (n, k), for the diagnosis; None: there are none."""
        return None

    def after_step(self, targets: Mapping[int, Tensor], step: int, total: int) -> None:
        """Move the objective's buffers after step `step` of `total`, given the targets of the global batch by view."""


def full_precision(
    forward: Callable[..., Tensor],
) -> Callable[..., Tensor]:
    """Runs an objective's forward with autocast off and half-precision inputs raised to float32.

    Raises InputError for embeddings that are no matrices (n, d), for two of different shapes, which would be
    broadcast, and for fewer rows than the formula needs, which would give NaN.
    """

    @functools.wraps(forward)
    def run(self: Any, z: Tensor, t: Tensor, *batch: Any) -> Tensor:
        name, shape = type(self).__name__, tuple(z.shape)
        if z.ndim != 2:
            raise InputError(f"{name} takes embeddings of shape (n, d), one row a sample, not {shape}")
        if t.shape != (z.shape[:1] if self.labelled else z.shape):
            what = f"{name} compares {'scores' if self.labelled else 'embeddings'} of {shape} with "
            raise InputError(f"{what}{'labels of ' if self.labelled else ''}{tuple(t.shape)}")
        if len(z) < self.least_rows:
            raise InputError(f"{name} needs {self.least_rows} samples or more, not {len(z)}: leave this batch out")
        with torch.autocast(z.device.type, enabled=False):
            return forward(self, *(x.float() if x.dtype in HALF else x for x in (z, t)), *batch)

    return run


def pushed(queue: Float[Tensor, "q d"], pointer: Tensor, rows: Float[Tensor, "n d"]) -> Float[Tensor, "q d"]:
    """A ring with its rows from `pointer` on replaced by these; of more rows than it has, by the newest.

    Not in place: a backward that is still to come needs the queue that its loss met.
    """
    at = (pointer + torch.arange(len(rows), device=queue.device)) % len(queue)
    return queue.index_copy(0, at[-len(queue) :], rows[-len(queue) :])


def off_diagonal_squares(matrix: Float[Tensor, "d d"]) -> Float[Tensor, ""]:
    """`sum_{i != j} M_ij^2`; consumes the matrix.

    The diagonal is left out, not subtracted from the whole: where it is most of the whole, float32 would keep
    nothing of the rest. For the same reason |x^T x|^2 is not had from the smaller x x^T.
    """
    return matrix.fill_diagonal_(0).square().sum()
