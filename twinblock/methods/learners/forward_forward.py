"""Forward-Forward, supervised (Hinton 2022, arXiv 2212.13345, section 3.3)."""

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from twinblock.core.distributed import gather
from twinblock.core.errors import InputError
from twinblock.core.seeding import uniform
from twinblock.core.types import NotNegative
from twinblock.methods.goodness import Goodness, overlaid
from twinblock.methods.learner import Batch, Signal

FIRST, STEP = 0.5, 0.1  # of the moving averages of activities


class ForwardForward(Goodness):
    """Each block is excited by images that show their own label, and calm for those that show a wrong one:

    `mean of (softplus(threshold - g_own) + softplus(g_wrong - threshold)) / 2`, with g the mean square of the block's
    activities. The label lies in the first pixels; the wrong one is drawn by seed, step and place in the batch.

    With `peer` p, `p mean_j (mean_k r_k - r_j)^2` is added: r are the moving averages of each unit's activity for own
    labels, which a step moves by a tenth, from 0.5 on; of a map, of each channel. So no unit stays silent, and none is
    always active. As in loeweX/Forward-Forward (MIT), with 0.03.
    """

    labelled = True

    def __init__(
        self,
        blocks: nn.Module,
        image_shape: tuple[int, ...],
        shape: tuple[int, ...],
        number: int,
        classes: int | None,
        autocast: torch.dtype | None = None,
        threshold: Annotated[NotNegative, Field(description="Goodness between own labels and wrong ones.")] = 2.0,
        peer: Annotated[NotNegative, Field(description="Weight of peer normalisation: units are alike active.")] = 0.0,
    ):
        super().__init__(blocks, autocast)
        places = image_shape[1] * image_shape[2]
        if classes is None or not 2 <= classes <= places:
            raise InputError(
                f"it shows labels of 2 to {places} classes in the pixels, and the data has {classes or 'none'}"
            )
        self.number, self.classes, self.threshold, self.peer = number, classes, threshold, peer
        self.activity = nn.Buffer(torch.full((shape[0],), FIRST)) if peer else None

    @classmethod
    def chance(cls, fields: Any, batch: int) -> float:
        """Own and wrong labels with the same goodness: the mean is convex in it, and least at the threshold."""
        return math.log(2)

    def forward(self, signal: Signal, batch: Batch) -> tuple[Tensor, Signal]:
        own, wrong = self.inputs(signal, batch)
        (seen, own), (false, wrong) = (self.activities(self._norm(x)) for x in (own, wrong))
        goods, bads = (y.square().flatten(1).mean(1) for y in (seen, false))
        losses = (F.softplus(self.threshold - goods) + F.softplus(bads - self.threshold)) / 2
        assert batch.labels is not None
        known = gather((batch.labels >= 0).to(losses))
        maps = {0: own, 1: wrong}
        loss = (gather(losses) * known).sum() / known.sum().clamp(min=1)
        return loss + self.of_peers(seen, known), Signal(maps, maps)

    def of_peers(self, seen: Float[Tensor, "n c *places"], known: Float[Tensor, " m"]) -> Tensor | float:
        """How far the units are from each other in activity, which takes note of these; `known`: of all processes."""
        if self.activity is None or not known.any():
            return 0.0
        now = gather(seen.flatten(2).mean(2) if seen.ndim > 2 else seen)[known > 0].mean(0)
        moved = self.activity + STEP * (now - self.activity)
        self.activity.copy_(moved.detach())
        return self.peer * (moved.mean() - moved).square().mean()

    def inputs(self, signal: Signal, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the block is given for images with their own label, and with a wrong one."""
        if self.number:
            return signal.online[0], signal.online[1]
        images, labels = signal.online[0], batch.labels
        assert labels is not None
        labels = labels.to(images.device).clamp(min=0)
        draws = torch.from_numpy(uniform(("wrong label", *batch.key), batch.offset, len(images), 1)[:, 0])
        others = (labels + 1 + (draws * (self.classes - 1)).long().to(labels.device)) % self.classes
        return overlaid(images, labels, self.classes), overlaid(images, others, self.classes)

    @torch.no_grad()
    def pass_on(self, signal: Signal, batch: Batch) -> Signal:
        own, wrong = (self.activities(self._norm(x))[1] for x in self.inputs(signal, batch))
        maps = {0: own, 1: wrong}
        return Signal(maps, maps)


@torch.no_grad()
def goodness_of_labels(learners: Sequence[ForwardForward], images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
    """The goodness of all blocks together for images that show each label: the largest is the one they predict."""
    classes = learners[0].classes
    total = images.new_zeros(len(images), classes)
    for label in range(classes):
        x = overlaid(images, torch.full((len(images),), label, device=images.device), classes)
        for learner in learners:
            y, x = learner.activities(learner._norm(x))
            total[:, label] += y.square().flatten(1).mean(1)
    return total


def predicted(learners: Sequence[ForwardForward], images: Float[Tensor, "n c h w"]) -> Int[Tensor, " n"]:
    """The label that each image is predicted to have."""
    return goodness_of_labels(learners, images).argmax(1)
