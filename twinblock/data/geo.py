"""JPEG 2000 of any bits and bands, as Sentinel-2's, by rasterio: whole, or some rows at a time."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
from jaxtyping import Shaped
from numpy import ndarray as Array

DRIVER = "JP2OpenJPEG"
BEGINNINGS = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")  # of its container, and of its bare codestream
EXTRA = 'JPEG 2000 of more than 8 bits and several channels needs: pip install "twinblock[geo]"'


def installed() -> bool:
    return find_spec("rasterio") is not None


@contextmanager
def _opened(file: str | bytes) -> Iterator[Any]:
    import rasterio

    with ExitStack() as stack:
        source = stack.enter_context(rasterio.MemoryFile(file)) if isinstance(file, bytes) else file
        if isinstance(source, str):
            yield stack.enter_context(rasterio.open(source, driver=DRIVER))
        else:
            yield stack.enter_context(source.open(driver=DRIVER))


def header(file: str | bytes) -> tuple[str, tuple[int, int, int], bool, float | None]:
    """Type, (h, w, channels), whether the last channel is opacity, and the value that stands for none."""
    with _opened(file) as image:
        return image.dtypes[0], (*image.shape, image.count), image.colorinterp[-1].name == "alpha", image.nodata


def values(file: str | bytes) -> Shaped[Array, "h w c"]:
    with _opened(file) as image:
        return np.ascontiguousarray(image.read().transpose(1, 2, 0))


def bands(file: str | bytes) -> Iterator[tuple[Shaped[Array, "r w c"], int]]:
    """The rows, as many at a time as a tile of the file is high, and the height."""
    with _opened(file) as image:
        step = image.block_shapes[0][0]
        for top in range(0, image.height, step):
            rows = image.read(window=((top, min(top + step, image.height)), (0, image.width)))
            yield np.ascontiguousarray(rows.transpose(1, 2, 0)), image.height
