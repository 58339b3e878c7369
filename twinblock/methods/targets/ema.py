"""The target network as a moving average of the online network."""

import copy
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from twinblock.core.types import Probability
from twinblock.methods.targets.target import Target
from twinblock.optim import cosine_decay


class EMA(Target):
    """The target is an exponential moving average of the online network, without gradient (BYOL, MoCo).

    After each optimizer step `target = m target + (1 - m) online`; m follows BYOL's cosine from `momentum` to 1, or
    stays (`constant`). Buffers (`own`): batch statistics come from the target's own forward in training mode, as in
    BYOL and MoCo; with `average` they are averaged as the weights are. BYOL, Grill et al. 2020, section 3.1.
    """

    def __init__(
        self,
        network: nn.Module,
        momentum: Annotated[Probability, Field(description="Part of the old average that stays at each step.")],
        schedule: Annotated[
            Literal["cosine", "constant"], Field(description="`cosine`: momentum rises to 1; `constant`: it stays.")
        ] = "cosine",
        buffers: Annotated[
            Literal["own", "average"], Field(description="Batch statistics: the target's own, or averaged as weights.")
        ] = "own",
        kept: Annotated[
            bool, Field(description="Whether the run's encoder is the average, as in DINO, not the online network.")
        ] = False,
    ):
        super().__init__()
        self.average = copy.deepcopy(network).requires_grad_(False)
        self.momentum, self.schedule, self.buffers_policy, self.kept = momentum, schedule, buffers, kept

    def forward(self, network: nn.Module, *inputs) -> list[tuple[Tensor, ...]]:
        with torch.no_grad():
            return self.average(*inputs)

    @torch.no_grad()
    def after_step(self, network: nn.Module, step: int, total: int) -> None:
        m = ema_momentum(step, total, self.momentum) if self.schedule == "cosine" else self.momentum
        targets: list[Tensor] = [*self.average.parameters()]
        torch._foreach_lerp_(targets, [*network.parameters()], 1 - m)  # pyright: ignore
        if self.buffers_policy == "average":
            for mine, theirs in zip(self.average.buffers(), network.buffers(), strict=True):
                mine.lerp_(theirs, 1 - m) if mine.is_floating_point() else mine.copy_(theirs)


def ema_momentum(step: int, total: int, base: float) -> float:
    """The target's momentum, half a cosine from `base` at step 0 to 1 at step `total` (BYOL, section 3.3)."""
    return 1 - (1 - base) * cosine_decay(step, total)
