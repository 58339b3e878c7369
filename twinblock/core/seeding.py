"""Random numbers as a function of integers, so that a run is the same on any number of processes and after a resume."""

import hashlib
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from twinblock.core.settings import own_settings

LANES, WINDOW = 8, 32  # an epoch in pieces has the images of so many at a time: LANES * WINDOW

_drawing = threading.RLock()


def hashed(*key: int | str) -> int:
    """A 63-bit seed from integers and words; near keys give unrelated seeds."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator that depends on the key alone."""
    return torch.Generator(device).manual_seed(hashed(*key))


def order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of the samples in an epoch."""
    return np.random.Generator(np.random.PCG64(hashed("order", seed, epoch))).permutation(count)


def order_by_pieces(seed: int, epoch: int, pieces: np.ndarray, batch: int) -> np.ndarray:
    """The order of the samples in an epoch, whole batches of it, where few pieces are wanted at a time.

    `pieces`: the number of the piece in which each sample lies. Pieces are shuffled and put one behind the other. The
    row of samples that this makes is cut into `LANES` equal parts, and each batch takes as many of each. Samples of a
    part are shuffled among those of `WINDOW` pieces. Processes that share a batch read different parts.
    """
    rng = np.random.Generator(np.random.PCG64(hashed("pieces", seed, epoch)))
    count, steps, lanes = int(pieces.max()) + 1, len(pieces) // batch, math.gcd(batch, LANES)
    order = np.argsort(rng.permutation(count)[pieces], kind="stable")[: steps * batch].reshape(lanes, -1)
    window = window_of(pieces)
    for lane in order:
        for start in range(0, lane.size, window):
            rng.shuffle(lane[start : start + window])
    return order.reshape(lanes, steps, -1).swapaxes(0, 1).ravel()


def window_of(pieces: np.ndarray) -> int:
    """Samples among which `order_by_pieces` shuffles, of each of its parts."""
    return max(1, WINDOW * len(pieces) // len(np.unique(pieces)))


def drawn(seed: int, epoch: int, weights: np.ndarray) -> np.ndarray:
    """As many samples as there are, in the order of an epoch: each drawn with a probability of its weight's share."""
    rng = np.random.Generator(np.random.PCG64(hashed("drawn", seed, epoch)))
    return rng.choice(len(weights), len(weights), p=weights / weights.sum())


def uniform(key: tuple[int | str, ...], offset: int, count: int, width: int) -> np.ndarray:
    """`width` numbers from 0 to 1 for each of `count` samples, the first at place `offset` of the batch.

    A row is a function of key and place alone, so any number of processes draws the same ones.
    """
    numbers = np.random.PCG64(hashed(*key)).advance(offset * width)  # one step of it for each number
    return np.random.Generator(numbers).random((count, width))


def normal(key: tuple[int | str, ...], offset: int, count: int, width: int) -> torch.Tensor:
    """Standard normal numbers as `uniform` gives its own, in float64: those that have its numbers below them."""
    numbers = uniform(key, offset, count, width).clip(2.0**-54)  # never 0
    return torch.special.ndtri(torch.from_numpy(numbers))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Layers that are made within draw their first weights, in float32 on the CPU, from `seed`.

    They draw from the generator that the process shares: one thread does so at a time, and it is left as it was.
    """
    with _drawing, own_settings():
        before = torch.default_generator.get_state()
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            torch.default_generator.set_state(before)
