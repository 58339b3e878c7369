"""NT-Xent, the objective of SimCLR (Chen et al. 2020, arXiv 2002.05709, section 2.1)."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from twinblock.methods.objectives.objective import Objective, Temperature, full_precision


class NTXent(Objective):
    """Mean over the 2n anchors i of `-s[i, pos(i)] + log sum_{k != i} exp s[i, k]`.

    `s` holds the cosines of all 2n embeddings divided by the temperature; pos(i) is the other view of the
    same image. SimCLR's own code sums the two directional means, which is twice this value.
    """

    family = "contrast"
    symmetric = True
    compares_images = True

    def __init__(self, temperature: Temperature):
        super().__init__()
        self.temperature = temperature

    @classmethod
    def chance(cls, fields: Any, batch: int) -> float | None:
        return math.log(2 * batch - 1)

    @full_precision
    def forward(self, z: Float[Tensor, "n d"], t: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        unit = F.normalize(torch.cat([z, t]), dim=1)
        scaled = unit / self.temperature
        similarities = (scaled @ unit.T).fill_diagonal_(-torch.inf)
        positives = (scaled[: len(z)] * unit[len(z) :]).sum(1)  # the same in both directions
        return similarities.logsumexp(1).mean() - positives.mean()
