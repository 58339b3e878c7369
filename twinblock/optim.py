"""Optimizers, their parameter groups, and schedules as plain functions of the step."""

# torch counts its _foreach functions as private.
# pyright: reportPrivateImportUsage=false

import math
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from twinblock.core.errors import InputError


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling, by the rule of the published BYOL, Barlow Twins and VICReg code.

    `g <- g + weight_decay p`; `q = eta |p| / |g|`, or 1 where either norm is 0; `mu <- momentum mu + q g`;
    `p <- p - lr mu`. Groups with `adapt=False` take q = 1. timm's Lars divides by |g| + weight_decay |p|
    with g before the decay: not the same once the decay counts.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 0.001,
        adapt: bool = True,
    ):
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta, "adapt": adapt}
        if not lr >= 0:
            raise InputError(f"lr={lr}: a learning rate is not negative")
        super().__init__(params, defaults)
        for group in self.param_groups:
            group["lr"] *= group.get("lr_scale", 1.0)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; every operation stays on the device, none waits for a value."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            gradients = [p.grad for p in params]
            updates = list(torch._foreach_add(gradients, params, alpha=group["weight_decay"]))
            if group["adapt"]:
                torch._foreach_mul_(updates, _trust_ratios(params, updates, group["eta"]))
            momenta = [self._momentum(p) for p in params]
            torch._foreach_mul_(momenta, group["momentum"])
            torch._foreach_add_(momenta, updates)
            torch._foreach_add_(params, momenta, alpha=-group["lr"])
        return loss

    def _momentum(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p)
        return state["momentum"]


def _trust_ratios(params: list[Tensor], updates: list[Tensor], eta: float) -> list[Tensor]:
    p, g = (torch.stack(torch._foreach_norm(tensors)) for tensors in (params, updates))
    return list(torch.where((p > 0) & (g > 0), eta * p / g, 1.0).unbind())


def parameter_groups(
    module: nn.Module,
    weight_decay: float,
    exclude_bias_and_norm: bool = True,
    bias_lr_scale: float = 1.0,
    scales: Mapping[int, float] = MappingProxyType({}),
    apart: Collection[int] = (),
) -> list[dict[str, Any]]:
    """The trainable parameters in two groups: weights, then biases and norms (all of one dimension).

    Each is split by what `scales` has for the id of a parameter, by which its learning rate is multiplied, too.
    Parameters whose ids are `apart` have groups of their own, as some have no gradient for a time: torch's fused SGD
    takes no group in which only some have moved before.
    Biases and norms have no weight decay and no LARS adaptation unless told otherwise; `bias_lr_scale`
    multiplies their learning rate (Barlow Twins: 0.0048 / 0.2).
    """
    params = [p for p in module.parameters() if p.requires_grad]
    weights = {"weight_decay": weight_decay, "decays": True, "adapt": True, "lr_scale": 1.0}
    biases = {"weight_decay": 0.0, "decays": False, "adapt": False} if exclude_bias_and_norm else weights
    groups = [
        {"params": [p for p in params if p.dim() > 1], **weights},
        {"params": [p for p in params if p.dim() <= 1], **biases, "lr_scale": bias_lr_scale},
    ]
    return [part for group in groups if group["params"] for part in _split(group, scales, apart)]


def _split(group: dict[str, Any], scales: Mapping[int, float], apart: Collection[int]) -> list[dict[str, Any]]:
    parts: dict[tuple[float, bool], list[Tensor]] = {}
    for p in group["params"]:
        parts.setdefault((scales.get(id(p), 1.0), id(p) in apart), []).append(p)
    return [{**group, "params": params, "lr_scale": group["lr_scale"] * scale} for (scale, _), params in parts.items()]


def make_optimizer(
    groups: list[dict[str, Any]],
    kind: Literal["sgd", "lars", "adamw"],
    lr: float,
    momentum: float = 0.9,
    beta2: float = 0.999,
) -> Optimizer:
    """The optimizer of these parameter groups; AdamW takes `momentum` as its first beta, and `beta2`."""
    match kind:
        case "sgd":
            optimizer = SGD(groups, lr=lr, momentum=momentum, fused=True)
        case "lars":
            optimizer = LARS(groups, lr=lr, momentum=momentum)
        case "adamw":
            optimizer = AdamW(groups, lr=lr, betas=(momentum, beta2), fused=True)
        case _:
            raise InputError(f"unknown optimizer {kind!r}; choose sgd, lars or adamw")
    set_lr(optimizer, lr)
    return optimizer


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Sets the learning rate of the coming step, times each group's `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


@torch.no_grad()
def clip_each(parameters: Iterable[Tensor], most: float) -> None:
    """Shortens each gradient that is longer than `most`, all of them in a few operations."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients))
    torch._foreach_mul_(gradients, list((most / (norms + 1e-6)).clamp(max=1.0).unbind()))  # as torch's clip_grad_norm_


def set_weight_decay(optimizer: Optimizer, value: float) -> None:
    """Sets the weight decay of the coming step, of the groups that were made with one."""
    for group in optimizer.param_groups:
        if group["decays"]:
            group["weight_decay"] = value


def warmup_cosine(step: int, total: int, warmup: int, peak: float, end: float = 0.0) -> float:
    """Linear from 0 to `peak` over `warmup` steps, then half a cosine to `end` at step `total` and after.

    The value at a step is used for that step, so the first one has 0 where there is a warm-up.
    """
    if step < warmup:
        return constant(step, warmup, peak)
    return end + (peak - end) * cosine_decay(step - warmup, total - warmup)


def stepwise(step: int, warmup: int, peak: float, milestones: Sequence[int], factor: float) -> float:
    """Linear from 0 to `peak` over `warmup` steps, then `peak`, times `factor` from each milestone on."""
    return constant(step, warmup, peak) * factor ** bisect_right(milestones, step)


def constant(step: int, warmup: int, peak: float) -> float:
    """Linear from 0 to `peak` over `warmup` steps, then `peak`."""
    return peak * (min(1.0, step / warmup) if warmup else 1.0)


def cosine_decay(step: int, total: int) -> float:
    """From 1 at step 0 to 0 at step `total` and after."""
    return (1 + math.cos(math.pi * step / total)) / 2 if step < total else 0.0
