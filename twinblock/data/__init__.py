"""Images in memory maps: where they come from (`load`) and how batches leave (`Images.batch`)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

__all__ = ["Images", "load", "take"]


@dataclass(frozen=True)
class Images:
    """A set of images of one stored size, in an array or a memory map.

    `aspect` is the original width / height where pixels were squashed, None where they are undistorted.
    An image of label -1 has none. `skipped` lists (path, reason) of the files that could not be read.
    """

    pixels: np.ndarray  # (n, h, w, 3) uint8
    labels: np.ndarray | None = None  # (n,) int64
    classes: tuple[str, ...] | None = None
    aspect: np.ndarray | None = None  # (n,) float32
    name: str = ""
    skipped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, index: Sequence[int] | np.ndarray | Tensor) -> UInt8[Tensor, "n h w c"]:
        """The images of these rows, copied."""
        return torch.from_numpy(np.take(self.pixels, np.asarray(index, dtype=np.int64), axis=0))


def take(images: Images, rows: np.ndarray) -> Images:
    """The images of these rows, in memory."""
    pick = lambda column: None if column is None else column[rows]  # noqa: E731
    return replace(images, pixels=images.pixels[rows], labels=pick(images.labels), aspect=pick(images.aspect))


def load(
    source: str,
    root: str | None = None,
    split: Literal["train", "test"] = "train",
    size: int | None = None,
    download: bool = True,
) -> Images | None:
    """The images of one split of a source; None where the source has no such split."""
    from twinblock.data.sources import load as load_source

    return load_source(source, root, split, size, download)
