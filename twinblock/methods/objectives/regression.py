"""Regression of the target, as in BYOL (arXiv 2006.07733, section 3.1) and SimSiam (arXiv 2011.10566)."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from twinblock.methods.objectives.objective import Objective, full_precision


class Regression(Objective):
    """Mean over samples of `2 - 2 cos(z, t)`, the squared distance of unit vectors; the target is detached.

    `z` is the prediction. BYOL's loss is the sum of both directions; SimSiam's, the mean of `-cos` over both
    directions, is a quarter of that sum minus 1.
    """

    detaches_target = True
    separable = True

    @full_precision
    def forward(self, z: Float[Tensor, "n d"], t: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        prediction, target = (F.normalize(x, dim=1, eps=1e-6) for x in (z, t.detach()))
        return 2 - 2 * (prediction * target).sum(1).mean()
