"""DINO (Caron et al. 2021, arXiv 2104.14294, section 3.1)."""

from collections.abc import Mapping
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from twinblock.core.durations import NO_TIME, Duration
from twinblock.core.types import Positive, Probability
from twinblock.methods.objectives.objective import Objective, full_precision


class DINO(Objective):
    """Mean over samples of the cross entropy `-sum_k q_k log p_k` with the target network's distribution q.

    `p = softmax(z / temperature)`; `q = softmax((t - centre) / target_temperature)` carries no gradient. The centre is
    a moving average of the targets of all views and processes; it moves in `after_step`, so that a loss never meets
    its own batch there. The target's temperature rises linearly from `first_temperature` over `warmup`. Centring alone
    makes q uniform, sharpening alone one-hot; together they hold each other.
    """

    family = "prototypes"
    detaches_target = True
    averaged = True
    separable = True

    centre: Tensor
    divisor: Tensor

    def __init__(
        self,
        dim: int,
        temperature: Annotated[Positive, Field(description="Divides the online scores.")] = 0.1,
        target_temperature: Annotated[Positive, Field(description="Divides the target's: low values sharpen.")] = 0.04,
        first_temperature: Annotated[Positive, Field(description="What divides the target's at first.")] = 0.04,
        warmup: Annotated[Duration, Field(description="Time from the first temperature to the last.")] = NO_TIME,
        momentum: Annotated[Probability, Field(description="Part of the old centre that stays at each step.")] = 0.9,
        epoch_steps: int = 1,
    ):
        super().__init__()
        self.temperature, self.momentum = temperature, momentum
        self.target_temperature, self.first_temperature = target_temperature, first_temperature
        self.warmup, self.epoch_steps = warmup, epoch_steps
        self.register_buffer("centre", torch.zeros(dim))
        first = first_temperature if warmup.amount else target_temperature
        self.register_buffer("divisor", torch.tensor(first, dtype=torch.float64))  # so that a resumed run has it

    @full_precision
    def forward(self, z: Float[Tensor, "n d"], t: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        return self.compare(z, self.made_of(t))

    def made_of(self, t: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """q."""
        return self.shares(t.detach())

    def compare(self, z: Float[Tensor, "n d"], q: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        return -(q * F.log_softmax(z / self.temperature, dim=1)).sum(1).mean()

    def shares(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Those of a target."""
        return F.softmax((z - self.centre) / self.divisor, dim=1)

    @torch.no_grad()
    def after_step(self, targets: Mapping[int, Tensor], step: int, total: int) -> None:
        # not in place: a backward that is still to come needs the centre that its loss met
        mean = torch.cat([*targets.values()]).to(self.centre.dtype).mean(0)
        self.centre = self.centre * self.momentum + mean * (1 - self.momentum)
        warmup = self.warmup.steps(self.epoch_steps, total)
        risen = min(1.0, (step + 1) / warmup) if warmup else 1.0
        self.divisor = torch.full_like(
            self.divisor, self.first_temperature + (self.target_temperature - self.first_temperature) * risen
        )
