"""Packing: images decoded once into a store, in the form of their set."""

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
from twinblock.data.store import Encoded, Item, build, cache, finish, names_in, read
from twinblock.data.tiles import by_tiles

KEEP = 128  # images of one same size up to this many pixels a side are stored as they are
HELD = 2**24  # bytes of decoded images that wait together
UNREADABLE = 0.05  # a larger share of unreadable files is an error


def packed(source: Encoded, size: int | None = None, wanted: Wanted = Wanted()) -> Images:  # noqa: B008 - frozen
    """The decoded images, read as `wanted` says, from the cache where it has them.

    Images of one same size up to 128 px are kept as they are. Others are squashed to a square of side
    8/7 `size` (224 where None), or of the largest image where that is smaller; their aspect stands beside.
    """
    side = round((size or 224) * 8 / 7)
    key = "-".join([source.key, *wanted.key])
    asked = "" if wanted.channels is None else f"-{wanted.channels}c"
    for part in dict.fromkeys(("", asked)):  # what was packed without a wish may be what is wished for
        for folder in (cache() / f"{key}{part}-kept", cache() / f"{key}{part}-{side}"):
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
        folder = cache() / f"{key}{part}-{'kept' if same else side}"
        build(folder, lambda temporary: _pack(source, temporary, (height, width), form, wanted.parts))
    images = _read(folder, source, wanted)
    assert images is not None
    return images


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
    if len(sizes) == 1 and max(size := sizes.pop()) <= KEEP:
        return size[1], size[0], True
    side = min(side, max(map(max, sizes), default=side))
    return side, side, False


def _pack(source: Encoded, folder: Path, size: tuple[int, int], form: Form, kind: np.dtype | None) -> None:
    shape = (*size, form.channels)
    needed, free = source.count * math.prod(shape) * np.dtype(form.dtype).itemsize, shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{source.name}: {source.count} images need {needed / 1e9:.1f} GB in {folder.parent}, where only "
            f"{free / 1e9:.1f} GB are free: set TWINBLOCK_CACHE to a folder on a larger disk"
        )
    about = {"key": source.key, "source": source.name, "count": source.count, "shape": shape, "dtype": form.dtype}
    with (
        Journal(folder, about) as written,
        progress(f"packing images, once, into {printable(str(folder.parent))}", source.count) as advance,
    ):
        advance(written.items)
        for chunk in _decoded(islice(source.items(), written.items, None), shape, form):
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
    if kind is not None and len(parts := parts_of(names_in(folder), kind)) and parts["group"].max() >= 0:
        np.save(folder / "parts.npy", parts)
    finish(folder, (len(written.labels), *shape), written, form, source.name)
    written.close()


def _decoded(items: Iterator[Item], shape: tuple[int, int, int], form: Form) -> Iterator[tuple]:
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
            waiting.append(pool.submit(_decode_chunk, chunk, shape, form))
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


def _decode_chunk(items: list[Item], shape: tuple[int, int, int], form: Form) -> tuple:
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
    return pixels[: len(labels)], names, labels, aspects, skipped
