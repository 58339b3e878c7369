"""Large images as tiles of their own resolution, read in bands: memory does not grow with an image's height."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Shaped
from numpy import ndarray as Array

from twinblock.config.data import Tile
from twinblock.core.errors import InputError
from twinblock.data import geo, pillow, slides, tiff
from twinblock.data.decode import upright_size
from twinblock.data.endings import is_slide
from twinblock.data.forms import Form
from twinblock.data.parts import tile_name
from twinblock.data.readers import File, facts, kind_of, planes

log = logging.getLogger(__name__)

ROWS = 256  # of an image that lies in memory as a whole, at a time


def by_tiles(source: Any, tile: Tile, form: Form) -> Any:
    """The source `Encoded` with tiles in place of its images: `scan.tif[512,0]` begins 512 rows down, 0 columns right.

    The tiles at the lower and right border end there, so that they overlap more. An image smaller than a tile is one
    of the files that could not be read.
    """

    def items() -> Iterator[tuple[str, File, int]]:
        left_out = kept = 0
        for name, file, label in source.items():
            here = 0
            try:
                for top, left, values in tiles(file, tile, form.picture):
                    here += 1
                    yield tile_name(name, top, left), values, label
                left_out += _count(file, tile) - here
            except Exception as error:  # damaged files make decoders raise anything: the store lists it
                yield name, error, label
            kept += here
        if left_out and not kept:
            raise InputError(f"{source.name}: all tiles are empty; lower data.tile.skip_empty={tile.skip_empty:g}")
        if left_out:
            log.warning(f"{source.name}: {left_out:,} of {left_out + kept:,} tiles are empty and left out")

    return replace(source, count=sum(_count(file, tile) for _, file, _ in source.items()), items=items)


def _count(file: File, tile: Tile) -> int:
    """Tiles of an image, by its header, empty or not; 1 of an image that has none or cannot be read."""
    try:
        _, height, width, _ = facts(file).shape
    except Exception:  # counted and listed when it is packed
        return 1
    step = tile.size - tile.overlap
    return max(1, len(starts(height, tile.size, step)) * len(starts(width, tile.size, step)))


def tiles(file: File, tile: Tile, picture: bool = False) -> Iterator[tuple[int, int, Shaped[Array, "s s c"]]]:
    """(top, left, values) of the tiles of an image, row by row; those that `tile` calls empty are left out.

    `picture`: as 8-bit RGB, which Pillow gives.
    """
    size, step = tile.size, tile.size - tile.overlap
    held, first, wanted = None, 0, 0  # rows that a tile to come needs, the first of them, and where the next row begins
    for rows, height in bands(file, picture):
        if height < size or rows.shape[1] < size:
            raise ValueError(f"of {rows.shape[1]} x {height} pixels, smaller than a tile of {size}")
        held = rows if held is None else np.concatenate([held, rows])
        while wanted is not None and wanted + size <= first + len(held):
            for left in starts(rows.shape[1], size, step):
                values = held[wanted - first : wanted - first + size, left : left + size]
                if tile.skip_empty is None or values.std(dtype=np.float64) >= tile.skip_empty:
                    yield wanted, left, np.ascontiguousarray(values)
            wanted = next((top for top in starts(height, size, step) if top > wanted), None)
        if wanted is None:
            return
        gone = min(max(wanted - first, 0), len(held))
        held, first = held[gone:], first + gone


def starts(length: int, size: int, step: int) -> list[int]:
    """Where tiles begin along an axis; the last one ends with it."""
    return sorted({*range(0, length - size + 1, step), length - size})


def bands(file: File, picture: bool = False) -> Iterator[tuple[Shaped[Array, "r w c"], int]]:
    """The rows of an image, some at a time, and its height; a TIFF, a JPEG 2000 of rasterio's and a slide never lie in
    memory as a whole.
    """
    if isinstance(file, str) and is_slide(file):
        yield from slides.bands(file)
        return
    if isinstance(file, str | bytes) and not picture and kind_of(file) == "JPEG2000" and geo.installed():
        yield from geo.bands(file)
        return
    if isinstance(file, str | bytes) and kind_of(file) == "TIFF" and (parts := tiff.bands(file)) is not None:
        yield from parts
        return
    if picture and isinstance(file, str | bytes):
        width, height = upright_size(file, 2**31)
        whole = pillow.picture(file, height, width)[0]
    elif len(pages := planes(file)) > 1:
        raise ValueError(f"{len(pages)} pages or frames; tiles are cut from files of one")
    else:
        whole = pages[0]
    for start in range(0, len(whole), ROWS):
        yield whole[start : start + ROWS], len(whole)
