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
HELD = 2**28  # bytes of a band of an image in strips that lies on its side
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
    """The rows of a TIFF as it is to be looked at, some at a time, and its height.

    None where it has several pages, or values that are not those of the image: a palette, inks, single bits.
    """
    with opened(file) as (page, series):
        plain = page.photometric in (1, 2) and page.imagedepth == 1 and page.bitspersample >= 8
        one = len(series) == 1 and len(series[0].pages) == 1
    return _bands(file) if plain and one else None


def _bands(file: str | bytes) -> Iterator[tuple[Shaped[Array, "r w c"], int]]:
    """As many rows at a time as strips or tiles are high. Of an image that lies on its side these are columns in the
    file: of strips, as many as 256 MB hold, since each band reads all strips again.
    """
    with opened(file) as (page, _):
        height, width, orientation = page.imagelength, page.imagewidth, lies(page)
        high, wide = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, width)
        if orientation >= 5:
            size = page.samplesperpixel * page.dtype.itemsize
            step, length = wide if page.is_tiled else max(1, HELD // (height * size)), width
        else:
            step, length = high, height
        starts = range(0, length, step)
        for start in reversed(starts) if orientation in (3, 4, 7, 8) else starts:
            here = slice(start, min(start + step, length))
            part = _window(page, slice(0, height), here) if orientation >= 5 else _window(page, here, slice(0, width))
            yield upright(part[None], orientation)[0], length


def _window(page: Any, rows: slice, columns: slice) -> Shaped[Array, "r w c"]:
    """A part of a page, of which only the strips or tiles that meet it are read."""
    height, width, channels = page.imagelength, page.imagewidth, page.samplesperpixel
    high, wide = (page.tilelength, page.tilewidth) if page.is_tiled else (min(page.rowsperstrip, height), width)
    across, down = -(-width // wide), -(-height // high)
    layers = channels if page.planarconfig == 2 else 1
    window = np.zeros((rows.stop - rows.start, columns.stop - columns.start, channels), page.dtype)
    for layer in range(layers):
        channel = slice(layer, layer + 1) if layers > 1 else slice(None)
        for row in range(rows.start // high, -(-rows.stop // high)):
            for column in range(columns.start // wide, -(-columns.stop // wide)):
                i = (layer * down + row) * across + column
                page.parent.filehandle.seek(page.dataoffsets[i])
                data = page.parent.filehandle.read(page.databytecounts[i])
                part = page.decode(data, i, jpegtables=page.jpegtables)[0]
                if part is None:  # an empty place of a sparse file is zero
                    continue
                top, left = row * high, column * wide  # of the part in the page
                bottom, right = min(top + part.shape[1], rows.stop), min(left + part.shape[2], columns.stop)
                first, start = max(top, rows.start), max(left, columns.start)
                place = window[first - rows.start : bottom - rows.start, start - columns.start : right - columns.start]
                place[..., channel] = part[0, first - top : bottom - top, start - left : right - left]
    return window


def ordered(values: np.ndarray, axes: str) -> np.ndarray:
    """(pages, h, w, channels) of an array whose axes tifffile names: all but samples and channels are pages."""
    y, x = axes.index("Y"), axes.index("X")
    channels = [i for i, axis in enumerate(axes) if axis in "SC"]
    pages = [i for i in range(len(axes)) if i not in (y, x, *channels)]
    values = values.transpose(*pages, y, x, *channels)
    height, width = values.shape[len(pages) : len(pages) + 2]
    return values.reshape(-1, height, width, int(np.prod(values.shape[len(pages) + 2 :], dtype=int)))
