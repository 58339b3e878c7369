"""The pruned target: the same network without its smallest weights embeds the second view."""

import copy
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Any

import torch
from jaxtyping import Bool
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from twinblock.core.durations import Duration
from twinblock.core.errors import InputError
from twinblock.core.seeding import generator
from twinblock.core.types import Share
from twinblock.methods.targets.target import Target
from twinblock.nn.norms import WSConv2d

EPOCH = Duration.parse("1epochs")
LAYERS = (_ConvNd, nn.Linear)  # ViTs and ConvNeXts have linear layers where ResNets have 1x1 convolutions
NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)


class Pruned(Target):
    """The network of the second view is the online one with masked weights and norms of its own (SDCLR).

    The dense network embeds view 0, the pruned one view 1; one backward trains both. The mask keeps the largest weights
    of all convolutions and linear layers of the blocks, taken together, as the layers use them. Every `every`, after
    the optimizer step, it is computed anew from the dense weights. Each weight that it keeps is then dropped with
    probability `random`. Jiang et al. 2021, Self-Damaging Contrastive Learning, section 3.2; there private statistics
    move twice a step, here once.
    """

    separate = False
    differentiable = True

    def __init__(
        self,
        network: nn.Module,
        ratio: Annotated[Share, Field(description="Share of the weights that is masked: the smallest.")],
        every: Annotated[Duration, Field(description="How often the mask is drawn anew.")] = EPOCH,
        epoch_steps: int = 1,
        random: Annotated[Share, Field(description="Chance that each remaining weight is masked, too.")] = 0.0,
        seed: int = 0,
    ):
        super().__init__()
        self.ratio, self.every, self.epoch_steps, self.random, self.seed = ratio, every, epoch_steps, random, seed
        modules = dict(network.named_modules())
        self.weights = [
            f"{name}.weight" for name, m in modules.items() if name.startswith("blocks.") and isinstance(m, LAYERS)
        ]
        if not self.weights:
            raise InputError("target.kind=pruned removes weights of layers, and this encoder or block has none")
        # a module's name cannot hold dots, and these are named after the modules that they stand in for
        self.norms = nn.ModuleDict(
            {name.replace(".", "/"): copy.deepcopy(m) for name, m in modules.items() if isinstance(m, NORMS)}
        )
        for name in self.weights:
            self.register_buffer(_mask(name), torch.ones_like(network.get_parameter(name), dtype=torch.bool))
        self.draw(network, step=0)

    def sees(self, view: int) -> bool:
        """The first view meets the dense network, all others the pruned one."""
        return view > 0

    def forward(self, network: nn.Module, *inputs) -> list[tuple[Tensor, ...]]:
        return functional_call(network, self.tensors(network), inputs)

    def tensors(self, network: nn.Module) -> dict[str, Tensor]:
        """What the pruned network has in place of the online network's tensors, by name."""
        masked: dict[str, Tensor] = {}
        for name in self.weights:
            mask, layer = self.get_buffer(_mask(name)), name.removesuffix(".weight")
            if isinstance(network.get_submodule(layer), WSConv2d):
                masked[f"{layer}.kept"] = mask
            else:
                masked[name] = network.get_parameter(name) * mask
        for path, norm in self.norms.items():
            for name, tensor in (*norm.named_parameters(), *norm.named_buffers()):
                masked[f"{path.replace('/', '.')}.{name}"] = tensor
        return masked

    def after_step(self, network: nn.Module, step: int, total: int) -> None:
        every = self.every.steps(self.epoch_steps, total)
        if every and (step + 1) % every == 0:
            self.draw(network, step + 1)

    @torch.no_grad()
    def draw(self, network: nn.Module, step: int) -> None:
        """Set the masks by the weights that the network has now."""
        layers: dict[str, Any] = {name: network.get_submodule(name.removesuffix(".weight")) for name in self.weights}
        weights = {name: m.effective() if isinstance(m, WSConv2d) else m.weight for name, m in layers.items()}
        masks = magnitude_masks(weights, self.ratio)
        for i, (name, mask) in enumerate(masks.items()):
            if self.random:
                # on the CPU, so that every device drops the same weights
                kept = torch.rand(mask.shape, generator=generator("prune", self.seed, step, i)) >= self.random
                mask = mask & kept.to(mask.device)
            self.get_buffer(_mask(name)).copy_(mask)


def magnitude_masks(weights: Mapping[str, Tensor], ratio: float) -> dict[str, Bool[Tensor, "*shape"]]:
    """What remains when the `ceil(ratio x count)` smallest of all weights together are taken away; ties remain.

    Raises InputError for a ratio outside [0, 1).
    """
    if not 0 <= ratio < 1:
        raise InputError(f"ratio={ratio}: the share of weights to prune is at least 0 and less than 1")
    sizes = {name: weight.detach().abs() for name, weight in weights.items()}
    every = torch.cat([size.flatten() for size in sizes.values()])
    removed = math.ceil(Fraction(str(ratio)) * len(every))
    place = min(removed, len(every) - 1)
    # selection is faster on a CPU; on a GPU it has no deterministic version, and sorting takes milliseconds
    threshold = every.sort().values[place] if every.is_cuda else every.kthvalue(place + 1).values
    return {name: size >= threshold for name, size in sizes.items()}


def _mask(name: str) -> str:
    return f"mask/{name.removesuffix('.weight').replace('.', '/')}"
