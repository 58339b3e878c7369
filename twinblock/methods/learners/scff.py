"""SCFF, self-contrastive Forward-Forward (Chen et al. 2025, Nature Communications, s41467-025-61037-0)."""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, FiniteFloat
from torch import Tensor, nn

from twinblock.core.distributed import gather
from twinblock.core.errors import InputError
from twinblock.core.seeding import hashed
from twinblock.core.types import NotNegative
from twinblock.methods.goodness import Goodness
from twinblock.methods.learner import Batch, Signal

Thresholds = Annotated[tuple[FiniteFloat, ...], Field(min_length=1)]
Weights = Annotated[tuple[NotNegative, ...], Field(min_length=1)]


class SCFF(Goodness):
    """Each block is excited by an image beside itself, and calm for an image beside another one:

    `mean softplus(t - g_same) + mean softplus(g_other - u) + penalty * mean over images of |g_same|`, with g at each
    place the mean over channels of the squares of `relu(f(a) + f(b))`, and f the block's linear layer. That sum is
    twice what the block gives for the mean of the pair, each normalised. In each step the other is so many images
    further on in the batch, drawn by seed and step. The values of a list are of one block each, the last of all further
    ones.
    """

    def __init__(
        self,
        blocks: nn.Module,
        number: int,
        autocast: torch.dtype | None = None,
        same: Annotated[Thresholds, Field(description="Goodness that pairs of the same image should exceed.")] = (1.0,),
        other: Annotated[Thresholds, Field(description="Goodness that other pairs should not exceed.")] = (1.0,),
        penalty: Annotated[Weights, Field(description="Weight of the goodness itself.")] = (0.0,),
    ):
        super().__init__(blocks, autocast)
        self.same, self.other, self.penalty = (x[min(number, len(x) - 1)] for x in (same, other, penalty))

    def forward(self, signal: Signal, batch: Batch) -> tuple[Tensor, Signal]:
        x = self._norm(signal.online[0])
        y, passed = self.activities(x)
        pairs, _ = self.activities((x + self.others(x, batch)) / 2)
        goods, bads = ((2 * y).square().mean(1).flatten(1) for y in (y, pairs))
        losses = F.softplus(self.same - goods).mean(1) + F.softplus(bads - self.other).mean(1)
        losses = losses + self.penalty * torch.linalg.vector_norm(goods, dim=1)
        return gather(losses).mean(), Signal({0: passed}, {0: passed})

    def others(self, x: Tensor, batch: Batch) -> Tensor:
        """Of each image of this process its partner, which may lie on another process."""
        whole = gather(x.detach())
        if len(whole) < 2:
            raise InputError("data.batch=1: learner.kind=scff pairs the images of a batch")
        shift = 1 + hashed("pairs", *batch.key) % (len(whole) - 1)
        places = torch.arange(batch.offset, batch.offset + len(x), device=x.device)
        return whole[(places + shift) % len(whole)]

    @torch.no_grad()
    def pass_on(self, signal: Signal, batch: Batch) -> Signal:
        passed = self.activities(self._norm(signal.online[0]))[1]
        return Signal({0: passed}, {0: passed})
