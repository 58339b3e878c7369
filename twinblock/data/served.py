"""Packed images on a server: small columns are copied here, pixels are fetched in pieces as an epoch comes to them."""

import json
import logging
import os
import queue
import re
import shutil
import threading
import time
from collections.abc import Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Int, Shaped

from twinblock.core.errors import InputError, one_line
from twinblock.data.locks import locked
from twinblock.data.rows import THREADS, Rows, from_jpeg
from twinblock.data.store import Checked, cache, digest, say_once

log = logging.getLogger(__name__)

PROTOCOLS = {"http": "twinblock[remote]", "https": "twinblock[remote]"}  # and what to install for each
PROTOCOLS |= {"s3": "s3fs", "gs": "gcsfs", "abfs": "adlfs", "hf": "huggingface_hub"}
WAITS = 0.5, 1, 2, 4, 8, 16, 32  # seconds between the tries of a request
FIRST = 3  # of them, of a server that has not answered yet
ROWS = 1024  # of a piece, at the most
PIECES = 64  # of a set, about, at the least: an epoch has some of them open
DENSE = 16  # a read of this part of a piece's rows, or of more, fetches the piece; one of less fetches the rows alone
FETCHERS = 4
LIMIT = "TWINBLOCK_CACHE_GB"
PIXELS, META, SOURCE = "pixels.u8", "meta.json", "source"


def is_url(source: object) -> bool:
    return isinstance(source, str) and re.match(r"[a-z][a-z0-9+.-]*://", source) is not None


class Server:
    """Files below a URL. A request that fails is made again, for a minute; then InputError is raised."""

    def __init__(self, url: str):
        protocol = url.partition("://")[0]
        if protocol not in PROTOCOLS or "::" in url:
            raise InputError(f"data source {url!r}: a URL begins with one of {', '.join(PROTOCOLS)}")
        self.url, self.answered = url.rstrip("/"), False
        try:
            from fsspec.core import url_to_fs

            self.files, self.path = url_to_fs(self.url)
        except ImportError:
            raise InputError(f"data source {url!r}: pip install {PROTOCOLS[protocol]!r}, which reads it") from None

    def content(self, name: str, start: int | None = None, end: int | None = None) -> bytes | None:
        """A file, or its bytes from `start` to `end`; None: there is no such file."""
        for wait in (*(WAITS if self.answered else WAITS[:FIRST]), None):
            try:
                content = self.files.cat_file(f"{self.path}/{name}", start=start, end=end)
                self.answered = True
                if start is None or end is None or len(content) == end - start:
                    return content
                why = f"{len(content):,} bytes came where {end - start:,} were asked for"
            except FileNotFoundError:
                return None
            except Exception as error:  # of as many kinds as there are servers
                why = one_line(error) or type(error).__name__
                if isinstance(error, PermissionError) or getattr(error, "status", None) in (401, 403):
                    break
            if wait is not None:
                if self.answered and wait > 1:
                    say_once(f"{self.url} does not answer as it should ({why}); it is asked again for a minute")
                time.sleep(wait)
        raise InputError(f"{self.url}/{name} cannot be read ({why}); give the command again when it can")

    def serves_parts(self, name: str) -> bool:
        """Whether a part of a file can be asked for. One that knows none would send all of it each time."""
        for wait in (*WAITS[:FIRST], None):
            try:
                with self.files.open(f"{self.path}/{name}", "rb", block_size=2**10, cache_type="none") as file:
                    file.seek(1)
                    return len(file.read(1)) == 1
            except ValueError:  # fsspec's, of an answer that is no part; or of a file that can only be read on and on
                return False
            except Exception:
                time.sleep(wait or 0)
        return True  # whatever it is, the next request says it


def beside(server: Server, split: str, names: Collection[str]) -> Path | None:
    """The folder of the cache that has what stands beside the pixels of a split, of these names, as it is on the server
    now; None where there is no such split.
    """
    meta = server.content(f"{split}/{META}")
    if meta is None:
        return None
    folder = cache() / f"{digest('served', server.url)}-served" / split
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_suffix(".lock")):
            here = folder / META
            if not here.exists() or here.read_bytes() != meta:
                if not server.serves_parts(f"{split}/{PIXELS}"):
                    raise InputError(f"{server.url}: this server sends no parts of files (HTTP's Range); use another")
                shutil.rmtree(folder)
                folder.mkdir()
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
    with suppress(OSError):
        return (folder / SOURCE).read_text() if folder.name.endswith("-served") else None
    return None


class Served(Rows):
    """Rows of packed images on a server.

    Pieces of neighbouring rows are kept in `folder`. `soon(rows)` fetches theirs in the background. A row whose piece
    is neither here nor on its way is fetched by itself, or with its piece where many of that piece are read.
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
        self.server, self.folder, self.shape, self.dtype, self.check = server, folder, shape, dtype, check
        self.filename, self.jpeg = folder / META, ends is not None  # the file changes where a pixel does: it has sums
        if ends is None:
            ends = np.arange(1, len(self) + 1) * (int(np.prod(shape[1:])) * dtype.itemsize)
        self._starts, self._ends = np.append(0, ends)[:-1], ends
        if len(ends) != len(self) or (self._ends < self._starts).any():
            raise ValueError("these are not the ends of as many rows")
        self.piece_rows = max(1, min(ROWS, len(self) // PIECES))
        self._coming: dict[int, Future] = {}
        self._lock, self._wanted = threading.Lock(), queue.SimpleQueue()
        self._fetchers: list[threading.Thread] = []
        self._told = False

    def pieces_of(self, rows: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """The number of the piece in which each row lies."""
        return rows // self.piece_rows

    def soon(self, rows: Int[np.ndarray, " n"]) -> None:
        """Fetch the pieces of these rows in the background, in the order of the rows."""
        numbers, first = np.unique(self.pieces_of(rows), return_index=True)
        needed, most = sum(map(self._bytes_of, numbers.tolist())), self._limit
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
        self._fetch(many.tolist())
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)

        def fill(part: np.ndarray) -> None:
            for i, content in zip(part, self.contents(rows[part]), strict=True):
                if self.jpeg:
                    out[i] = from_jpeg(content, self.shape[3])
                else:
                    out[i] = np.frombuffer(content, self.dtype).reshape(self.shape[1:])

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(fill, np.array_split(np.arange(len(rows)), THREADS)))
        return out

    def contents(self, rows: Int[np.ndarray, " n"]) -> list[bytes]:
        return [self._content(row) for row in rows.tolist()]

    def _content(self, row: int) -> bytes:
        """A row from its piece; from the server where that is not here, or damaged."""
        place, number = np.array([row]), row // self.piece_rows
        with self._lock:
            coming = self._coming.get(number)
        if coming is not None:
            coming.result()
        start, end = int(self._starts[row]), int(self._ends[row])
        with suppress(FileNotFoundError), open(self._file(number), "rb", buffering=0) as file:
            content = os.pread(file.fileno(), end - start, start - int(self._starts[number * self.piece_rows]))
            if self.check.damaged(place, [content]) is None:
                return content
            self._file(number).unlink()
        content = self._asked_for(start, end)
        self.check(place, [content])
        return content

    def _asked_for(self, start: int, end: int) -> bytes:
        content = self.server.content(f"{self.folder.name}/{PIXELS}", start, end)
        if content is None:
            raise InputError(f"{self.server.url}/{self.folder.name}/{PIXELS} is no longer there: put it back")
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
                except PermissionError:  # another user's, who shares the cache
                    continue
                except FileNotFoundError:
                    if number not in self._coming:
                        self._coming[number] = Future()
                        self._wanted.put(number)
            if self._coming and not self._fetchers:  # daemons: an interrupt does not wait for what they fetch
                self._fetchers = [threading.Thread(target=self._work, daemon=True) for _ in range(FETCHERS)]
                for thread in self._fetchers:
                    thread.start()

    def _work(self) -> None:
        while True:
            number = self._wanted.get()
            try:
                self._get(number)
                why = None
            except BaseException as error:
                why = error
            with self._lock:
                future = self._coming.pop(number)
            if why is None:
                future.set_result(None)
            else:
                future.set_exception(why)

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
            part.unlink(missing_ok=True)
            raise _cannot_write(file, error) from error

    def _pieces(self) -> list[tuple[int, int, Path]]:
        """Of each piece that is here when it was used, its size, and its file."""
        found = []
        for file in self.folder.glob("piece-???????"):
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
            return 1e9 * float(text)
        except ValueError:
            raise InputError(f"{LIMIT}={text} should be a number of gigabytes, as 50") from None

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
    why = error.strerror or error
    return InputError(f"cannot write {file} ({why}): free some space, or set TWINBLOCK_CACHE to another folder")
