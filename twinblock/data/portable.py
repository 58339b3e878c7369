"""Packed images in a folder of one's own: packed once, used on any machine, without the files that they came from.

The folder may also lie on a server.
"""

import os
import shutil
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import numpy as np

from twinblock.config.data import Data, other_data
from twinblock.core.errors import InputError
from twinblock.data import Images
from twinblock.data.served import META, Served, beside
from twinblock.data.server import Server
from twinblock.data.store import BESIDE, Elsewhere, read, seal, sealed

SPLITS: tuple[Literal["train", "test"], ...] = ("train", "test")
TYPES = ("uint8", "uint16", "int16", "float32")  # of pixels
LARGEST = 4096  # side of a packed image, as data.stored and data.tile allow
COLUMNS = ("labels", "groups", "weights", "indicators")  # of `Images`, as data.labels and a table have made them


def pack(data: Any, out: str | Path) -> Path:
    """Pack images into the folder `out`, which is a source by itself: `data=OUT`, on any machine. Returns it.

    `data`: a folder or another source of files, or the fields of `data`, as `{"source": "photos/", "jpeg": 90}`. The
    folder holds pixels, names, labels, groups and weights of each split. On the disk of the cache pixels are linked and
    take no more room, else they are copied. Raises InputError where `out` is there already, and for images that are no
    files.
    """
    from twinblock.data.training import split_of

    fields, out = other_data(Data(), data), Path(out)
    if out.exists() or out.is_symlink():
        raise InputError(f"out={out} is there already: choose another, or remove it")
    part = out.with_name(f"{out.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        for split in SPLITS:
            if (images := split_of(fields, split)) is not None:
                _write(images, part / split, fields.source_name)
        part.rename(out)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise InputError(f"cannot write {out} ({error.strerror or error})") from None
    return out


def is_portable(folder: str | Path) -> bool:
    """Whether `pack` wrote this folder."""
    return "portable" in (sealed(Path(folder, "train")) or {})


def portable(folder: str | Path, split: Literal["train", "test"]) -> Images | None:
    """The images of a split of such a folder; None where it has no such split. InputError where it is damaged."""
    inside = Path(folder, split)
    if split != "train" and not inside.exists():
        return None
    images = _images(inside, str(folder))
    if images is None:
        raise InputError(f"{inside} is damaged: copy the folder once more, or pack again")
    return images


def served(url: str, split: Literal["train", "test"]) -> Images | None:
    """The images of a split of such a folder on a server; None where it has no such split."""
    server = Server(url)
    inside = beside(server, split, (*BESIDE, *map(_own, COLUMNS)))
    if inside is None:
        if split == "train":
            raise InputError(f"{url}: there are no packed images; `twinblock pack` makes the folder that lies there")
        return None
    images = _images(inside, url, partial(Served, server, inside))
    if images is None:
        with suppress(OSError):
            (inside / META).unlink()  # it is copied anew
        raise InputError(f"{url}/{split} is damaged, or did not come whole: give the command again, or pack again")
    return images


def _images(inside: Path, name: str, elsewhere: Elsewhere | None = None) -> Images | None:
    """The images of a folder that `pack` wrote, with pixels that may lie elsewhere; None where it is damaged."""
    try:
        fields = sealed(inside) or {}
        about, shape = fields["portable"], fields["shape"]
        if not {*fields["files"]} <= {*BESIDE, *map(_own, COLUMNS)} or not {*about["columns"]} <= {*COLUMNS}:
            return None
        if len(shape) != 4 or min(shape) < 1 or max(shape[1:]) > LARGEST or fields["dtype"] not in TYPES:
            return None
        images = read(inside, name, None, ours=False, elsewhere=elsewhere)
        if images is None:
            return None
        classes = None if about["classes"] is None else tuple(map(str, about["classes"]))
        columns = {name: np.load(inside / _own(name)) for name in about["columns"]}
        for name, column in columns.items():
            of = (1 + (name == "indicators"), len(images), "f" if name == "weights" else "i")
            if (column.ndim, len(column), column.dtype.kind) != of:
                return None
        columns = {"labels": None, "classes": classes, "classes_from": about["classes_from"], **columns}
        return replace(images, **columns)
    except (KeyError, TypeError, ValueError, AttributeError, OSError):
        return None


def _own(name: str) -> str:
    """The file of a column as data.labels and a table have made it."""
    return f"own-{name}.npy"


def _write(images: Images, to: Path, source: str) -> None:
    store = Path(getattr(images.pixels, "filename", None) or "").parent
    fields = sealed(store)
    if fields is None or images.rows is not None or not (store / "pixels.u8").exists():
        raise InputError(f"data={source}: only images that are packed from files can be kept so")
    to.mkdir(parents=True)
    for name in ("pixels.u8", *BESIDE):
        if (store / name).exists():
            _link(store / name, to / name)
    columns = {name: column for name in COLUMNS if (column := getattr(images, name)) is not None}
    for name, column in columns.items():
        np.save(to / _own(name), column)
    written = [path for path in to.iterdir() if path.name != "pixels.u8"]
    about = {"columns": sorted(columns), "classes": images.classes, "classes_from": images.classes_from}
    files = {path.name: crc32(path.read_bytes()) for path in sorted(written)}
    seal(to, {**fields, "files": files, "source": source, "portable": about})


def _link(file: Path, to: Path) -> None:
    with suppress(OSError):  # another disk, or one without links
        return os.link(file, to)
    shutil.copyfile(file, to)
