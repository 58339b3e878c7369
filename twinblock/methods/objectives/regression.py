"""Regression of the target, as in BYOL (arXiv 2006.07733, section 3.1) and SimSiam (arXiv 2011.10566)."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from twinblock.methods.objectives.objective import Objective, full_precision


class Regression(Objective):
    """Mean over samples of `|z/|z| - t/|t||^2 = 2 - 2 cos(z, t)`; the target is detached.

    The left side, as in BYOL's code: the right one loses all digits in float32 as the cosine nears 1.
    `z` is the prediction. BYOL's loss is the sum of both directions; SimSiam's, the mean of `-cos` over both
    directions, is a quarter of that sum minus 1.
    """

    family = "prediction"
    detaches_target = True
    separable = True
    repels = False

    @full_precision
    def forward(self, z: Float[Tensor, "n d"], t: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        prediction, target = (F.normalize(x, dim=1, eps=1e-6) for x in (z, t.detach()))
        return (prediction - target).square().sum(1).mean()
