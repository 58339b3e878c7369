"""Heads: one function for every projector and predictor."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from twinblock.nn.norms import WSLinear, make_norm, parse_norm

Activation = Literal["relu", "gelu"]


class Prototypes(nn.Module):
    """Cosines of an embedding with `count` learned vectors: (n, dim) to (n, count), in [-1, 1].

    DINO's last layer, a linear one under weight norm with a gain of 1; SwAV's prototypes. In float32 or wider: losses
    divide them by temperatures as low as 0.04. They are drawn as a linear layer's weights; by `generator`, if given.
    """

    def __init__(self, dim: int, count: int, generator: torch.Generator | None = None):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, dim))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5), generator=generator)

    def forward(self, x: Float[Tensor, "n dim"]) -> Float[Tensor, "n count"]:
        with torch.autocast(x.device.type, enabled=False):
            x = F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=1)
            return x @ F.normalize(self.weight.to(x.dtype), dim=1).T


def mlp(
    in_dim: int,
    dims: Sequence[int],
    norm: str = "batch",
    last_norm: str = "none",
    last_affine: bool = True,
    last_bias: bool = False,
    activation: Activation = "relu",
) -> nn.Sequential:
    """Linear - norm - ReLU for each hidden width, then Linear (- last_norm); no widths: the identity.

    Maps (n, in_dim) to (n, dims[-1]). Hidden linears have a bias. `last_affine=False` takes weight and bias
    from the last norm, as in SimSiam's projector. `+ws`, as in `group+ws`, standardises the weights of the hidden
    linears; the last stays plain. `activation`: GELU in place of ReLU, as in DINO.
    """
    kind, _, standardised = parse_norm(norm)
    layers: list[nn.Module] = []
    widths = [in_dim, *dims]
    for i, (d_in, d_out) in enumerate(pairwise(widths), start=1):
        if i < len(dims):
            layers += [(WSLinear if standardised else nn.Linear)(d_in, d_out)]
            layers += [] if kind == "none" else [make_norm(norm, d_out)]
            layers += [nn.ReLU(inplace=True) if activation == "relu" else nn.GELU()]
        else:
            layers += [nn.Linear(d_in, d_out, bias=last_bias)]
            layers += [] if last_norm == "none" else [make_norm(last_norm, d_out, last_affine)]
    return nn.Sequential(*layers)
