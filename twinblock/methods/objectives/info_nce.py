"""InfoNCE with a queue of earlier keys: MoCo (He et al. 2020, arXiv 1911.05722, section 3)."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from twinblock.methods.objectives.objective import Objective, Temperature, full_precision
from twinblock.methods.objectives.ring import QueueSize, renewed, unit_rows

Negatives = Annotated[int, Field(ge=1, le=2**53)]


class InfoNCE(Objective):
    """Mean over queries of `-log softmax([q.k, q.queue] / temperature)[0]`, with q and k of unit length.

    `z` are queries, `t` keys, both raw. Keys and queue carry no gradient. The queue is a ring of `queue`
    unit rows, random ones (from `seed`) at first; `after_step` overwrites the oldest by the last global
    batch of keys, so that a loss never meets its own keys there. Unlike in the published code, the batch
    need not divide the size. `negatives`, EqCo's alpha, weights the queue as if it held so many (Zhu et al. 2020).
    """

    family = "contrast"
    detaches_target = True
    separable = True

    queue: Tensor
    pointer: Tensor

    def __init__(
        self,
        dim: int,
        queue: Annotated[QueueSize, Field(description="Keys of earlier batches that are kept.")],
        temperature: Temperature,
        seed: int = 0,
        negatives: Annotated[
            Negatives | None, Field(description="EqCo's alpha: the queue weighs as if it held so many; null: as it is.")
        ] = None,
    ):
        super().__init__()
        self.register_buffer("queue", unit_rows(queue, dim, seed))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.temperature, self.margin = temperature, math.log((negatives or queue) / queue)

    @classmethod
    def chance(cls, fields: Any, batch: int) -> float | None:
        return math.log((fields.negatives or fields.queue) + 1)

    def pairs(self, sizes: Sequence[int]) -> list[tuple[int, int | None]]:
        """The first view alone asks, as published."""
        return [(i, j) for i, j in super().pairs(sizes) if i == 0]

    @full_precision
    def forward(self, z: Float[Tensor, "n d"], t: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        query = F.normalize(z, dim=1) / self.temperature
        positive = (query * F.normalize(t.detach(), dim=1)).sum(1)
        negatives = (query @ self.queue.to(query.dtype).T).logsumexp(1) + self.margin
        return -F.logsigmoid(positive - negatives).mean()

    @torch.no_grad()
    def after_step(self, targets: Mapping[int, Tensor], step: int, total: int) -> None:
        """Puts the last global batch of keys into the queue."""
        self.queue = renewed(self.queue, self.pointer, torch.cat([*targets.values()]))
