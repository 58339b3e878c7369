"""Rows of packed images, read side by side: page faults of a memory map come one after the other."""

import os
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from jaxtyping import Int, Shaped

from twinblock.core.errors import InputError

LARGE = 2**16  # bytes of a row from which reading beats the map, which is quicker for small rows that are in memory
THREADS = 16  # that wait for the disk


def rows_of(pixels: Shaped[np.ndarray, "stored h w c"], rows: Int[np.ndarray, " n"]) -> Shaped[np.ndarray, "n h w c"]:
    """A copy of these rows. Raises InputError where the file has become shorter."""
    file = _whole_file(pixels)
    if file is None or not len(rows) or pixels[0].nbytes < LARGE:
        return np.take(pixels, rows, axis=0)
    try:
        opened = open(file, "rb", buffering=0)  # noqa: SIM115 - closed below
    except FileNotFoundError:  # it has no name any more, as that of a data set in Python; the map still has it
        return np.take(pixels, rows, axis=0)
    out = np.empty((len(rows), *pixels.shape[1:]), pixels.dtype)
    with opened, ThreadPoolExecutor(min(THREADS, len(rows))) as pool:
        parts = np.array_split(np.arange(len(rows)), THREADS)
        reads: list[Future[int]] = [pool.submit(_read, opened.fileno(), rows, out, part) for part in parts]
        if sum(read.result() for read in reads) != out.nbytes:
            raise InputError(f"{file} is shorter than when the run began: give the command again, which packs anew")
    return out


def _whole_file(pixels: np.ndarray) -> str | None:
    """The file that is mapped from its first byte to its last; None: no such file, or a part of one."""
    if not isinstance(pixels, np.memmap) or pixels.filename is None or pixels.offset:
        return None
    mapped = pixels._mmap  # pyright: ignore[reportAttributeAccessIssue]
    return str(pixels.filename) if pixels.flags.c_contiguous and len(mapped) == pixels.nbytes else None


def _read(file: int, rows: np.ndarray, out: np.ndarray, part: np.ndarray) -> int:
    """Fill these places of `out`; how many bytes were there."""
    size, count = out[0].nbytes, 0
    for i in part:
        view, start = out[i].data.cast("B"), int(rows[i]) * size
        while view and (read := os.preadv(file, [view], start)):
            view, start, count = view[read:], start + read, count + read
    return count
