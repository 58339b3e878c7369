"""What embeddings alone tell, without labels: the indicators of collapse, one function each."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from twinblock.core.errors import InputError


def std_of_normalised(z: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Mean std of the dimensions of z / |z|: 0 if collapsed, 1 / sqrt(d) if isotropic (as in SimSiam)."""
    return normalize(z).std(0).mean()


def positive_cosine(z1: Float[Tensor, "n d"], z2: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Mean cosine between the two views of an image."""
    return (normalize(z1) * normalize(z2)).sum(1).mean()


def negative_cosine(z1: Float[Tensor, "n d"], z2: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Mean cosine between a view of an image and the other view of another image; 1 where collapsed."""
    u, v = normalize(z1), normalize(z2)
    n = len(u)
    return (u.sum(0) @ v.sum(0) - (u * v).sum()) / (n * (n - 1))


def alignment(z1: Float[Tensor, "n d"], z2: Float[Tensor, "n d"], alpha: float = 2.0) -> Float[Tensor, ""]:
    """Mean of |z1 - z2|^alpha over the pairs of views; rows have length 1 (Wang and Isola, 2020)."""
    return (z1 - z2).norm(dim=1).pow(alpha).mean()


def uniformity(z: Float[Tensor, "n d"], t: float = 2.0) -> Float[Tensor, ""]:
    """Log of the mean of exp(-t |zi - zj|^2) over all i < j; rows have length 1 (Wang and Isola, 2020).

    In float64: of rows that are nearly alike, the squares and the logarithms cancel.
    """
    x = z.double()
    i, j = torch.triu_indices(len(x), len(x), 1, device=x.device)
    squares = x.square().sum(1)
    distances = squares[i] + squares[j] - 2 * (x @ x.T)[i, j]  # a matrix product is faster than torch.pdist
    return ((-t * distances).logsumexp(0) - math.log(len(i))).to(z.dtype)


def agreement(z1: Float[Tensor, "n d"], z2: Float[Tensor, "n d"]) -> tuple[float, float]:
    """Of what tells images apart, the part that two views of one share, and its standard error.

    1 - (1 - cosine within) / (1 - cosine between): 0 by chance, 1 for views that are the same. The error is the
    jackknife's over images. Both are NaN for embeddings that are not finite, and the error for fewer than 3 images.
    """
    u, v = (normalize(z.detach().cpu().double()) for z in (z1, z2))
    middle = (u.mean(0) + v.mean(0)) / 2  # distances do not see it, and small ones are exact about it
    u, v, n = u - middle, v - middle, len(u)
    within = (u - v).square().sum(1)
    squares = u.square().sum(1), v.square().sum(1)
    as_first = n * squares[0] + squares[1].sum() - 2 * u @ v.sum(0) - within  # distances to all others' other views
    as_second = n * squares[1] + squares[0].sum() - 2 * v @ u.sum(0) - within
    total = as_first.sum()

    def share(within: Tensor, between: Tensor, n: int) -> Tensor:
        return 1 - (within / n) / (between / (n * (n - 1))).clamp_min(1e-12)

    without = share(within.sum() - within, total - as_first - as_second, n - 1) if n > 2 else within * math.nan
    error = ((n - 1) / n * (without - without.mean()).square().sum()).sqrt()
    return float(share(within.sum(), total, n)), float(error)


def feature_norm(z: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Mean length of the rows."""
    return z.norm(dim=1).mean()


def dead_share(z: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Share of the dimensions that do not vary: std at most 1e-5 of the root mean square of all entries."""
    return (z.std(0) <= 1e-5 * z.square().mean().sqrt()).to(z.dtype).mean()


def effective_rank(z: Float[Tensor, "n d"], eps: float = 1e-7) -> Float[Tensor, ""]:
    """RankMe (Garrido et al., 2023): exp of the entropy of the singular values, p = s / sum(s) + eps."""
    return _entropy_rank(torch.linalg.svdvals(z), eps)


def _entropy_rank(values: Float[Tensor, " k"], eps: float) -> Float[Tensor, ""]:
    p = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny) + eps
    return (-(p * p.log()).sum()).exp()


def _gram_rank(z: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """`effective_rank` by the smaller Gram matrix, many times faster; to 1e-6 if z is float64."""
    gram = z @ z.T if len(z) < z.shape[1] else z.T @ z
    return _entropy_rank(torch.linalg.eigvalsh(gram).clamp_min(0).sqrt(), 1e-7)


def lidar(z: Float[Tensor, "nq d"], views: int, delta: float = 1e-4, eps: float = 1e-8) -> Float[Tensor, ""]:
    """LiDAR (Thilak et al., 2024): effective rank of what tells images apart; each has `views` rows in a row.

    exp of the entropy of the eigenvalues of Sw^-1/2 Sb Sw^-1/2, with Sb the covariance of the means of images
    and Sw that of views within images plus delta on the diagonal.
    """
    groups = z.unflatten(0, (-1, views))
    n, d = len(groups), z.shape[1]
    means = groups.mean(1)
    within = (groups - means[:, None]).flatten(0, 1)
    within = within.T @ within / (n * (views - 1)) + delta * torch.eye(d, dtype=z.dtype, device=z.device)
    # the eigenvalues are the squared singular values of the centred means in coordinates that whiten Sw
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(within), (means - means.mean(0)).T, upper=False)
    values = torch.linalg.svdvals(white).square() / (n - 1)
    values = torch.cat([values, values.new_zeros(d - len(values))]) + eps
    p = values / values.sum()
    return (-(p * p.log()).sum()).exp()


def shares(q: Float[Tensor, "n k"]) -> dict[str, float]:
    """How images are shared out among k prototypes; each row of q sums to 1.

    `used`: the effective number of prototypes that are some image's first choice, exp of the entropy of how many images
    choose each: 1 if all choose one. `uncertainty`: mean entropy of an image's own shares over log k: 0 for one
    prototype, 1 for all alike.
    """
    q = q.detach().cpu().double()
    chosen = torch.bincount(q.argmax(1), minlength=q.shape[1]) / len(q)
    return {
        "prototypes": float(q.shape[1]),
        "used": float(torch.special.entr(chosen).sum().exp()),
        "uncertainty": float(torch.special.entr(q).sum(1).mean() / math.log(q.shape[1])),
    }


def indicators(z1: Float[Tensor, "n d"], z2: Float[Tensor, "n d"] | None = None) -> dict[str, float]:
    """All of it at once for two views of the same images; of one view, what it can tell alone.

    `centred_rank` is the effective rank about the mean, which behind a ReLU hides how features vary. All but
    the sizes are NaN where an embedding is not finite. Raises InputError for fewer than two rows.
    """
    n, d = z1.shape
    if n < 2:
        raise InputError(f"{n} embedding cannot be diagnosed; give at least 2, better 256 or more")
    a = z1.detach().cpu().double()
    b = a if z2 is None else z2.detach().cpu().double()
    u, v = normalize(a), normalize(b)
    measures = {
        "effective_rank": lambda: _gram_rank(a),
        "centred_rank": lambda: _gram_rank(a - a.mean(0)),
        "std": lambda: std_of_normalised(a),
        "negative_cosine": lambda: negative_cosine(a, b),
        "uniformity": lambda: uniformity(u),
        "feature_norm": lambda: feature_norm(a),
        "dead_share": lambda: dead_share(a),
    }
    if z2 is not None:
        measures["positive_cosine"] = lambda: positive_cosine(a, b)
        measures["alignment"] = lambda: alignment(u, v)
    finite = bool(a.isfinite().all() and b.isfinite().all())
    values = {name: float(measure()) if finite else math.nan for name, measure in measures.items()}
    return {"samples": float(n), "dimensions": float(d), **values}
