"""Packing: images decoded once into a store, in the form of their set."""

import logging
import math
import os
import shutil
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from twinblock.core.console import progress
from twinblock.core.errors import InputError
from twinblock.data import Images
from twinblock.data.decode import File, decode, printable, quiet, reason, upright_size
from twinblock.data.forms import Form, Wanted, by_frames, by_pages, survey
from twinblock.data.journal import Journal
from twinblock.data.parts import TILES, parts_of
from twinblock.data.rows import as_jpeg
from twinblock.data.store import Encoded, Item, build, cache, finish, names_in, read, say_once
from twinblock.data.tiles import by_tiles

log = logging.getLogger(__name__)

KEEP = 128  # images of one same size up to this many pixels a side are stored as they are
HELD = 2**24  # bytes of decoded images that wait together
UNREADABLE = 0.05  # a larger share of unreadable files is an error
MUCH = 1 / 4  # of the memory: what is packed is hardly held in it beside all else


def packed(source: Encoded, size: int | None = None, wanted: Wanted = Wanted()) -> Images:  # noqa: B008 - frozen
    """The decoded images, read as `wanted` says, from the cache where it has them.

    Images of one same size up to 128 px are kept as they are. Others are squashed to a square of side
    8/7 `size` (224 where None), or as wished, or of the largest image where that is smaller; their aspect stands
    beside.
    """
    side = wanted.stored or round((size or 224) * 8 / 7)
    if size is not None and side < size:
        say_once(f"data.stored={side} is less than data.size={size}: views show no more than is packed")
    jpeg = "" if wanted.jpeg is None else f"-j{wanted.jpeg}"
    key = "-".join([source.key, *wanted.key])
    asked = "" if wanted.channels is None else f"-{wanted.channels}c"
    for part in dict.fromkeys(("", asked)):  # what was packed without a wish may be what is wished for
        for folder in (cache() / f"{key}{part}-kept{jpeg}", cache() / f"{key}{part}-{side}{jpeg}"):
            images = _read(folder, source, wanted)
            if images is not None and wanted.channels in (None, images.channels):
                return images
    with quiet(wanted.max_pixels):
        form = survey(source.name, source.sample(), wanted)
        source = source if wanted.fps is None else by_frames(source, wanted.fps)
        source = by_pages(source) if wanted.pages == "images" else source
        if wanted.tile is None:
            height, width, same = _stored_shape(source.sample(), side)
        else:
            source, (height, width), same = by_tiles(source, wanted.tile, form), [wanted.tile.size] * 2, True
        part = "" if form.picture else asked  # RGB is what is packed without a wish, too
        folder = cache() / f"{key}{part}-{'kept' if same else side}{jpeg}"
        build(folder, lambda temporary: _pack(source, temporary, (height, width), form, wanted))
    images = _read(folder, source, wanted)
    assert images is not None
    return images


def not_of_files(wanted: Wanted, name: str) -> None:
    """Of images that are no image files: raise InputError for what cannot be wished of them, say what is not done."""
    if wanted.tile is not None:
        raise InputError(f"data.tile is for image files, not for {name}; leave it out")
    for field in ("stored", "jpeg", "fps", "pages", "max_pixels"):
        if getattr(wanted, field) != getattr(Wanted(), field):
            say_once(f"data.{field} is for image files: {name} is kept as it is")


def _read(folder: Path, source: Encoded, wanted: Wanted) -> Images | None:
    images = read(folder, source.name, source.classes, source.classes_from)
    if images is None or images.names is None:
        return images
    parts = images.parts
    if parts is None and wanted.tile is not None:  # what was packed before has them in the names alone
        parts = parts_of(images.names, TILES)
    return images if parts is None else replace(images, parts=parts, groups=np.ascontiguousarray(parts["group"]))


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
    largest = max(map(max, sizes), default=side)
    if len(sizes) == 1 and largest <= KEEP:
        ((width, height),) = sizes
        return height, width, True
    side = min(side, largest)
    return side, side, False


def _pack(source: Encoded, folder: Path, size: tuple[int, int], form: Form, wanted: Wanted) -> None:
    shape, could = (*size, form.channels), form.dtype == "uint8" and form.channels in (1, 3)
    if wanted.jpeg is not None and not could:
        kind = form.kind or f"of {form.channels} channels"
        raise InputError(f"{source.name}: data.jpeg is for 8-bit pictures, and these are {kind}; leave it out")
    _fits(source, folder, math.prod(shape) * np.dtype(form.dtype).itemsize, could and wanted.jpeg is None)
    about = {"key": source.key, "source": source.name, "count": source.count, "shape": shape, "dtype": form.dtype}
    with (
        Journal(folder, about) as written,
        progress(f"packing images, once, into {printable(str(folder.parent))}", source.count) as advance,
    ):
        advance(written.items)
        for chunk in _decoded(islice(source.items(), written.items, None), shape, form, wanted.jpeg):
            before = written.items
            written.append(*chunk)
            advance(written.items - before)
    skipped = written.skipped
    if len(skipped) > UNREADABLE * written.items:
        report = folder.with_suffix(".skipped.txt")
        report.write_text("".join(f"{name}\t{why}\n" for name, why in skipped))
        first = ", ".join(f"{name} ({why})" for name, why in skipped[:3]) + ", ..." * (len(skipped) > 3)
        raise InputError(
            f"{source.name}: {len(skipped)} of {source.count} images cannot be read, more than "
            f"{UNREADABLE:.0%}: {first}: mend or remove them (all are listed in {report})"
        )
    np.save(folder / "names.npy", np.asarray(written.ends))
    if wanted.jpeg is not None:
        np.save(folder / "pixels.npy", np.asarray(written.pixel_ends))
    kind = wanted.parts
    if kind is not None and len(parts := parts_of(names_in(folder), kind)) and parts["group"].max() >= 0:
        np.save(folder / "parts.npy", parts)
    finish(folder, (len(written.labels), *shape), written, form, source.name)
    written.close()


def _fits(source: Encoded, folder: Path, bytes_of_one: int, could_be_jpeg: bool) -> None:
    """Raise InputError where the pixels of all do not fit on the disk; say so where they are much for the memory."""
    needed, free = source.count * bytes_of_one, shutil.disk_usage(folder).free
    smaller = "; data.jpeg=90 takes about a tenth" if could_be_jpeg else ""
    if needed > free:
        raise InputError(
            f"{source.name}: {source.count} images need {needed / 1e9:.1f} GB in {folder.parent}, where only "
            f"{free / 1e9:.1f} GB are free: set TWINBLOCK_CACHE to a folder on a larger disk{smaller}"
        )
    if smaller and needed > MUCH * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        log.warning(f"{source.name}: {source.count:,} images take {needed / 1e9:.0f} GB in {folder.parent}{smaller}")


def _decoded(
    items: Iterator[Item], shape: tuple[int, int, int], form: Form, jpeg: int | None = None
) -> Iterator[tuple]:
    """Chunks of decoded images in order, a few in memory at a time.

    By threads: Pillow decodes without the interpreter's lock, and processes would run an unguarded script
    again. By few of them for small images, where most of the work holds the lock.
    """
    cores = os.cpu_count() or 1
    workers = min(cores, 4) if max(shape[:2]) <= KEEP else cores
    step = max(16, min(1024, 2**22 // math.prod(shape)))
    waiting = deque()
    with ThreadPoolExecutor(workers) as pool:
        for chunk in _together(items, step):
            waiting.append(pool.submit(_decode_chunk, chunk, shape, form, jpeg))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _together(items: Iterator[Item], most: int) -> Iterator[list[Item]]:
    """Items in order, so many at a time, or fewer that hold 16 MB: frames and tiles are in memory already."""
    chunk, held = [], 0
    for item in items:
        chunk.append(item)
        held += item[1].nbytes if isinstance(item[1], np.ndarray) else 0
        if len(chunk) == most or held > HELD:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def _decode_chunk(items: list[Item], shape: tuple[int, int, int], form: Form, jpeg: int | None) -> tuple:
    pixels = np.empty((len(items), *shape), form.dtype)
    names, labels, aspects, skipped = [], [], [], []
    for name, file, label in items:
        try:
            pixels[len(labels)], aspect = decode(file, *shape[:2], form)
        except Exception as error:  # damaged files make decoders raise anything
            skipped.append((printable(name), reason(error)))
        else:
            names.append(name)
            labels.append(label)
            aspects.append(aspect)
    pixels = pixels[: len(labels)]
    return pixels if jpeg is None else [as_jpeg(one, jpeg) for one in pixels], names, labels, aspects, skipped
