"""Supervised contrastive loss (Khosla et al. 2020, arXiv 2004.11362, equation 2: L_out)."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from twinblock.methods.objectives.objective import Objective, Temperature, full_precision


class SupCon(Objective):
    """Mean over the 2n anchors i of the mean over positives p of `-s[i, p] + log sum_{k != i} exp s[i, k]`.

    `s` holds the cosines of all 2n embeddings divided by the temperature. Positives are the other view of the image
    and both views of all images with its label (`batch.labels`). An image of label -1 has its other view alone, and so
    has every image without a batch: then this is NT-Xent. The published code multiplies by temperature / 0.07; such a
    factor is the recipe's.
    """

    family = "labels"
    symmetric = True
    compares_images = True
    needs_labels = True

    def __init__(self, temperature: Temperature):
        super().__init__()
        self.temperature = temperature

    @classmethod
    def chance(cls, fields: Any, batch: int) -> float | None:
        return math.log(2 * batch - 1)

    @full_precision
    def forward(self, z: Float[Tensor, "n d"], t: Float[Tensor, "n d"], batch: Any = None) -> Float[Tensor, ""]:
        unit = F.normalize(torch.cat([z, t]), dim=1)
        similarities = (unit / self.temperature) @ unit.T
        itself = torch.eye(len(unit), dtype=torch.bool, device=z.device)
        labels = torch.full((len(z),), -1, device=z.device) if batch is None else batch.labels
        positive = same_class(labels).repeat(2, 2) & ~itself
        of_positives = (similarities * positive).sum(1) / positive.sum(1)
        return (similarities.masked_fill(itself, -torch.inf).logsumexp(1) - of_positives).mean()


def same_class(labels: Int[Tensor, " n"]) -> Bool[Tensor, "n n"]:
    """Which images have the same label; each has its own, and -1 is that of no other."""
    same = (labels[:, None] == labels) & (labels >= 0)
    return same.fill_diagonal_(True)
