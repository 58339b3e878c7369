"""The rows most like each of very many queries, by an index of faiss. Needs the extra `twinblock[index]`."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

SAMPLE = 200  # queries that are also compared with every row
WANTED = 0.99  # share of the nearest rows of these that the index has to find
LISTS = 4.0  # times the root of the number of rows
TRAINED_ON = 64  # rows for each list
Found = tuple[Float[Tensor, "q k"], Int[Tensor, "q k"]]  # cosines and places, best first

log = logging.getLogger(__name__)


def installed() -> bool:
    try:
        import faiss  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        return False
    return True


def nearest_by_index(
    queries: Float[Tensor, "q d"],
    rows: Float[Tensor, "n d"],
    k: int,
    exact: Callable[[Float[Tensor, "m d"], Float[Tensor, "n d"], int], Found],
) -> Found:
    """`exact(queries, rows, k)`, nearly: an inverted file, whose lists are the rows nearest to each of its centres.

    As few lists are looked through as find 99 % of the nearest rows of 200 queries, for which `exact` gives them; how
    many they find is said. Rows are of length 1.
    """
    import faiss  # pyright: ignore[reportMissingImports]

    vectors = np.ascontiguousarray(rows.float().numpy())
    count, width = vectors.shape
    lists = max(1, min(count, round(LISTS * count**0.5)))
    index: Any = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.spherical, index.cp.min_points_per_centroid = True, 1
    index.train(vectors[:: max(1, count // (TRAINED_ON * lists))])
    index.add(vectors)
    some = queries[:: max(1, len(queries) // SAMPLE)][:SAMPLE].float()
    least = exact(some, rows, k)[0][:, -1:] - 1e-6
    index.nprobe, recall = min(8, lists), 0.0
    while True:
        recall = float((torch.from_numpy(index.search(some.numpy(), k)[0]) >= least).double().mean())
        if recall >= WANTED or index.nprobe == lists:
            break
        index.nprobe = min(2 * index.nprobe, lists)
    log.warning(f"{count:,} images are compared by an index, which finds {recall:.1%} of the nearest of {len(some)}")
    similar, places = map(torch.from_numpy, index.search(np.ascontiguousarray(queries.float().numpy()), k))
    return complete(similar, places)


def complete(similar: Float[Tensor, "q k"], places: Int[Tensor, "q k"]) -> Found:
    """The nearest row once more in place of one that is missing, below 0, where lists hold too few."""
    missing = places < 0
    return torch.where(missing, similar[:, :1], similar), torch.where(missing, places[:, :1], places)
