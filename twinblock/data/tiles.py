"""Large images as tiles of their own resolution, read in bands: memory does not grow with an image's height."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped
from numpy import ndarray as Array

from twinblock.config.schema import Tile
from twinblock.data import Names
from twinblock.data.readers import File, kind_of, planes, tiff_bands

NAMED = re.compile(r"(.*)\[(\d+),(\d+)\]", re.DOTALL)


def cut(source: Any, tile: Tile) -> Any:
    """The source `Encoded` with tiles in place of its images: `scan.tif[512,0]` begins 512 rows down, 0 columns right.

    The tiles at the lower and right border end there, so that they overlap more. An image smaller than a tile is one
    of the files that could not be read.
    """

    def items() -> Iterator[tuple[str, File | Exception, int]]:
        for name, file, label in source.items():
            try:
                for top, left, values in tiles(file, tile):
                    yield f"{name}[{top},{left}]", values, label
            except Exception as error:  # damaged files make decoders raise anything: the store lists it
                yield name, error, label

    return replace(source, items=items)


def tiles(file: Any, tile: Tile) -> Iterator[tuple[int, int, Shaped[Array, "s s c"]]]:
    """(top, left, values) of the tiles of an image, row by row; those that `tile` calls empty are left out."""
    size, step = tile.size, tile.size - tile.overlap
    held, first, wanted = None, 0, 0  # rows that a tile to come needs, the first of them, and where the next row begins
    for rows, height in bands(file):
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


def bands(file: File) -> Iterator[tuple[Shaped[Array, "r w c"], int]]:
    """The rows of an image, some at a time, and its height; a TIFF of one page never lies in memory as a whole."""
    if isinstance(file, str | bytes) and kind_of(file) == "TIFF":
        yield from tiff_bands(file)
        return
    pages = planes(file)
    if len(pages) > 1:
        raise ValueError(f"{len(pages)} pages or frames; tiles are cut from files of one")
    for start in range(0, pages.shape[1], 256):
        yield pages[0, start : start + 256], pages.shape[1]


def places(names: Names) -> tuple[list[str], Int[Array, "n 2"]] | None:
    """The file of each tile, and where in it the tile begins (rows down, columns right); None where these are none."""
    parts = [NAMED.fullmatch(name) for name in names]
    if not all(parts):
        return None
    return [part[1] for part in parts if part], np.array([[int(part[2]), int(part[3])] for part in parts if part])
