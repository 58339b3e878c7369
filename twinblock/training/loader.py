"""Batches of a run in order: each process gathers its own part, and the next while one is trained on."""

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from twinblock.core.seeding import LANES, drawn, order, order_by_pieces, window_of
from twinblock.data import Images
from twinblock.data.served import Served
from twinblock.data.store import say_once


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
        self.pieces, self.ahead = None, 0
        if isinstance(images.pixels, Served) and images.weights is not None:
            say_once(
                f"{images.name}: images drawn by weight are fetched one by one, which is slow; copy the set to a disk"
            )
        elif isinstance(images.pixels, Served):
            self.pieces = images.pixels.pieces_of(np.arange(len(images)) if images.rows is None else images.rows)
            ahead = 1 + LANES * window_of(self.pieces) // batch  # steps until the next pieces are wanted
            self.ahead = min(ahead, self.epoch_steps)
        self.order = lru_cache(maxsize=2 if self.ahead else 1)(self._order)  # of 100 million images it is 800 MB

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
        index = self.own(step)
        if self.reads and self.pieces is not None:
            self.images.soon(np.concatenate([self.own(step + i) for i in range(self.ahead + 1)]))
        pixels, labels = self.images.batch(index) if self.reads else None, self.images.labels
        if pixels is not None and self.device.type == "cuda":
            pixels = pixels.pin_memory()  # else its copy would be waited for
        return Samples(
            pixels,
            None if labels is None else torch.from_numpy(np.ascontiguousarray(labels[index])),
            self.images.aspects(index),
            torch.from_numpy(index.astype(np.int64)),
        )

    def own(self, step: int) -> np.ndarray:
        """The images of our share of a step."""
        epoch, i = divmod(step, self.epoch_steps)
        start = i * self.batch + self.offset
        return self.order(epoch)[start : start + self.share]

    def _order(self, epoch: int) -> np.ndarray:
        """The images of an epoch."""
        if self.pieces is not None:
            return order_by_pieces(self.seed, epoch, self.pieces, self.batch)
        weights = self.images.weights
        return order(self.seed, epoch, len(self.images)) if weights is None else drawn(self.seed, epoch, weights)
