"""Decoupled contrastive loss (Yeh et al. 2021, arXiv 2110.06848, equation 6)."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from twinblock.methods.objectives.objective import Objective, Temperature, full_precision


class DCL(Objective):
    """Mean over the 2n anchors i of `-s[i, pos(i)] + log sum_{k != i, pos(i)} exp s[i, k]`.

    `s` holds the cosines of all 2n embeddings divided by the temperature; pos(i) is the other view of the same image.
    NT-Xent without the positive in the sum: an anchor that is near its positive already still pushes others away.
    """

    family = "contrast"
    symmetric = True
    compares_images = True
    least_rows = 2  # one image has no negatives

    def __init__(self, temperature: Temperature):
        super().__init__()
        self.temperature = temperature

    @classmethod
    def chance(cls, fields: Any, batch: int) -> float | None:
        return math.log(2 * batch - 2)

    @full_precision
    def forward(self, z: Float[Tensor, "n d"], t: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        n = len(z)
        unit = F.normalize(torch.cat([z, t]), dim=1)
        scaled = unit / self.temperature
        same_image = torch.eye(n, dtype=torch.bool, device=z.device).repeat(2, 2)
        negatives = (scaled @ unit.T).masked_fill_(same_image, -torch.inf)
        positives = (scaled[:n] * unit[n:]).sum(1)  # the same in both directions
        return negatives.logsumexp(1).mean() - positives.mean()
