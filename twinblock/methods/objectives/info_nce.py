"""InfoNCE with a queue of earlier keys: MoCo (He et al. 2020, arXiv 1911.05722, section 3)."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from twinblock.core.errors import InputError
from twinblock.methods.objectives.objective import Objective, full_precision


class InfoNCE(Objective):
    """Mean over queries of `-log softmax([q.k, q.queue] / temperature)[0]`, with q and k of unit length.

    `z` are queries, `t` keys, both raw. Keys and queue carry no gradient. The queue is a ring of `size`
    unit rows, random ones (from `seed`) at first; `after_step` overwrites the oldest by the last global
    batch of keys, so that a loss never meets its own keys there. Unlike in the published code, the batch
    need not divide the size. `negatives`, EqCo's alpha, weights the queue as if it held so many (Zhu et al. 2020).
    """

    one_way = True
    detaches_target = True
    separable = True

    queue: Tensor
    pointer: Tensor

    def __init__(self, dim: int, size: int, temperature: float, seed: int = 0, negatives: int | None = None):
        super().__init__()
        if size < 1:
            raise InputError(f"size={size}: a queue holds at least one key")
        self.temperature, self.margin = temperature, math.log((negatives or size) / size)
        rows = torch.randn(size, dim, generator=torch.Generator().manual_seed(seed), device="cpu")
        self.register_buffer("queue", F.normalize(rows, dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    @full_precision
    def forward(self, z: Float[Tensor, "n d"], t: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        query = F.normalize(z, dim=1) / self.temperature
        positive = (query * F.normalize(t.detach(), dim=1)).sum(1)
        negatives = (query @ self.queue.to(query.dtype).T).logsumexp(1) + self.margin
        return (torch.logaddexp(positive, negatives) - positive).mean()

    @torch.no_grad()
    def after_step(self, t: Float[Tensor, "n d"]) -> None:
        """Puts the last global batch of keys into the queue; of a batch larger than the queue, the newest."""
        size, n = len(self.queue), len(t)
        keys = F.normalize(t.to(self.queue.dtype), dim=1)
        rows = (self.pointer + torch.arange(n, device=t.device)) % size
        # not in place: a backward that is still to come needs the queue that its loss met
        self.queue = self.queue.index_copy(0, rows[-size:], keys[-size:])
        self.pointer.copy_((self.pointer + n) % size)
