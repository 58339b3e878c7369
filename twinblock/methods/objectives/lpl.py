"""LPL, latent predictive learning (Halvagal and Zenke 2023, doi 10.1038/s41593-023-01460-y)."""

from typing import Annotated

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from twinblock.core.types import NotNegative
from twinblock.methods.objectives.objective import Objective, full_precision, off_diagonal_squares


class LPL(Objective):
    """Weighted sum of three terms, by default 1, 1 and 10 as published:

    pull `mean (z - t)^2` over samples and dimensions; push `-mean_j log(Var_j + 1e-4)`, the mean of both views;
    decorrelation `sum_{i != j} Cov_ij^2 / (d^2 - d)`, the mean of both views. Var and Cov divide by n - 1. The
    published rule lets no gradient through the mean that they subtract: there is none, as deviations add up to zero.
    """

    family = "decorrelation"
    symmetric = True
    compares_images = True
    least_rows = 2  # one has no variance

    def __init__(
        self,
        pull: Annotated[NotNegative, Field(description="Weight of the distance between views.")] = 1.0,
        push: Annotated[NotNegative, Field(description="Weight of what spreads each dimension out.")] = 1.0,
        decorrelation: Annotated[NotNegative, Field(description="Weight of what keeps dimensions apart.")] = 10.0,
    ):
        super().__init__()
        self.pull, self.push, self.decorrelation = pull, push, decorrelation

    @full_precision
    def forward(self, z: Float[Tensor, "n d"], t: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        push, decorrelation = ((f(z) + f(t)) / 2 for f in (_push, _decorrelation))
        return self.pull * F.mse_loss(z, t) + self.push * push + self.decorrelation * decorrelation


def _push(x: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    return -(x.var(0) + 1e-4).log().mean()


def _decorrelation(x: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    n, d = x.shape
    x = x - x.mean(0)
    return off_diagonal_squares((x.T @ x).div_(n - 1)) / max(1, d * d - d)
