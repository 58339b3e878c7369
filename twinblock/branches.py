"""Branches: which tensors the target network uses. The online network is never told."""

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from twinblock.optim import ema_momentum


class Branch(nn.Module):
    """Base of the branches: facts for the Learner.

    `own_pass`: the target runs apart from the online network; `live`: with gradient; `by_view`: the second view has
    a network of its own, `forward(network, ...)`, online and as target.
    """

    own_pass = True
    live = False
    by_view = False

    def after_step(self, network: nn.Module, step: int, total: int) -> None:
        """Move the target's tensors, after the optimizer step; most have nothing to move."""


class Shared(Branch):
    """The target is the online network itself, with its gradient (SimCLR, SimSiam, Barlow Twins, VICReg)."""

    own_pass = False  # the online embedding is the target: nothing more to run
    live = True  # gradients flow into the target unless the objective detaches it


class EMA(Branch):
    """The target is an exponential moving average of the online network, without gradient (BYOL, MoCo).

    After each optimizer step `target = m target + (1 - m) online`; m follows BYOL's cosine from `momentum` to 1, or
    stays (`constant`). Buffers (`own`): batch statistics come from the target's own forward in training mode, as in
    BYOL and MoCo; with `average` they are averaged as the weights are. BYOL, Grill et al. 2020, section 3.1.
    """

    def __init__(
        self,
        network: nn.Module,
        momentum: float,
        schedule: Literal["cosine", "constant"] = "cosine",
        buffers: Literal["own", "average"] = "own",
    ):
        super().__init__()
        self.target = copy.deepcopy(network).requires_grad_(False)
        self.momentum, self.schedule, self.buffers_policy = momentum, schedule, buffers

    def forward(self, network: nn.Module, *inputs) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return self.target(*inputs)

    @torch.no_grad()
    def after_step(self, network: nn.Module, step: int, total: int) -> None:
        m = ema_momentum(step, total, self.momentum) if self.schedule == "cosine" else self.momentum
        targets: list[Tensor] = [*self.target.parameters()]
        torch._foreach_lerp_(targets, [*network.parameters()], 1 - m)  # pyright: ignore
        if self.buffers_policy == "average":
            for mine, theirs in zip(self.target.buffers(), network.buffers(), strict=True):
                mine.lerp_(theirs, 1 - m) if mine.is_floating_point() else mine.copy_(theirs)
