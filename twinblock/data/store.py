"""The packed store: images decoded once into a uint8 memory map on disk, cached by their content."""

import json
import os
import shutil
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from twinblock.core.console import progress
from twinblock.core.errors import InputError
from twinblock.data import Images, Names
from twinblock.data.decode import File, decode, printable, quiet, reason, upright_size

FORMAT = 2  # of the folders written here: part of every key
KEEP = 128  # images of one same size up to this many pixels a side are stored as they are
UNREADABLE = 0.05  # a larger share of unreadable files is an error

Item = tuple[str, File, int]  # name, file, label or -1


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


def cache() -> Path:
    """Folder of packed images and downloads: `TWINBLOCK_CACHE`, else in the user's cache folder."""
    user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("TWINBLOCK_CACHE") or Path(user, "twinblock")).expanduser()


def digest(*parts: object) -> str:
    """A short name for this content, as `repr` shows it."""
    return blake2b(repr((FORMAT, *parts)).encode(), digest_size=16).hexdigest()


def packed(source: Encoded, size: int | None = None) -> Images:
    """The decoded images, from the cache where it has them.

    Images of one same size up to 128 px are kept as they are. Others are squashed to a square of side
    8/7 `size` (224 where None), or of the largest image where that is smaller; their aspect stands beside.
    """
    side = round((size or 224) * 8 / 7)
    kept, squashed = cache() / f"{source.key}-kept", cache() / f"{source.key}-{side}"
    for folder in (kept, squashed):
        if (images := read(folder, source.name, source.classes, source.classes_from)) is not None:
            return images
    with quiet():
        height, width, same = _stored_shape(source.sample(), side)
        folder = kept if same else squashed
        build(folder, lambda temporary: _pack(source, temporary, height, width))
    images = read(folder, source.name, source.classes, source.classes_from)
    assert images is not None
    return images


def build(folder: Path, write: Callable[[Path], None]) -> None:
    """Make `folder` by `write(temporary folder)`: once among all processes, whole or not at all."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if _arrays(folder) is not None:
                return  # another process made it while this one waited for the lock
            temporary = folder.with_suffix(".tmp")
            for stale in (folder, temporary):
                shutil.rmtree(stale, ignore_errors=True)
            _sweep(folder.parent)
            temporary.mkdir()
            try:
                write(temporary)
                temporary.rename(folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise InputError(
            f"cannot write packed images to {folder.parent} ({error.strerror or error}): "
            "free some space there or set TWINBLOCK_CACHE to another folder"
        ) from error


def finish(
    folder: Path,
    shape: tuple[int, int, int, int],
    labels: np.ndarray,
    aspect: np.ndarray,
    skipped: list[tuple[str, str]],
) -> None:
    """Write what stands beside `pixels.u8`, an array of this shape, and names."""
    np.save(folder / "labels.npy", labels.astype(np.int64))
    np.save(folder / "aspect.npy", aspect.astype(np.float32))
    (folder / "meta.json").write_text(json.dumps({"shape": shape, "skipped": skipped}))


def read(folder: Path, name: str, classes: tuple[str, ...] | None, classes_from: str | None = None) -> Images | None:
    """The images of a complete store; None where there is none, or a damaged one."""
    if (arrays := _arrays(folder)) is None:
        return None
    pixels, labels, aspect, names, skipped = arrays
    labelled = bool((labels >= 0).any())
    undistorted = bool((aspect == np.float32(pixels.shape[2] / pixels.shape[1])).all())
    return Images(
        pixels=pixels,
        labels=labels if labelled else None,
        classes=classes if labelled else None,
        classes_from=classes_from if labelled else None,
        aspect=None if undistorted else aspect,
        name=name,
        names=names,
        skipped=tuple((file, why) for file, why in skipped),
    )


def _arrays(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, Names | None, list] | None:
    try:
        meta = json.loads((folder / "meta.json").read_text())
        shape = tuple(meta["shape"])
        pixels = np.memmap(folder / "pixels.u8", np.uint8, "r")
        labels, aspect = np.load(folder / "labels.npy"), np.load(folder / "aspect.npy")
        names = _names(folder, shape[0])
        return pixels.reshape(shape), labels, aspect, names, meta["skipped"]
    except (OSError, EOFError, ValueError, KeyError):
        return None


def _names(folder: Path, count: int) -> Names | None:
    """The names of a store's images; None where it was written without. Raises ValueError for damaged ones."""
    if not (folder / "names.u8").exists():
        return None
    text, ends = np.memmap(folder / "names.u8", np.uint8, "r"), np.load(folder / "names.npy")
    if len(ends) != count or ends[-1] != len(text):
        raise ValueError("names are cut short")
    return Names(text, np.append(0, ends)[:-1], ends)


def _sweep(parent: Path) -> None:
    """Remove what killed builds left: temporary folders whose lock nobody holds."""
    for temporary in parent.glob("*.tmp"):
        try:
            with FileLock(temporary.with_suffix(".lock"), blocking=False):
                shutil.rmtree(temporary, ignore_errors=True)
        except Timeout:
            continue


def _stored_shape(sample: Iterable[File], side: int) -> tuple[int, int, bool]:
    """Height and width to store at, and whether that keeps the images as they are."""
    sizes = set()
    for file in sample:
        try:
            sizes.add(size := upright_size(file, KEEP))
        except Exception:  # counted and listed when it is packed
            continue
        if max(size) > KEEP and max(size) >= side:
            return side, side, False
    if len(sizes) == 1 and max(size := sizes.pop()) <= KEEP:
        return size[1], size[0], True
    side = min(side, max(map(max, sizes), default=side))
    return side, side, False


def _pack(source: Encoded, folder: Path, height: int, width: int) -> None:
    needed, free = source.count * height * width * 3, shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{source.name}: {source.count} images need {needed / 1e9:.1f} GB in {folder.parent}, where only "
            f"{free / 1e9:.1f} GB are free: set TWINBLOCK_CACHE to a folder on a larger disk"
        )
    labels, aspect, ends, skipped = array("q"), array("f"), array("q"), []
    with (
        open(folder / "pixels.u8", "wb") as out,
        open(folder / "names.u8", "wb") as names,
        progress(f"packing images, once, into {printable(str(folder.parent))}", source.count) as advance,
    ):
        for pixels, some_names, some_labels, some_aspects, some_skipped in _decoded(source.items(), height, width):
            out.write(pixels)
            for name in some_names:
                names.write(name.encode("utf-8", "surrogateescape"))
                ends.append(names.tell())
            labels.extend(some_labels)
            aspect.extend(some_aspects)
            skipped.extend(some_skipped)
            advance(len(some_labels) + len(some_skipped))
        out.flush()
        os.fsync(out.fileno())
    if len(skipped) > UNREADABLE * (len(labels) + len(skipped)):
        report = folder.with_suffix(".skipped.txt")
        report.write_text("".join(f"{name}\t{why}\n" for name, why in skipped))
        first = ", ".join(f"{name} ({why})" for name, why in skipped[:3]) + ", ..." * (len(skipped) > 3)
        raise InputError(
            f"{source.name}: {len(skipped)} of {source.count} images cannot be read, more than "
            f"{UNREADABLE:.0%}: {first}: mend or remove them (all are listed in {report})"
        )
    np.save(folder / "names.npy", np.asarray(ends))
    finish(folder, (len(labels), height, width, 3), np.asarray(labels), np.asarray(aspect), skipped)


def _decoded(items: Iterator[Item], height: int, width: int) -> Iterator[tuple]:
    """Chunks of decoded images in order, a few in memory at a time.

    By threads: Pillow decodes without the interpreter's lock, and processes would run an unguarded script
    again. By few of them for small images, where most of the work holds the lock.
    """
    cores = os.cpu_count() or 1
    workers = min(cores, 4) if max(height, width) <= KEEP else cores
    step = max(16, min(1024, 2**22 // (height * width * 3)))
    waiting = deque()
    with ThreadPoolExecutor(workers) as pool:
        for chunk in iter(lambda: list(islice(items, step)), []):
            waiting.append(pool.submit(_decode_chunk, chunk, height, width))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _decode_chunk(items: list[Item], height: int, width: int) -> tuple:
    pixels = np.empty((len(items), height, width, 3), np.uint8)
    names, labels, aspects, skipped = [], [], [], []
    for name, file, label in items:
        try:
            pixels[len(labels)], aspect = decode(file, height, width)
        except Exception as error:  # damaged files make decoders raise anything
            skipped.append((printable(name), reason(error)))
        else:
            names.append(name)
            labels.append(label)
            aspects.append(aspect)
    return pixels[: len(labels)], names, labels, aspects, skipped
