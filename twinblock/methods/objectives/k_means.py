"""k-means, as Lloyd's algorithm from several random starts."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

AT_ONCE = 2**24  # distances that are held together


def k_means(
    x: Float[Tensor, "n d"], k: int, generator: torch.Generator, steps: int = 20, starts: int = 5
) -> tuple[Float[Tensor, "k d"], Int[Tensor, " n"]]:
    """Centroids, and the nearest one of each row, after `steps` rounds; of so many starts the one that lies closest.

    A start is k of the rows. A centroid without rows moves to the row that is farthest from its own. `generator`, of
    the CPU, draws the starts.
    """
    best = None
    for _ in range(starts):
        centroids = x[torch.randperm(len(x), generator=generator)[:k].to(x.device)]
        for _ in range(steps):
            own, distances = nearest(x, centroids)
            centroids = moved(x, own, distances, k)
        own, distances = nearest(x, centroids)
        spread = float(distances.sum())
        if best is None or spread < best[0]:
            best = spread, centroids, own
    assert best is not None
    return best[1], best[2]


def moved(
    x: Float[Tensor, "n d"], own: Int[Tensor, " n"], distances: Float[Tensor, " n"], k: int
) -> Float[Tensor, "k d"]:
    """The mean of the rows of each centroid; those without rows take the rows that are farthest from theirs."""
    counts = own.bincount(minlength=k)
    sums = torch.zeros(k, x.shape[1], dtype=x.dtype, device=x.device).index_add_(0, own, x)
    means, empty = sums / counts.clamp(min=1)[:, None], (counts == 0).nonzero()[:, 0]
    means[empty] = x[distances.sort(descending=True, stable=True).indices[: len(empty)]]
    return means


def nearest(x: Float[Tensor, "n d"], centroids: Float[Tensor, "k d"]) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    """The nearest centroid of each row, and its squared distance."""
    parts = [squared_distances(rows, centroids).min(1) for rows in x.split(max(1, AT_ONCE // len(centroids)))]
    return torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts])


def squared_distances(x: Float[Tensor, "n d"], y: Float[Tensor, "k d"]) -> Float[Tensor, "n k"]:
    return (x.square().sum(1, keepdim=True) + y.square().sum(1) - 2 * x @ y.T).clamp_min(0)
