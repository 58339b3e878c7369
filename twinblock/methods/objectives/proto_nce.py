"""Contrast with prototypes, clusters of all images: PCL (Li et al. 2021, arXiv 2005.04966, section 3)."""

import math
from collections.abc import Callable
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from twinblock.core.durations import NO_TIME, Duration
from twinblock.core.errors import InputError
from twinblock.core.seeding import generator
from twinblock.core.types import Positive
from twinblock.methods.objectives.info_nce import InfoNCE
from twinblock.methods.objectives.k_means import k_means, squared_distances
from twinblock.methods.objectives.objective import full_precision
from twinblock.methods.objectives.ring import QueueSize

Count = Annotated[int, Field(ge=2, le=2**20)]
LEAST = 0.01  # of the temperature
MOST = 0.5  # part of the images in one cluster, above which the others say little


class ProtoNCE(InfoNCE):
    """InfoNCE plus the mean over clusterings of the cross entropy of each query with the prototype of its image.

    Prototypes are the centroids, at length 1, of k-means on the target embeddings of all images, anew at each epoch
    from `warmup` on. A query is compared with the prototypes of the batch's images and `queue` others, all where there
    are fewer: `-log softmax_c(q.c / phi_c)` at that of its own image, with the concentration phi of each cluster (see
    `concentrations`). Images of one cluster have a column each, as published. Without a batch that says which images
    it holds, an image belongs to the prototype that is nearest to its key.
    """

    family = "prototypes"
    separable = False

    assignment: Tensor
    clustered: Tensor

    def __init__(
        self,
        dim: int,
        queue: Annotated[QueueSize, Field(description="Keys of earlier batches that are kept; other prototypes.")],
        temperature: Annotated[Positive, Field(description="Divides the cosines; the mean of the concentrations.")],
        clusters: Annotated[tuple[Count, ...], Field(description="Prototypes of each clustering.", min_length=1)],
        warmup: Annotated[Duration, Field(description="Time before the first clustering.")] = NO_TIME,
        seed: int = 0,
        epoch_steps: int = 1,
        images: int = 0,
    ):
        super().__init__(dim, queue, temperature, seed)
        if images and max(clusters) > images:
            raise InputError(
                f"objective.clusters={list(clusters)}: there are {images:,} images; ask for fewer clusters"
            )
        self.clusters, self.warmup, self.seed, self.epoch_steps = tuple(clusters), warmup, seed, epoch_steps
        for i, k in enumerate(clusters):
            self.register_buffer(f"centroids_{i}", torch.zeros(k, dim))
            self.register_buffer(f"concentrations_{i}", torch.ones(k))
        self.register_buffer("assignment", torch.zeros(len(clusters), images, dtype=torch.int64))
        self.register_buffer("clustered", torch.tensor(False))

    @classmethod
    def chance(cls, fields: Any, batch: int) -> float | None:
        """Of a query among keys, and among prototypes, of which there are at least so many."""
        columns = [batch + min(fields.queue, max(0, k - batch)) for k in fields.clusters]
        return math.log(fields.queue + 1) + sum(map(math.log, columns)) / len(columns)

    @full_precision
    def forward(self, z: Float[Tensor, "n d"], t: Float[Tensor, "n d"], batch: Any = None) -> Float[Tensor, ""]:
        among_keys = super().forward(z, t)
        if not self.clustered:
            return among_keys
        query, losses = F.normalize(z, dim=1), []
        for i in range(len(self.clusters)):
            centroids, phi = (self.get_buffer(f"{name}_{i}").to(z.dtype) for name in ("centroids", "concentrations"))
            if batch is None:
                own = squared_distances(F.normalize(t.detach(), dim=1), centroids).argmin(1)
            else:
                own = self.assignment[i, batch.index]
            others = self.others(len(centroids), own, (0, 0) if batch is None else batch.key, i)
            losses.append(among_prototypes(query, centroids, phi, own, others))
        return among_keys + torch.stack(losses).mean()

    def others(self, count: int, own: Int[Tensor, " n"], key: tuple[int, ...], i: int) -> Int[Tensor, " m"]:
        """Prototypes of no image of the batch, at most as many as the queue is long, drawn by the step's key."""
        free = torch.ones(count, dtype=torch.bool, device=own.device)
        free[own] = False
        rest = free.nonzero()[:, 0]
        if len(rest) <= len(self.queue):
            return rest
        drawn = torch.randperm(len(rest), generator=generator("prototypes", *key, i))[: len(self.queue)]
        return rest[drawn.to(rest.device)]

    @torch.no_grad()
    def begin_epoch(self, embed: Callable[[], Tensor], step: int, total: int) -> str:
        """Cluster the embeddings of all images that `embed` gives; returns what is wrong with the clusters, if it is.

        Before step `step` of the `total` in which this objective trains.
        """
        if step < self.warmup.steps(self.epoch_steps, total):
            return ""
        x = F.normalize(embed().to(self.queue), dim=1)
        largest = 0
        for i, k in enumerate(self.clusters):
            raw, own = k_means(x, k, generator("clusters", self.seed, i))
            self.get_buffer(f"concentrations_{i}").copy_(concentrations(x, raw, own, self.temperature))
            self.get_buffer(f"centroids_{i}").copy_(F.normalize(raw, dim=1))
            self.assignment[i] = own
            largest = max(largest, int(own.bincount().max()))
        self.clustered.fill_(True)
        if largest <= MOST * len(x):
            return ""
        return "one cluster holds more than half of the images: a longer objective.warmup, or a lower optim.lr"


def among_prototypes(
    query: Float[Tensor, "n d"],
    centroids: Float[Tensor, "k d"],
    phi: Float[Tensor, " k"],
    own: Int[Tensor, " n"],
    others: Int[Tensor, " m"],
) -> Float[Tensor, ""]:
    """Mean over queries of the cross entropy with the prototype `own`, among those of all queries and `others`."""
    columns = torch.cat([own, others])
    logits = query @ centroids[columns].T / phi[columns]
    return F.cross_entropy(logits, torch.arange(len(query), device=query.device))


def concentrations(
    x: Float[Tensor, "n d"], centroids: Float[Tensor, "k d"], own: Int[Tensor, " n"], temperature: float
) -> Float[Tensor, " k"]:
    """How far apart each cluster is: low where many images lie close together. Their mean is the temperature.

    `mean |x - c| / log(n_c + 10)` over its n_c images; that of the widest where it has fewer than two; clipped to the
    10th and 90th percentile of all. Li et al. 2021, equation 12, and the released code; but at least a hundredth of the
    temperature, so that clusters of equal images give numbers.
    """
    distances = (x - centroids[own]).norm(dim=1)
    counts = own.bincount(minlength=len(centroids))
    sums = torch.zeros(len(centroids), dtype=x.dtype, device=x.device).index_add_(0, own, distances)
    phi = torch.where(counts > 1, sums / counts.clamp(min=1) / (counts + 10).to(x.dtype).log(), 0)
    phi = torch.where(counts > 1, phi, phi.max())
    low, high = phi.quantile(torch.tensor([0.1, 0.9], dtype=x.dtype, device=x.device))
    phi = phi.clamp(low, high)
    mean = phi.mean().clamp_min(torch.finfo(x.dtype).tiny)  # zero where all images of each cluster are equal
    return (temperature * phi / mean).clamp_min(LEAST * temperature)
