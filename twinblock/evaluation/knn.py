"""Weighted k-nearest-neighbour classification, the rule that Wu et al. (2018) and MoCo's demo use."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from twinblock.evaluation.features import check

CHUNK = 2**24  # similarities held at a time: 64 MiB in float32


@torch.no_grad()
def knn_scores(
    bank: Float[Tensor, "n d"],
    bank_labels: Int[Tensor, " n"],
    queries: Float[Tensor, "q d"],
    classes: int,
    k: int = 200,
    temperature: float = 0.1,
) -> Float[Tensor, "q c"]:
    """Scores of the classes, float64: the k most similar rows of the bank vote exp(cos / temperature) each.

    `k` larger than the bank means the whole bank. The predicted class is `scores.argmax(1)`.
    Raises InputError for features that are not finite.
    """
    check(bank, bank_labels, queries, classes)
    bank, queries = normalize(bank), normalize(queries)
    scores = torch.zeros(len(queries), classes, dtype=torch.float64, device=queries.device)
    for rows, part in zip(scores.split(size := max(1, CHUNK // len(bank))), queries.split(size), strict=True):
        cosine, nearest = (part @ bank.T).topk(min(k, len(bank)))
        # exp(1 / temperature) leaves the range of float32 below a temperature of 0.0113
        rows.scatter_add_(1, bank_labels[nearest], (cosine.double() / temperature).exp())
    return scores
