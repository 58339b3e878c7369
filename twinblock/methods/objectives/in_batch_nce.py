"""InfoNCE among the keys of the batch: MoCo v3 (Chen, Xie and He 2021, arXiv 2104.02057, section 3)."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from twinblock.methods.objectives.objective import Objective, Temperature, full_precision


class InBatchNCE(Objective):
    """Mean over queries i of `-log softmax_j(q_i.k_j / temperature)[i]`, with q and k of unit length.

    `z` are queries, `t` keys, both raw (n, d). Keys carry no gradient; those of all other images of the batch are the
    negatives. MoCo v3's loss is the sum of both directions times twice the temperature: a factor that is the recipe's.
    """

    family = "contrast"
    detaches_target = True
    compares_images = True

    def __init__(self, temperature: Temperature):
        super().__init__()
        self.temperature = temperature

    @classmethod
    def chance(cls, fields: Any, batch: int) -> float | None:
        return math.log(batch)

    @full_precision
    def forward(self, z: Float[Tensor, "n d"], t: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        query, key = F.normalize(z, dim=1) / self.temperature, F.normalize(t.detach(), dim=1)
        return F.cross_entropy(query @ key.T, torch.arange(len(z), device=z.device))
