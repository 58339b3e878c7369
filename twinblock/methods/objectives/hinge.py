"""Hinge loss of predictions: CLAPP (Illing et al. 2021, arXiv 2010.08262, equation 2), for views of whole images."""

import math
from typing import Annotated, Any

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from twinblock.methods.objectives.objective import Objective, full_precision


class Hinge(Objective):
    """`mean_i relu(1 - s_ii) + mean_{i != j} relu(1 + s_ij)` of the scores `s_ij = z_i . t_j`; `soft`: with softplus.

    `z` is what a linear predictor makes of an embedding, `t` the other view's embedding, which carries no gradient. A
    score is bilinear: whether the predictor stands at this side or at the context's, as published, loss and gradients
    are the same. Published is one negative drawn at random for each image; this is its expected value over all others.
    """

    family = "contrast"
    detaches_target = True
    averaged = True
    compares_images = True
    least_rows = 2  # one has no negative

    def __init__(
        self,
        soft: Annotated[bool, Field(description="softplus(x), smooth, in place of relu(x).")] = False,
    ):
        super().__init__()
        self.soft = soft

    @classmethod
    def chance(cls, fields: Any, batch: int) -> float:
        """relu(1 - s) + relu(1 + s) is 2 at least, and softplus is convex: so is the mean, if no score tells pairs."""
        return 2 * math.log1p(math.e) if fields.soft else 2.0

    @full_precision
    def forward(self, z: Float[Tensor, "n d"], t: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        excess = F.softplus if self.soft else F.relu
        scores, n = z @ t.detach().T, len(z)
        attracted = excess(1 - scores.diagonal()).mean()
        repelled = excess(1 + scores)
        return attracted + (repelled.sum() - repelled.diagonal().sum()) / (n * n - n)
