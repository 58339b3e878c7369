"""Scores of an encoder that need no labels: from its features of random views of the same images. Larger is better.

Rows of `z1` and `z2` are two views of the same images, `z` holds any number of views. Features are compared about the
mean of all, which behind a ReLU hides how they differ.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from twinblock.diagnosis import measures

CLUSTERS = 20
NEIGHBOURS = 10

View = Float[Tensor, "n d"]
Views = Float[Tensor, "v n d"]


def retrieval(z1: View, z2: View) -> float:
    """Share of the images whose second view is nearest, by cosine, to their own first view; 1 / n by chance."""
    u, v = _unit(z1, z2)
    return _own_is_nearest(v @ u.T)


def reciprocal_rank(z1: View, z2: View) -> float:
    """Mean of 1 / rank of the own first view, by cosine, among the first views of all images."""
    u, v = _unit(z1, z2)
    return _reciprocal_rank(v @ u.T)


def whitened_retrieval(z: Views) -> float:
    """`retrieval` by the distance in coordinates in which views of one image vary by 1 in all directions.

    These coordinates do not depend on linear ones, as a linear probe does not. They are fitted to every second image
    and used for the others, and the other way round. The mean over all pairs of views.
    """
    return _mean(_own_is_nearest(-torch.cdist(v, u)) for u, v in _whitened(z))


def whitened_reciprocal_rank(z: Views) -> float:
    """`reciprocal_rank` by the distance in the coordinates of `whitened_retrieval`."""
    return _mean(_reciprocal_rank(-torch.cdist(v, u)) for u, v in _whitened(z))


def information(z1: View, z2: View) -> float:
    """Nats that a view tells of the other if features are Gaussian: the sum of -log(1 - r^2) / 2.

    The r are correlations of two views in their canonical coordinates. These are fitted to every second image, and the
    r are those of the others, and the other way round. Linear coordinates do not matter.
    """
    found, (z1, z2) = [], _standard(torch.stack([z1, z2]))
    for fit, test in _folds(len(z1)):
        a, b = z1[fit], z2[fit]
        root = _root(torch.cat([a, b]))
        shared = (a.T @ b + b.T @ a) / (2 * len(a))
        inner = torch.linalg.solve_triangular(root, shared, upper=False)
        inner = torch.linalg.solve_triangular(root, inner.T, upper=False)
        directions = torch.linalg.solve_triangular(root.T, torch.linalg.eigh((inner + inner.T) / 2)[1], upper=True)
        r = _correlations(z1[test] @ directions, z2[test] @ directions)
        found.append(float(-(1 - r.clamp(0, 1 - 1e-6).square()).log().sum() / 2))
    return _mean(found)


def neighbourhood(z1: View, z2: View, k: int = NEIGHBOURS) -> float:
    """Share of the `k` nearest other images, by cosine, that two views of an image have in common."""
    u, v = _unit(z1, z2)
    near = [(x @ x.T).fill_diagonal_(-2).topk(k).indices for x in (u, v)]
    member = torch.zeros(2, len(u), len(u), dtype=torch.bool)
    for table, index in zip(member, near, strict=True):
        table.scatter_(1, index, True)
    return float((member[0] & member[1]).sum() / (k * len(u)))


def clusters(z1: View, z2: View, k: int = CLUSTERS, seed: int = 0) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """The cluster of each view: k-means of the first views, of length 1, and the nearest centre of the second."""
    from sklearn.cluster import KMeans

    u, v = _unit(z1, z2)
    fitted = KMeans(min(k, len(u)), n_init=3, random_state=seed)  # pyright: ignore[reportArgumentType]
    fitted.fit(u.numpy())
    return torch.from_numpy(fitted.labels_).long(), torch.from_numpy(fitted.predict(v.numpy())).long()


def stability(z1: View, z2: View) -> float:
    """Adjusted Rand index of the `clusters` of two views: 0 by chance, 1 if no image changes its cluster."""
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(*clusters(z1, z2)))


def shared_clusters(z1: View, z2: View) -> float:
    """Normalised mutual information of the `clusters` of two views."""
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(*clusters(z1, z2)))


def _of_pairs(score: Callable[[View, View], float]) -> Callable[[Views], float]:
    """The mean over all pairs of views."""
    return lambda z: _mean(score(a, b) for a, b in combinations(z, 2))


SCORES: dict[str, Callable[[Views], float]] = {
    "effective rank (RankMe)": lambda z: _mean(float(measures.effective_rank(one)) for one in z),
    "centred rank": lambda z: _mean(float(measures.effective_rank(one - one.mean(0))) for one in z),
    "LiDAR": lambda z: float(measures.lidar(z.transpose(0, 1).flatten(0, 1), len(z))),
    "alignment": _of_pairs(lambda a, b: -float(measures.alignment(normalize(a), normalize(b)))),
    "uniformity": lambda z: _mean(-float(measures.uniformity(normalize(one))) for one in z),
    "agreement": _of_pairs(lambda a, b: measures.agreement(a, b)[0]),
    "retrieval": _of_pairs(retrieval),
    "reciprocal rank": _of_pairs(reciprocal_rank),
    "whitened retrieval": whitened_retrieval,
    "whitened reciprocal rank": whitened_reciprocal_rank,
    "information": _of_pairs(information),
    "neighbourhood": _of_pairs(neighbourhood),
    "stability": _of_pairs(stability),
    "shared clusters": _of_pairs(shared_clusters),
}


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


def _unit(z1: View, z2: View) -> tuple[View, View]:
    middle = (z1.mean(0) + z2.mean(0)) / 2
    return normalize(z1 - middle), normalize(z2 - middle)


def _whitened(z: Views) -> Iterator[tuple[View, View]]:
    """Pairs of views of either half of the images, in coordinates that the other half gives."""
    z = _standard(z)
    for fit, test in _folds(z.shape[1]):
        within = z[:, fit] - z[:, fit].mean(0)
        root = _root(within.flatten(0, 1) * math.sqrt(len(z) / (len(z) - 1)))
        yield from combinations([torch.linalg.solve_triangular(root, one.T, upper=False).T for one in z[:, test]], 2)


def _standard(z: Views) -> Views:
    """Each feature about its mean, over its standard deviation; one that does not vary is 0."""
    rows = z.flatten(0, 1)
    mean, std = rows.mean(0), rows.std(0)
    return (z - mean) * torch.where(std > 1e-12 * rows.abs().amax(0), 1 / std, 0)


def _own_is_nearest(similar: Float[Tensor, "n n"]) -> float:
    """Share of the rows whose largest entry is on the diagonal, and there alone: what is all alike finds nothing."""
    others = similar.clone().fill_diagonal_(-math.inf).amax(1)
    return float((similar.diag() > others).double().mean())


def _reciprocal_rank(similar: Float[Tensor, "n n"]) -> float:
    """Mean over rows of 1 / rank of the entry on the diagonal, equal ones before it."""
    return float((1 / (similar >= similar.diag()[:, None]).sum(1)).mean())


def _folds(n: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    even, odd = slice(0, n, 2), slice(1, n, 2)
    return (even, odd), (odd, even)


def _root(rows: View) -> Float[Tensor, "d d"]:
    """The lower triangular root of the covariance of rows about 0, shrunk as Ledoit and Wolf (2004) do.

    There may be more columns than rows. Of columns that are all 0 it is the root of 1.
    """
    from sklearn.covariance import ledoit_wolf

    covariance = torch.from_numpy(ledoit_wolf(rows.numpy(), assume_centered=True)[0])
    return torch.linalg.cholesky(covariance if covariance.any() else torch.eye(len(covariance), dtype=rows.dtype))


def _correlations(a: View, b: View) -> Float[Tensor, " d"]:
    """Of the same columns of two matrices; 0 where one does not vary."""
    a, b = a - a.mean(0), b - b.mean(0)
    return (a * b).sum(0) / (a.square().sum(0) * b.square().sum(0)).sqrt().clamp_min(1e-30)
