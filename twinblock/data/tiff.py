"""TIFF files, as tifffile reads them: their pages, upright and with white high; and their rows, some at a time."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import numpy as np
from jaxtyping import Shaped
from numpy import ndarray as Array

ORIENTATION = 274
MINISWHITE = 0  # what the tag of photometric interpretation says where 0 is white


@contextmanager
def opened(file: str | bytes) -> Iterator[tuple[Any, Any]]:
    """A TIFF file and the series of its pages; smaller copies and masks of the image are none."""
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it says of odd tags what no pixel needs
    with tifffile.TiffFile(BytesIO(file) if isinstance(file, bytes) else file) as whole:
        full = [series for series in whole.series if not series.keyframe.subfiletype & 0b101]
        if not full or 0 in full[0].shape:
            raise ValueError("no pixels")
        if len({series.shape for series in full}) > 1:
            raise ValueError(f"{len(full)} pages of other sizes: save each in a file of its own")
        yield full[0].keyframe, full


def white(page: Any) -> int | None:
    """The value that is black in a page whose 0 is white; None where 0 is black, as elsewhere.

    Raises ValueError where no value is the highest, or only some of the channels are meant.
    """
    if page.photometric != MINISWHITE:
        return None
    if page.dtype.kind not in "bu" or page.bitspersample > 16 or page.samplesperpixel > 1:
        raise ValueError(
            f"its 0 is white (MINISWHITE), which is not read of {page.dtype.name} with {page.samplesperpixel} "
            "channels: save it with 0 as black (MINISBLACK)"
        )
    return 2**page.bitspersample - 1


def lies(page: Any) -> int:
    """How a page lies, as TIFF's tag counts it: 1 is upright, and from 5 on height and width change places."""
    tag = page.tags.get(ORIENTATION)
    return int(tag.value) if tag else 1


def upright(values: Shaped[Array, "pages a b c"], orientation: int) -> Shaped[Array, "pages h w c"]:
    """The pages as they are to be looked at."""
    if orientation in (5, 6, 7, 8):
        values = values.transpose(0, 2, 1, 3)
    if orientation in (3, 4, 7, 8):
        values = values[:, ::-1]
    return values[:, :, ::-1] if orientation in (2, 3, 6, 7) else values


def bands(file: str | bytes) -> Iterator[tuple[Shaped[Array, "r w c"], int]] | None:
    """The rows of a TIFF, as many at a time as its strips or tiles are high, and its height.

    None where it has several pages, or values that are not those of the image: a palette, inks,
    single bits, or what lies on its side.
    """
    with opened(file) as (page, series):
        plain = page.photometric in (1, 2) and page.imagedepth == 1 and page.bitspersample >= 8 and lies(page) == 1
        one = len(series) == 1 and len(series[0].pages) == 1
    return _bands(file) if plain and one else None


def _bands(file: str | bytes) -> Iterator[tuple[Shaped[Array, "r w c"], int]]:
    with opened(file) as (page, _):
        height, width, channels = page.imagelength, page.imagewidth, page.samplesperpixel
        high, wide = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, width)
        across, down = -(-width // wide), -(-height // high)
        layers = channels if page.planarconfig == 2 else 1
        for row in range(down):
            band = np.zeros((min(high, height - row * high), width, channels), page.dtype)
            for layer in range(layers):
                for column in range(across):
                    i = (layer * down + row) * across + column
                    page.parent.filehandle.seek(page.dataoffsets[i])
                    data = page.parent.filehandle.read(page.databytecounts[i])
                    part = page.decode(data, i, jpegtables=page.jpegtables)[0]
                    if part is not None:  # an empty place of a sparse file is zero
                        channel = slice(layer, layer + 1) if layers > 1 else slice(None)
                        place = band[:, column * wide : (column + 1) * wide, channel]
                        place[:] = part[0, : place.shape[0], : place.shape[1]]
            yield band, height


def ordered(values: np.ndarray, axes: str) -> np.ndarray:
    """(pages, h, w, channels) of an array whose axes tifffile names: all but samples and channels are pages."""
    y, x = axes.index("Y"), axes.index("X")
    channels = [i for i, axis in enumerate(axes) if axis in "SC"]
    pages = [i for i in range(len(axes)) if i not in (y, x, *channels)]
    values = values.transpose(*pages, y, x, *channels)
    height, width = values.shape[len(pages) : len(pages) + 2]
    return values.reshape(-1, height, width, int(np.prod(values.shape[len(pages) + 2 :], dtype=int)))
