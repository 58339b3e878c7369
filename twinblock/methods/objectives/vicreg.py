"""VICReg (Bardes et al. 2022, arXiv 2105.04906, section 4.1)."""

from typing import Annotated

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from twinblock.core.types import NotNegative
from twinblock.methods.objectives.objective import Objective, full_precision, off_diagonal_squares


class VICReg(Objective):
    """Weighted sum of three terms, by default 25, 25 and 1 as published:

    invariance `mean (z - t)^2` over samples and dimensions; variance `mean_j relu(1 - sqrt(var_j + 1e-4))`,
    the mean of both views; covariance `sum_{i != j} Cov_ij^2 / d`, the sum of both views; var and Cov
    divide by n - 1. As in the published code; the paper sums the invariance over dimensions and the variance
    over views.
    """

    family = "decorrelation"
    symmetric = True
    compares_images = True
    least_rows = 2  # one has no variance

    def __init__(
        self,
        invariance: Annotated[NotNegative, Field(description="Weight of the distance between views.")] = 25.0,
        variance: Annotated[NotNegative, Field(description="Weight of what holds each dimension spread out.")] = 25.0,
        covariance: Annotated[NotNegative, Field(description="Weight of what keeps dimensions apart.")] = 1.0,
    ):
        super().__init__()
        self.invariance, self.variance, self.covariance = invariance, variance, covariance

    @full_precision
    def forward(self, z: Float[Tensor, "n d"], t: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        return (
            self.invariance * F.mse_loss(z, t)
            + self.variance * (_variance(z) + _variance(t)) / 2
            + self.covariance * (_covariance(z) + _covariance(t))
        )


def _variance(x: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    return F.relu(1 - (x.var(0) + 1e-4).sqrt()).mean()


def _covariance(x: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    n, d = x.shape
    x = x - x.mean(0)
    return off_diagonal_squares((x.T @ x).div_(n - 1)) / d
