"""SwAV (Caron et al. 2020, arXiv 2006.09882, section 3)."""

from collections.abc import Mapping
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from twinblock.core.durations import NO_TIME, Duration
from twinblock.core.types import Positive
from twinblock.methods.objectives.objective import Objective, full_precision, pushed
from twinblock.nn.heads import Prototypes

Count = Annotated[int, Field(ge=2, le=2**20)]
QueueSize = Annotated[int, Field(ge=0, le=2**22)]


class SwAV(Objective):
    """Mean over samples of the cross entropy `-sum_k q_k log p_k` with the code q of the other view.

    `p = softmax(scores(z) / temperature)`; scores are cosines with prototypes, which the loss trains as well. Codes are
    those of `sinkhorn` on the scores of the batch and of a queue, which share the prototypes out equally; they carry no
    gradient. The queue holds `queue` unit embeddings of the last batches, of all target views; it fills from
    `queue_from` on, and counts once it is full. Published code has a queue for each of the two views.
    """

    family = "prototypes"
    detaches_target = True
    averaged = True
    compares_images = True

    queue: Tensor
    pushes: Tensor

    def __init__(
        self,
        dim: int,
        prototypes: Annotated[Count, Field(description="How many prototypes there are.")] = 3000,
        temperature: Annotated[Positive, Field(description="Divides the cosines: low values sharpen.")] = 0.1,
        epsilon: Annotated[Positive, Field(description="Divides those of the codes: low values sharpen.")] = 0.05,
        iterations: Annotated[int, Field(ge=1, le=100, description="Rounds of the Sinkhorn-Knopp algorithm.")] = 3,
        queue: Annotated[QueueSize, Field(description="Embeddings of earlier batches; 0: none.")] = 0,
        queue_from: Annotated[Duration, Field(description="When the queue begins to fill.")] = NO_TIME,
        epoch_steps: int = 1,
        seed: int = 0,
    ):
        super().__init__()
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, iterations
        self.queue_from, self.epoch_steps = queue_from, epoch_steps
        self.prototypes = Prototypes(dim, prototypes, torch.Generator().manual_seed(seed))
        self.register_buffer("queue", torch.zeros(queue, dim))
        self.register_buffer("pushes", torch.zeros((), dtype=torch.int64))

    @full_precision
    def forward(self, z: Float[Tensor, "n d"], t: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        return self.compare(z, self.made_of(t))

    def compare(self, z: Float[Tensor, "n d"], q: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
        return -(q * F.log_softmax(self.scores(z), dim=1)).sum(1).mean()

    def scores(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        return self.prototypes(z) / self.temperature

    def shares(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Those that are predicted."""
        return F.softmax(self.scores(z), dim=1)

    @torch.no_grad()
    def made_of(self, t: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """The codes: the share of each sample in each prototype; a row sums to 1."""
        full = len(self.queue) and self.pushes >= len(self.queue)
        scores = self.prototypes(torch.cat([self.queue.to(t.dtype), t]) if full else t)
        return sinkhorn(scores, self.epsilon, self.iterations)[-len(t) :]

    @torch.no_grad()
    def after_step(self, targets: Mapping[int, Tensor], step: int, total: int) -> None:
        if not len(self.queue) or step < self.queue_from.steps(self.epoch_steps, total):
            return
        rows = F.normalize(torch.cat([*targets.values()]).to(self.queue.dtype), dim=1)
        self.queue = pushed(self.queue, self.pushes % len(self.queue), rows)
        self.pushes += len(rows)


def sinkhorn(scores: Float[Tensor, "n k"], epsilon: float, iterations: int) -> Float[Tensor, "n k"]:
    """`exp(scores / epsilon)` with columns, then rows, brought to equal sums so many times; a row sums to 1 at the end.

    Sinkhorn and Knopp's algorithm for codes that use all columns equally. Cuturi 2013, arXiv 1306.0895.
    """
    q = ((scores - scores.max()) / epsilon).exp()
    for _ in range(iterations):
        # a prototype so far from all that its numbers are zero stays without any
        q = q / q.sum(0).clamp_min(torch.finfo(q.dtype).tiny)
        q = q / q.sum(1, keepdim=True).clamp_min(torch.finfo(q.dtype).tiny)
    return q
