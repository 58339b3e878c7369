"""Packed images on a server: small columns are copied here, pixels are fetched in pieces as an epoch comes to them."""

import errno
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Collection, Iterable
from concurrent.futures import Future
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from zlib import crc32

import numpy as np
from jaxtyping import Int, Shaped

from twinblock.core.errors import InputError
from twinblock.core.later import Daemons
from twinblock.data.locks import locked
from twinblock.data.rows import THREADS, Rows, from_jpeg
from twinblock.data.server import Forbidden, Server
from twinblock.data.store import Checked, cache, digest

log = logging.getLogger(__name__)

ROWS, BYTES = 128, 2**26  # of a piece, at the most
PIECES = 64  # of a set, about, at the least
DENSE = 16  # a read of this part of a piece's rows, or of more, fetches the piece; one of less fetches the rows alone
LIMIT = "TWINBLOCK_CACHE_GB"
PIXELS, META, SOURCE = "pixels.u8", "meta.json", "source"
OLD = 3600  # seconds after which what a killed process left is removed

fetching, reading = Daemons(8), Daemons(THREADS)


def beside(server: Server, split: str, names: Collection[str]) -> Path | None:
    """The folder of the cache that has what stands beside the pixels of a split, of these names, as it is on the server
    now; None where there is no such split.
    """
    try:
        meta = server.content(f"{split}/{META}")
    except Forbidden:
        if split == "train":
            raise
        meta = None  # what a bucket says of a file that is not there, if it may not be listed
    if meta is None:
        return None
    folder = cache() / f"{digest('served', server.url)}-served" / split
    with suppress(OSError):
        if (folder / META).read_bytes() == meta:
            return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_suffix(".lock")):
            here = folder / META
            if not here.exists() or here.read_bytes() != meta:
                if not server.serves_parts(f"{split}/{PIXELS}"):
                    raise InputError(f"{server.url}: this server sends no parts of files (HTTP's Range); use another")
                shutil.rmtree(folder, ignore_errors=True)  # a piece may be on its way there
                folder.mkdir(exist_ok=True)
                (folder.parent / SOURCE).write_text(server.url)
                for name in sorted(_files_of(meta) & {*names}):
                    (folder / name).write_bytes(server.content(f"{split}/{name}") or b"")
                here.write_bytes(meta)
    except OSError as error:
        raise _cannot_write(folder, error) from error
    return folder


def _files_of(meta: bytes) -> set[str]:
    """The files that stand beside the pixels, as meta.json has them; none where it is no meta.json."""
    try:
        return {*json.loads(meta.partition(b"\n")[0])["files"]}
    except (ValueError, KeyError, TypeError):
        return set()


def url_of(folder: Path) -> str | None:
    """Where the images are from of which a folder of the cache keeps some; None: it is no such folder."""
    if not folder.name.endswith("-served"):
        return None
    with suppress(OSError):
        return (folder / SOURCE).read_text()
    return ""


class Served(Rows):
    """Rows of packed images on a server.

    Pieces of neighbouring rows are kept in `folder`. `soon(rows)` fetches theirs in the background. A row whose piece
    is neither here nor on its way is fetched by itself, or with its piece where many of that piece are read. Each is
    compared with its checksum whenever it is read: it may have come once more.
    """

    def __init__(
        self,
        server: Server,
        folder: Path,
        shape: tuple[int, int, int, int],
        dtype: np.dtype,
        ends: Int[np.ndarray, " n"] | None,
        check: Checked,
    ):
        self.server, self.folder, self.shape, self.dtype, self._sums = server, folder, shape, dtype, check.sums
        self.filename, self.jpeg = folder / META, ends is not None  # the file changes where a pixel does: it has sums
        if ends is None:
            ends = np.arange(1, len(self) + 1) * (int(np.prod(shape[1:])) * dtype.itemsize)
        self._starts, self._ends = np.append(0, ends)[:-1], ends
        if len(ends) != len(self) or ends.dtype.kind not in "iu" or (self._ends < self._starts).any():
            raise ValueError("these are not the ends of as many rows")
        self.piece_rows = max(1, min(ROWS, len(self) // PIECES, BYTES * len(self) // max(1, int(ends[-1]))))
        self._coming: dict[int, Future] = {}
        self._lock, self._told = threading.Lock(), False
        for part in folder.glob("piece-*.part"):
            with suppress(OSError):
                if part.stat().st_mtime < time.time() - OLD:
                    part.unlink()

    def pieces_of(self, rows: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """The number of the piece in which each row lies."""
        return rows // self.piece_rows

    def soon(self, rows: Int[np.ndarray, " n"]) -> None:
        """Fetch the pieces of these rows in the background, in the order of the rows."""
        numbers, first = np.unique(self.pieces_of(rows), return_index=True)
        alike = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # processes here, each of which needs as much
        needed, most = alike * sum(map(self._bytes_of, numbers.tolist())), self._limit
        if needed <= most:
            self._fetch(numbers[np.argsort(first)].tolist())
        elif not self._told:  # each would be given up before it is used
            self._told = True
            log.warning(
                f"{self.server.url}: images are fetched one by one, which is slow. At a time {needed / 1e9:.2g} GB are "
                f"needed, and {self.folder.parent} may hold {most / 1e9:.2g}: free some space there, or set {LIMIT}"
            )

    def read(self, rows: Int[np.ndarray, " n"]) -> Shaped[np.ndarray, "n h w c"]:
        numbers, counts = np.unique(self.pieces_of(rows), return_counts=True)
        many = numbers[counts * DENSE >= self.piece_rows]
        if len(rows) > 1 and (np.diff(rows) == 1).all() and rows[-1] + 1 < len(self):  # in order: the next ones follow
            many = np.append(many, self.pieces_of((rows[-1:] + self.piece_rows).clip(max=len(self) - 1)))
        self._fetch([] if self._told else many.tolist())
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)

        def fill(part: np.ndarray) -> None:
            for i, content in zip(part, self.contents(rows[part]), strict=True):
                if self.jpeg:
                    out[i] = from_jpeg(content, self.shape[3])
                else:
                    out[i] = np.frombuffer(content, self.dtype).reshape(self.shape[1:])

        for part in [reading.call(fill, part) for part in np.array_split(np.arange(len(rows)), THREADS)]:
            try:
                part.result()
            except (OSError, ValueError) as error:
                if isinstance(error, InputError):
                    raise
                raise InputError(f"{self._url} holds what is no image of this set ({error}): pack again") from None
        return out

    def contents(self, rows: Int[np.ndarray, " n"]) -> list[bytes]:
        return [self._content(row) for row in rows.tolist()]

    def _content(self, row: int) -> bytes:
        """A row from its piece; from the server where that is not here, or damaged."""
        number = row // self.piece_rows
        with self._lock:
            coming = self._coming.get(number)
        if coming is not None:
            coming.result()
        start, end = int(self._starts[row]), int(self._ends[row])
        with suppress(OSError), open(self._file(number), "rb", buffering=0) as file:
            content = os.pread(file.fileno(), end - start, start - int(self._starts[number * self.piece_rows]))
            if crc32(content) == self._sums[row]:
                return content
            self._file(number).unlink()
        content = self._asked_for(start, end)
        if crc32(content) != self._sums[row]:
            raise InputError(f"image {row} in {self._url} is not what was packed: copy the folder there once more")
        return content

    @property
    def _url(self) -> str:
        return f"{self.server.url}/{self.folder.name}/{PIXELS}"

    def _asked_for(self, start: int, end: int) -> bytes:
        content = self.server.content(f"{self.folder.name}/{PIXELS}", start, end)
        if content is None:
            raise InputError(f"{self._url} is no longer there: put it back")
        return content

    # ---- pieces

    def _file(self, number: int) -> Path:
        return self.folder / f"piece-{number:07}"

    def _fetch(self, numbers: Iterable[int]) -> None:
        """Have these pieces come; those that are here count as used."""
        with self._lock:
            for number in numbers:
                try:
                    os.utime(self._file(number))
                except FileNotFoundError:
                    if number not in self._coming:
                        self._coming[number] = fetching.call(self._get, number)
                except OSError:  # another user's, who shares the cache, or on a disk that is only read
                    continue

    def _span(self, number: int) -> tuple[int, int]:
        """Where a piece begins and ends in the file."""
        rows = range(len(self))[number * self.piece_rows : (number + 1) * self.piece_rows]
        return int(self._starts[rows[0]]), int(self._ends[rows[-1]])

    def _bytes_of(self, number: int) -> int:
        start, end = self._span(number)
        return end - start

    def _get(self, number: int) -> None:
        """Fetch a piece, once among the processes of this machine."""
        file, lock = self._file(number), self.folder / f"piece-{number:07}.lock"
        part = file.with_suffix(f".{os.getpid()}.part")
        try:
            with locked(lock):
                if not file.exists():
                    part.write_bytes(self._asked_for(*self._span(number)))
                    part.rename(file)
                    self._keep_to_limit(file)
                lock.unlink(missing_ok=True)
        except OSError as error:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise _cannot_write(file, error) from error
        finally:
            with self._lock:
                del self._coming[number]

    def _pieces(self) -> list[tuple[int, int, Path]]:
        """Of each piece in the cache when it was used, its size, and its file."""
        found = []
        for file in cache().glob("*-served/*/piece-???????"):
            with suppress(FileNotFoundError):  # another process removed it
                found.append((file.stat().st_mtime_ns, file.stat().st_size, file))
        return found

    @cached_property
    def _limit(self) -> float:
        """Bytes of pieces that are kept at the most: as the user says, or half of the room that there was for them."""
        text = os.environ.get(LIMIT)
        if text is None:
            return (sum(size for _, size, _ in self._pieces()) + shutil.disk_usage(self.folder).free) / 2
        try:
            if (limit := float(text)) >= 0:
                return 1e9 * limit
        except ValueError:
            pass
        raise InputError(f"{LIMIT}={text} should be a number of gigabytes, as 50")

    def _keep_to_limit(self, newest: Path) -> None:
        """Remove the pieces that have not been used for longest."""
        found = self._pieces()
        held = sum(size for _, size, _ in found)
        for _, size, file in sorted(found):
            if held > self._limit and file != newest:
                with suppress(OSError):  # another user's
                    file.unlink(missing_ok=True)
                held -= size


def _cannot_write(file: Path, error: OSError) -> InputError:
    do = "free some space there or set" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "set"
    return InputError(f"cannot write {file} ({error.strerror or error}): {do} TWINBLOCK_CACHE to another folder")
