"""The packed store: images decoded once into a memory map of their values on disk, cached by their content."""

import errno
import functools
import json
import logging
import math
import os
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from filelock import Timeout
from jaxtyping import Shaped, UInt32

from twinblock.core.errors import InputError
from twinblock.data import Images, Names
from twinblock.data.decode import File
from twinblock.data.forms import Form
from twinblock.data.indicators import Indicators
from twinblock.data.locks import locked
from twinblock.data.rows import Jpegs, Rows

log = logging.getLogger(__name__)

FORMAT = 4  # of the folders written here: part of every key
OPENED = 2**27  # bytes of pixels that are compared with their checksums when a store is opened
COMPARED = 64  # images at a time

Item = tuple[str, File, int]  # name, file, label or -1
Elsewhere = Callable[
    [tuple[int, int, int, int], np.dtype, np.ndarray | None, "Checked"], Rows
]  # shape, type, ends, check


@dataclass(frozen=True)
class Encoded:
    """Encoded images in a fixed order; `key` tells their content, order and labels from any other's."""

    name: str
    key: str
    count: int
    items: Callable[[], Iterator[Item]]
    sample: Callable[[], Iterable[File]]  # some of them, evenly spread
    classes: tuple[str, ...] | None = None
    classes_from: str | None = None  # as in `Images`
    several: Callable[[], Indicators] | None = None  # of several classes an image, each of whose labels is a row there


@functools.cache
def say_once(text: str) -> None:
    """A warning, once in a process: a run opens its images for training, testing and measuring."""
    log.warning(text)


def cache() -> Path:
    """Folder of packed images and downloads: `TWINBLOCK_CACHE`, else in the user's cache folder."""
    user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(os.environ.get("TWINBLOCK_CACHE") or Path(user, "twinblock")).expanduser()
    except RuntimeError:  # neither HOME nor an entry in the list of users, as in some containers
        raise InputError("there is no home folder for packed images: set TWINBLOCK_CACHE to a folder") from None


def digest(*parts: object) -> str:
    """A short name for this content, as `repr` shows it."""
    return blake2b(repr((FORMAT, *parts)).encode(), digest_size=16).hexdigest()


def build(folder: Path, write: Callable[[Path], None]) -> None:
    """Make `folder` by `write(temporary folder)`: once among all processes, whole or not at all.

    What an interrupt or a kill leaves in the temporary folder is there for the next `write` of this user.
    """
    temporary = folder.with_name(f"{folder.name}.{os.getuid()}.part")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_suffix(".lock")):
            if opened(folder) is not None:
                return  # another process made it while this one waited for the lock
            if folder.exists():
                log.warning(f"packed images in {folder} are damaged; they are packed anew")
                shutil.rmtree(folder)
            _sweep(folder.parent)
            temporary.mkdir(exist_ok=True)
            try:
                write(temporary)
                temporary.rename(folder)
            except Exception:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename and Path(error.filename) != folder.parent else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise InputError(
            f"cannot write packed images to {folder.parent} ({where}{error.strerror or error}): "
            f"{'free some space there or set' if full else 'set'} TWINBLOCK_CACHE to another folder"
        ) from error


# ---- the files of a store

# pixels.u8, of the type that meta.json names, or JPEGs, which end where pixels.npy says; labels.npy, aspect.npy;
# names.u8 and names.npy, where images have names; parts.npy, where they are tiles or frames; sums.npy, a CRC-32 of each
# image as it lies there; meta.json: a line of shape, type, skipped files and CRC-32 of the other files, and a line with
# the CRC-32 of that one.
BESIDE = ("labels.npy", "aspect.npy", "sums.npy", "names.npy", "names.u8", "parts.npy", "pixels.npy")


class Pixels:
    """The file of the pixels of a store that is being written; on the disk once it is left."""

    def __init__(self, folder: Path):
        self.file = open(folder / "pixels.u8", "wb")  # noqa: SIM115 - closed by __exit__
        self.sums = array("I")  # CRC-32 of each image

    def write(self, images: Shaped[np.ndarray, "n h w c"]) -> None:
        images = np.ascontiguousarray(images)
        self.sums.extend(map(crc32, images))
        self.file.write(images.data)

    def __enter__(self) -> "Pixels":
        return self

    def __exit__(self, *_) -> None:
        with self.file:
            self.file.flush()
            os.fsync(self.file.fileno())


@dataclass
class Columns:
    """What stands beside the pixels: of each image its label, aspect and CRC-32; and the files that are none."""

    labels: Sequence[int] | np.ndarray
    aspect: Sequence[float] | np.ndarray
    sums: array
    skipped: list[tuple[str, str]] = field(default_factory=list)


def finish(
    folder: Path,
    shape: tuple[int, int, int, int],
    columns: Any,
    form: Form = Form(),  # noqa: B008 - frozen
    source: str = "",
) -> None:
    """Write what stands beside pixels of this shape and form: `columns`, as `Columns` or a `Journal` has them."""
    np.save(folder / "labels.npy", np.asarray(columns.labels, np.int64))
    np.save(folder / "aspect.npy", np.asarray(columns.aspect, np.float32))
    np.save(folder / "sums.npy", np.asarray(columns.sums, np.uint32))
    files = {name: crc32((folder / name).read_bytes()) for name in BESIDE if (folder / name).exists()}
    source = os.path.abspath(source) if os.path.exists(source) else source
    fields = {"shape": shape, "skipped": columns.skipped, "files": files, "dtype": form.dtype, "kind": form.kind}
    seal(folder, {**fields, "source": source})


def seal(folder: Path, fields: Mapping[str, Any]) -> None:
    """Write meta.json of a store, which makes it whole."""
    text = json.dumps({**fields, "key": _key_of(folder)}).encode()
    (folder / "meta.json").write_bytes(b"%s\n%08x\n" % (text, crc32(text)))


class Checked:
    """Compares images with their checksums, each when it is first used.

    That costs 1 ms for 5 images of 256 px, or for 200 of 32 px, once, on the processor that copies them. `ours`: the
    folder is of the cache, and is packed anew.
    """

    def __init__(self, folder: Path, sums: UInt32[np.ndarray, " n"], ours: bool):
        self.folder, self.sums, self.seen, self.ours = folder, sums, np.zeros(len(sums), bool), ours

    def damaged(self, rows: np.ndarray, contents: Sequence[Any] | np.ndarray) -> int | None:
        """The first of these rows whose content, pixels or a JPEG, is not what was packed."""
        for i in np.flatnonzero(~self.seen[rows]):
            if crc32(contents[int(i)]) != self.sums[rows[i]]:
                return int(rows[i])
        self.seen[rows] = True
        return None

    def __call__(self, rows: np.ndarray, contents: Sequence[Any] | np.ndarray) -> None:
        if (row := self.damaged(rows, contents)) is not None:
            if not self.ours:
                raise InputError(
                    f"packed image {row} in {self.folder} is damaged: copy the folder once more, or pack again"
                )
            with suppress(OSError):
                (self.folder / "meta.json").unlink()  # without it the store is packed anew
            raise InputError(
                f"packed image {row} in {self.folder} is damaged: give the command again, which packs all anew and "
                "goes on from the last checkpoint"
            )


def read(
    folder: Path,
    name: str,
    classes: tuple[str, ...] | None,
    classes_from: str | None = None,
    ours: bool = True,
    elsewhere: Elsewhere | None = None,
) -> Images | None:
    """The images of a complete store, one of the cache where `ours`; None where there is none, or a damaged one.

    Labels, names and all else beside the pixels is compared with its checksum, and so are 128 MB of pixels, spread over
    the store: 0.2 s. The other pixels are when they are first used (`Checked`).
    """
    if (store := opened(folder, ours, elsewhere)) is None:
        return None
    labelled = bool((store.labels >= 0).any())
    undistorted = bool((store.aspect == np.float32(store.pixels.shape[2] / store.pixels.shape[1])).all())
    return Images(
        pixels=store.pixels,
        labels=store.labels if labelled else None,
        classes=classes if labelled else None,
        classes_from=classes_from if labelled else None,
        aspect=None if undistorted else store.aspect,
        name=name,
        names=store.names,
        skipped=tuple((file, why) for file, why in store.skipped),
        check=None if isinstance(store.pixels, Rows) else store.check,
        kind=store.kind,
        parts=store.parts,
    )


class Store(NamedTuple):
    """A complete store; its columns are as in `Images`."""

    pixels: np.ndarray | Rows
    labels: np.ndarray
    aspect: np.ndarray
    names: Names | None
    parts: np.ndarray | None
    skipped: list
    check: Checked
    kind: str

    def damaged(self, rows: np.ndarray) -> bool:
        """Whether one of these rows is not what was packed."""
        for some in np.array_split(rows, max(1, len(rows) // COMPARED)):
            contents = self.pixels.contents(some) if isinstance(self.pixels, Rows) else self.pixels[some]
            if self.check.damaged(some, contents) is not None:
                return True
        return False


def opened(folder: Path, ours: bool = True, elsewhere: Elsewhere | None = None) -> Store | None:
    """The store in a folder, one of the cache where `ours`; None where there is no whole one.

    `elsewhere` gives the pixels where they do not lie beside the rest; those are compared only when they are used.
    """
    if (meta := sealed(folder)) is None or meta.get("key") != _key_of(folder):  # or a folder with another's name
        return None
    try:
        for name, sum_ in meta["files"].items():
            if crc32((folder / name).read_bytes()) != sum_:
                return None
        labels, aspect, sums = (np.load(folder / name) for name in BESIDE[:3])
        checked, shape = Checked(folder, sums, ours), meta["shape"]
        kinds = [column.dtype.kind for column in (labels, aspect, sums)]
        if kinds != ["i", "f", "u"] or any(column.shape != (shape[0],) for column in (labels, aspect, sums)):
            return None
        ends = np.load(folder / "pixels.npy") if "pixels.npy" in meta["files"] else None
        pixels: np.ndarray | Rows
        if elsewhere is not None:
            pixels = elsewhere(tuple(shape), np.dtype(meta["dtype"]), ends, checked)
        elif ends is not None:
            pixels = Jpegs(folder / "pixels.u8", ends, tuple(shape), checked)
        else:
            pixels = np.memmap(folder / "pixels.u8", meta["dtype"], "r").reshape(shape)
        names = names_in(folder) if "names.u8" in meta["files"] else None
        parts = np.load(folder / "parts.npy") if "parts.npy" in meta["files"] else None
        if any(column is not None and len(column) != shape[0] for column in (names, parts)):
            return None
    except PermissionError as error:
        raise _closed(folder, error) from error
    except (OSError, ValueError, TypeError, KeyError):
        return None
    store, count = Store(pixels, labels, aspect, names, parts, meta["skipped"], checked, meta["kind"]), len(pixels)
    if elsewhere is not None:
        return store
    bytes_of_one = math.prod(shape[1:]) * pixels.dtype.itemsize
    some = np.unique(np.linspace(0, count - 1, min(count, 1 + OPENED // bytes_of_one)).astype(int))
    return None if store.damaged(some) else store


def sealed(folder: Path) -> dict | None:
    """What meta.json says of a store; None where there is none, or one whose checksum is not its own."""
    try:
        line, own_sum, _ = (folder / "meta.json").read_bytes().split(b"\n")
        fields = json.loads(line) if own_sum == b"%08x" % crc32(line) else None
        return fields if isinstance(fields, dict) else None
    except PermissionError as error:
        raise _closed(folder, error) from error
    except (OSError, ValueError):
        return None


def _closed(folder: Path, error: PermissionError) -> InputError:
    return InputError(
        f"packed images in {folder} may not be read ({error.strerror}): ask for access to them, or set "
        "TWINBLOCK_CACHE to another folder"
    )


def _key_of(folder: Path) -> str:
    """Which images, at which size, a store or a part of one holds."""
    return folder.name.split(".")[0]


def names_in(folder: Path) -> Names:
    """The names in a store, or in one that is being written."""
    text, ends = np.memmap(folder / "names.u8", np.uint8, "r"), np.load(folder / "names.npy")
    return Names(text, np.append(0, ends)[:-1], ends)


def _sweep(parent: Path) -> None:
    """Remove what killed builds left that nobody goes on with; those of other users stay.

    That is what an earlier version or a build of a Python object left, and what another user has finished since.
    """
    waste = [*parent.glob("*.tmp"), *parent.glob("object-*.part")]
    waste += [one for one in parent.glob("*.part") if (parent / one.name.split(".")[0]).exists()]
    for temporary in waste:
        with suppress(Timeout, OSError), locked(parent / f"{temporary.name.split('.')[0]}.lock", blocking=False):
            shutil.rmtree(temporary, ignore_errors=True)
