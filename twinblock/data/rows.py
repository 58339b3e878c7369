"""Rows of packed images, read side by side: page faults of a memory map come one after the other."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped, UInt8
from PIL import Image

from twinblock.core.errors import InputError

LARGE = 2**16  # bytes of a row from which reading beats the map, which is quicker for small rows that are in memory
THREADS = 16  # that wait for the disk
SHORTER = "{} is shorter than when the run began: give the command again, which packs anew"


class Rows(ABC):
    """Images that are decoded, or fetched, when they are read: `[rows]` of them, as of an array."""

    shape: tuple[int, int, int, int]
    dtype: np.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Shaped[np.ndarray, "*n h w c"]:
        places = np.arange(len(self))[rows]
        return self.read(places.ravel()).reshape(*places.shape, *self.shape[1:])

    @abstractmethod
    def read(self, rows: Int[np.ndarray, " n"]) -> Shaped[np.ndarray, "n h w c"]:
        """These images, each compared with its checksum, at least when it is first used."""

    @abstractmethod
    def contents(self, rows: Int[np.ndarray, " n"]) -> list[bytes]:
        """These rows as they were packed; of one that has become shorter less."""

    def soon(self, rows: Int[np.ndarray, " n"]) -> None:  # noqa: B027 - what is here already need not be fetched
        """These rows are read before long."""


class Jpegs(Rows):
    """Packed pictures of one size, each a JPEG that ends at its place in `ends` in one file.

    `check(rows, contents)` is asked of those that are read.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        file: Path,
        ends: Int[np.ndarray, " n"],
        shape: tuple[int, int, int, int],
        check: Callable[[np.ndarray, Sequence[bytes]], None],
    ):
        self.filename, self.shape, self.check = file, shape, check
        self._starts, self._ends = np.append(0, ends)[:-1], ends

    def contents(self, rows: Int[np.ndarray, " n"]) -> list[bytes]:
        with open(self.filename, "rb", buffering=0) as file:
            return self._contents(file.fileno(), rows)

    def read(self, rows: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n h w c"]:
        out = np.empty((len(rows), *self.shape[1:]), np.uint8)

        def fill(file: int, part: np.ndarray) -> int:
            contents = self._contents(file, rows[part])
            self.check(rows[part], contents)
            for i, content in zip(part, contents, strict=True):
                try:
                    out[i] = from_jpeg(content, self.shape[3])
                except OSError:
                    raise InputError(SHORTER.format(self.filename)) from None
            return len(part)

        _side_by_side(self.filename, len(rows), fill)
        return out

    def _contents(self, file: int, rows: np.ndarray) -> list[bytes]:
        starts, ends = self._starts[rows].tolist(), self._ends[rows].tolist()
        return [os.pread(file, end - start, start) for start, end in zip(starts, ends, strict=True)]


def as_jpeg(pixels: UInt8[np.ndarray, "h w c"], quality: int) -> bytes:
    """A picture of one or three channels as a JPEG."""
    file = BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()


def from_jpeg(content: bytes, channels: int) -> UInt8[np.ndarray, "h w c"]:
    """The pixels of `as_jpeg`, nearly."""
    with Image.open(BytesIO(content), formats=("JPEG",)) as image:
        pixels = np.asarray(image)
    return pixels[..., None] if channels == 1 else pixels


def rows_of(
    pixels: Shaped[np.ndarray, "stored h w c"] | Rows, rows: Int[np.ndarray, " n"]
) -> Shaped[np.ndarray, "n h w c"]:
    """A copy of these rows. Raises InputError where the file has become shorter."""
    if isinstance(pixels, Rows):
        return pixels.read(rows)
    file = _whole_file(pixels)
    if file is None or not len(rows) or pixels[0].nbytes < LARGE:
        return np.take(pixels, rows, axis=0)
    out = np.empty((len(rows), *pixels.shape[1:]), pixels.dtype)
    try:
        found = _side_by_side(file, len(rows), lambda opened, part: _read(opened, rows, out, part))
    except FileNotFoundError:  # it has no name any more, as that of a data set in Python; the map still has it
        return np.take(pixels, rows, axis=0)
    if found != out.nbytes:
        raise InputError(SHORTER.format(file))
    return out


def _side_by_side(file: str | Path, count: int, read: Callable[[int, np.ndarray], int]) -> int:
    """The sum of what `read` gives for the opened file and each part of the places from 0 to `count`, by threads."""
    with open(file, "rb", buffering=0) as opened, ThreadPoolExecutor(max(1, min(THREADS, count))) as pool:
        parts = np.array_split(np.arange(count), THREADS)
        return sum(pool.map(lambda part: read(opened.fileno(), part), parts))


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
