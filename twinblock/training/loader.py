"""Batches of a run in order: each process gathers its own part, and the next while one is trained on."""

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from twinblock.core.seeding import drawn, order
from twinblock.data import Images


@dataclass(frozen=True)
class Samples:
    """A process's part of a batch. Views draw by `aspect` on the CPU, and few ask for `index`: both stay there.

    `pixels` is None where another process makes the views.
    """

    pixels: Shaped[Tensor, "n h w c"] | None
    labels: Int[Tensor, " n"] | None
    aspect: Float[Tensor, " n"] | None
    index: Int[Tensor, " n"]

    def to(self, device: torch.device) -> "Samples":
        pixels, labels = (None if x is None else x.to(device, non_blocking=True) for x in (self.pixels, self.labels))
        return Samples(pixels, labels, self.aspect, self.index)


class Loader:
    """Images in an order that follows from seed and epoch, `batch` a step; `share` from `offset` on are ours.

    `reads`: whether pixels are wanted; else there are none.
    """

    def __init__(
        self, images: Images, seed: int, batch: int, share: int, offset: int, device: torch.device, reads: bool = True
    ):
        self.reads = reads
        self.images, self.seed, self.batch, self.share, self.offset = images, seed, batch, share, offset
        self.device, self.epoch_steps = device, len(images) // batch
        self.order = lru_cache(maxsize=1)(self._order)

    def batches(self, start: int, stop: int) -> Generator[Samples, None, None]:
        """The samples of these steps, on the device."""
        with ThreadPoolExecutor(1) as pool:
            upcoming = pool.submit(self.gather, start)
            for step in range(start, stop):
                samples = upcoming.result()
                if step + 1 < stop:
                    upcoming = pool.submit(self.gather, step + 1)
                yield samples.to(self.device)

    def gather(self, step: int) -> Samples:
        epoch, i = divmod(step, self.epoch_steps)
        start = i * self.batch + self.offset
        index = self.order(epoch)[start : start + self.share]
        pixels, labels = self.images.batch(index) if self.reads else None, self.images.labels
        if pixels is not None and self.device.type == "cuda":
            pixels = pixels.pin_memory()  # else its copy would be waited for
        return Samples(
            pixels,
            None if labels is None else torch.from_numpy(np.ascontiguousarray(labels[index])),
            self.images.aspects(index),
            torch.from_numpy(index.astype(np.int64)),
        )

    def _order(self, epoch: int) -> np.ndarray:
        """The rows of an epoch."""
        weights = self.images.weights
        return order(self.seed, epoch, len(self.images)) if weights is None else drawn(self.seed, epoch, weights)
