"""Drop path (stochastic depth) whose draws follow from where in the run a sample is, not from a process's generator."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from twinblock.core.seeding import hashed

# the keys of the views in a forward pass, and the position of the first sample of each in the global batch
_place: ContextVar[tuple[Sequence[tuple[int, ...]], int] | None] = ContextVar("_place", default=None)
_kept: ContextVar[bool] = ContextVar("_kept", default=False)


class KeyedDropPath(nn.Module):
    """x times 0 with probability `rate`, else 1 / (1 - rate): one draw a sample, in training, within `dropping`.

    The draws are a function of the view's key, the `number` of this module in its network, and the position of the
    sample in the global batch. Huang et al. 2016, Deep Networks with Stochastic Depth.
    """

    def __init__(self, rate: float, number: int):
        super().__init__()
        self.rate, self.number = rate, number

    def forward(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n *shape"]:
        place = _place.get()
        if not self.training or place is None or _kept.get():
            return x
        keys, offset = place
        rows = len(x) // len(keys)
        # PCG64 gives a longer row the same beginning, so that a process draws what one alone would
        draws = [np.random.Generator(np.random.PCG64(hashed("drop path", self.number, *key))) for key in keys]
        keep = np.concatenate([rng.random(offset + rows)[offset:] for rng in draws]) >= self.rate
        factor = torch.from_numpy(keep / (1 - self.rate)).to(x.device, x.dtype)
        return x * factor.view(-1, *(1,) * (x.ndim - 1))


@contextmanager
def dropping(keys: Sequence[tuple[int, ...]], offset: int) -> Iterator[None]:
    """Within, paths are dropped by draws of these views, which lie one after the other in a batch."""
    token = _place.set((keys, offset))
    try:
        yield
    finally:
        _place.reset(token)


@contextmanager
def all_kept() -> Iterator[None]:
    """Within, no path is dropped: a network that only makes targets has its whole depth."""
    token = _kept.set(True)
    try:
        yield
    finally:
        _kept.reset(token)


def key_drop_paths(model: nn.Module) -> int:
    """Put our drop path in the place of timm's and torchvision's, each with its rate. Gives how many there are."""
    from timm.layers.drop import DropPath  # so late, as importing timm and torchvision takes a second
    from torchvision.ops import StochasticDepth

    found = [(name, m) for name, m in model.named_modules() if isinstance(m, DropPath | StochasticDepth)]
    rates = [(name, m.drop_prob if isinstance(m, DropPath) else m.p) for name, m in found]
    rates = [(name, float(rate)) for name, rate in rates if rate]
    for number, (name, rate) in enumerate(rates):
        model.set_submodule(name, KeyedDropPath(rate, number))
    return len(rates)
