"""Whole-slide images, as tiffslide reads them: rows of the level of most pixels, some at a time."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray as Array

ROWS = 256  # at a time


def size(file: str) -> tuple[int, int]:
    """Height and width."""
    from tiffslide import TiffSlide

    with TiffSlide(file) as slide:
        width, height = slide.dimensions
        return height, width


def bands(file: str) -> Iterator[tuple[UInt8[Array, "r w 3"], int]]:
    """The rows, and the height. A slide never lies in memory as a whole."""
    from tiffslide import TiffSlide

    with TiffSlide(file) as slide:
        width, height = slide.dimensions
        for top in range(0, height, ROWS):
            rows = slide.read_region((0, top), 0, (width, min(ROWS, height - top)), as_array=True)
            yield np.ascontiguousarray(rows[..., :3]), height
