"""Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230, section 2.1)."""

from typing import Annotated

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from twinblock.core.types import NotNegative
from twinblock.methods.objectives.objective import Objective, full_precision, off_diagonal_squares


class BarlowTwins(Objective):
    """`sum_i (C_ii - 1)^2 + lambd * sum_{i != j} C_ij^2`, with C (d, d) the views' cross-correlation.

    Each view is standardised over the batch (biased variance, eps 1e-5). A plain sum: a factor before it,
    as some published code has, is the recipe's.
    """

    family = "decorrelation"
    symmetric = True
    compares_images = True
    least_rows = 2  # one has no variance

    def __init__(
        self,
        lambd: Annotated[
            NotNegative, Field(description="Weight of the correlations between different dimensions.")
        ] = 0.005,
    ):
        super().__init__()
        self.lambd = lambd

    @full_precision
    def forward(self, z: Float[Tensor, "n d"], t: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        a, b = (F.batch_norm(x, None, None, training=True, eps=1e-5) for x in (z, t))
        diagonal = (a * b).mean(0)
        return (diagonal - 1).square().sum() + self.lambd * off_diagonal_squares((a.T @ b).div_(len(a)))
