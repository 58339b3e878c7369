"""Contrast with the nearest neighbour of a view: NNCLR (Dwibedi et al. 2021, arXiv 2104.14548, section 3)."""

import math
from collections.abc import Mapping
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from twinblock.methods.objectives.objective import Objective, Temperature, full_precision
from twinblock.methods.objectives.ring import QueueSize, renewed, unit_rows


class NearestNeighbour(Objective):
    """Mean over images i of `-log softmax_j(n_i.p_j / temperature)[i]`; n_i is the row of the queue nearest to t_i.

    `z` are predictions p, `t` projections of the other view, both raw (n, d); all are compared at unit length. The
    negatives are the batch's other predictions. No gradient flows through `t` or the queue: a ring of `queue` unit
    rows, random ones (from `seed`) at first. `after_step` overwrites the oldest by view 0's projections of the last
    global batch; their neighbours are not put in.
    """

    family = "contrast"
    detaches_target = True
    compares_images = True

    queue: Tensor
    pointer: Tensor

    def __init__(
        self,
        dim: int,
        queue: Annotated[QueueSize, Field(description="Projections of earlier batches that are kept.")],
        temperature: Temperature,
        seed: int = 0,
    ):
        super().__init__()
        self.temperature = temperature
        self.register_buffer("queue", unit_rows(queue, dim, seed))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    @classmethod
    def chance(cls, fields: Any, batch: int) -> float | None:
        return math.log(batch)

    @full_precision
    def forward(self, z: Float[Tensor, "n d"], t: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        return self.compare(z, self.made_of(t))

    def made_of(self, t: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The neighbours."""
        queue = self.queue.to(t.dtype)
        return queue[(t.detach() @ queue.T).argmax(1)]  # the length of t does not change which is nearest

    def compare(self, z: Float[Tensor, "n d"], neighbours: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        predictions = F.normalize(z, dim=1) / self.temperature
        return F.cross_entropy(neighbours @ predictions.T, torch.arange(len(z), device=z.device))

    @torch.no_grad()
    def after_step(self, targets: Mapping[int, Tensor], step: int, total: int) -> None:
        """Puts the first view's projections of the last global batch into the queue."""
        self.queue = renewed(self.queue, self.pointer, targets[min(targets)])
