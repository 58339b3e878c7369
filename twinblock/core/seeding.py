"""Random numbers as a function of integers, so that a run is the same on any number of processes and after a resume."""

import hashlib

import numpy as np
import torch


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
