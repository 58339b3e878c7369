"""Rows that a monitor could have written, and accuracies, made to measure."""

import math

import numpy as np
import torch

from twinblock.diagnosis.chance import CALIBRATED, Accuracy
from twinblock.diagnosis.measures import indicators


def gaussian(n=256, width=64, seed=0):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def look(spread, agreement=0.6, rank=64, width=64, scale=1.0):
    """`indicators` of two views: a mean and about it, `spread` wide, what views share and what they do not."""
    basis = torch.linalg.qr(gaussian(width, rank, seed=2))[0].T / math.sqrt(rank)
    shared, *noise = (gaussian(256, rank, seed=seed) @ basis for seed in (3, 4, 5))
    mean = math.sqrt(1 - min(spread, 1) ** 2) * torch.ones(width) / math.sqrt(width)
    return indicators(
        *(scale * (mean + spread * (agreement**0.5 * shared + (1 - agreement) ** 0.5 * own)) for own in noise)
    )


UNTRAINED = look(0.05, 0.3)


def history(*agreements, untrained=None, rank=64, step=100):
    """Rows of a healthy run whose views agree so much at the encoder, as (value, standard error)."""
    rows = [
        {
            "step": i * step,
            "projector": UNTRAINED if i == 0 else look(0.9),
            "encoder": look(0.5, rank=rank),
            "agreement": a,
        }
        for i, a in enumerate(agreements)
    ]
    if untrained is not None:
        rows[0]["untrained"] = {"agreement": untrained, "centred_rank": 60.0}
    return rows


def accuracy(untrained_only, encoder_only, both=100, pixels=0, n=600, classes_from=None, calibrated=None):
    """Of n test images of two classes, how many only one of the two networks gets right, and both."""
    index = np.arange(n)
    right = {
        "encoder": index < both + encoder_only,
        "raw pixels": index < pixels,
        "untrained encoder": (index < both) | (index >= n - untrained_only),
    }
    if calibrated is not None:
        right[CALIBRATED] = index < calibrated
    return Accuracy.of(right, index % 10, 2400, classes_from)


LEARNED_BY_VIEWS = history((0.2, 0.01), (0.8, 0.01))
NOT_BY_VIEWS = history((0.8, 0.01), (0.7, 0.01))
