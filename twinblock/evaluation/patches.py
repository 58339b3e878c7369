"""Features of each place of an image: what an encoder averages, kept in a file that is larger than the memory."""

import io
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.lib.format import write_array_header_1_0
from torch import Tensor, nn

from twinblock.core.errors import InputError
from twinblock.core.files import need_free, need_writable, replacing
from twinblock.data import Images, take
from twinblock.evaluation.features import at_once, features
from twinblock.evaluation.stored import Part, key_of
from twinblock.nn.encoders import Encoder
from twinblock.nn.modes import evaluating
from twinblock.nn.shallow import Shallow

PART = 2**26  # bytes that are computed between two looks at the disk, and held


class Patches(nn.Module):
    """The last map or tokens of an encoder, not averaged: `grid` places, and `width` features of each.

    A map has its rows and columns of places, tokens of a square image too; other tokens are one row. Those that are
    no place, such as a class token, are left out. Raises InputError for an encoder that gives one vector an image.
    """

    def __init__(self, encoder: Encoder | Shallow, shape: tuple[int, int, int]):
        super().__init__()
        self.encoder = encoder
        device, dtype = next((p.device, p.dtype) for p in encoder.parameters())
        with torch.no_grad(), evaluating(encoder):
            found = self._places(torch.zeros(1, *shape, device=device, dtype=dtype))
        self.grid, self.width = tuple(found.shape[1:-1]), found.shape[-1]

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """One row an image, the features of a place after those of the one before."""
        return self._places(images).flatten(1)

    def _places(self, images: Float[Tensor, "n c h w"]) -> Tensor:
        x = self.encoder.last_map(images)
        if x.ndim == 2:
            raise InputError("features=patches: this encoder gives one vector an image, and no features of its places")
        if x.ndim == 4:
            return x.permute(0, 2, 3, 1)
        x = x[:, self.encoder.prefix :]
        side = math.isqrt(x.shape[1])
        return x.unflatten(1, (side, side)) if side**2 == x.shape[1] else x


def need_array(file: Path, own: bool = False) -> Path:
    """The file, if an array may be written there. Raises InputError where others' files are in the way; `own`: none
    are, by the file's name.
    """
    if file.suffix != ".npy":
        raise InputError(f"{file}: patches are written to a file whose name ends with .npy")
    for one in (file, file.with_suffix(".csv")):
        need_free(one, own or _said(file) is not None)
    need_writable(file.parent)
    return file


def write_patches(
    file: Path,
    encoder: Patches,
    images: Images,
    *,
    elsewhere: Callable[[Path, list[Part], Callable[[int], None]], None] | None = None,
    advance: Callable[[int], None] = lambda count: None,
    **seen: Any,
) -> Float[Tensor, "n *grid d"]:
    """Write the patches of images, float32, to an .npy file, and map it. `seen`: as `features` takes it.

    64 MiB are held at a time, or one image. Beside the file stands FILE.npy.json, which says of what the file is and
    which parts are done: the same command goes on there, and a whole file of the same is taken as it is. `elsewhere`
    has other processes `write_parts` and calls what it is given with the first image of each that is written.
    """
    partial, key = file.with_name(f"{file.name}.partial"), key_of(encoder, images, seen)
    head, each = _layout(encoder, images)
    parts = _parts(images, each, seen["size"])
    said = _said(file) or {}
    done = {part[0] for part in parts}.intersection(said["done"]) if said.get("of") == key else set()
    if len(done) == len(parts) and file.exists() and not partial.exists():
        advance(len(images))
        return _mapped(file)
    if not partial.exists() or partial.stat().st_size < len(head) + each * len(images):
        done = set()  # what is said to be done is lost
    left = [part for part in parts if part[0] not in done]
    _need_room(file, each * sum(end - start for start, end in left))

    def note(start: int) -> None:
        done.add(start)
        _note(file, key, done)

    try:
        _note(file, key, done)  # first: a partial file is never taken for that of another command
        with open(partial, "r+b" if done else "wb") as written:
            written.write(head)
            written.truncate(len(head) + each * len(images))  # takes no room on the disk yet
        advance(len(images) - sum(end - start for start, end in left))
        if elsewhere is None:
            write_parts(partial, encoder, images, left, note=note, advance=advance, **seen)
        else:
            elsewhere(partial, left, note)
        partial.replace(file)
    except OSError as error:
        raise InputError(
            f"cannot write {file}: {error.strerror or error}; mend that, and give the command again"
        ) from None
    return _mapped(file)


def write_parts(
    partial: Path,
    encoder: Patches,
    images: Images,
    parts: Iterable[Part],
    *,
    note: Callable[[int], None],
    advance: Callable[[int], None],
    **seen: Any,
) -> None:
    """Write some parts to their places in a file; `note` is told the first image of each that is on the disk."""
    head, each = _layout(encoder, images)
    with open(partial, "r+b") as written:
        for start, end in parts:
            batch, some = min(at_once(seen["size"]), end - start), take(images, np.arange(start, end))
            rows = features(encoder, some, batch=batch, advance=advance, **seen)
            if not rows.isfinite().all():
                raise InputError("the patches hold NaN or infinity: has the encoder diverged?")
            written.seek(len(head) + each * start)
            written.write(rows.numpy().data)
            written.flush()
            os.fsync(written.fileno())
            note(start)


def _parts(images: Images, each: int, size: int) -> list[Part]:
    """Of images of so many bytes of patches; each of whole looks of the network."""
    most = max(1, PART // each)
    batch = min(at_once(size), most)
    step = most // batch * batch
    return [(start, min(start + step, len(images))) for start in range(0, len(images), step)]


def _layout(encoder: Patches, images: Images) -> tuple[bytes, int]:
    """What the file begins with, and the bytes of an image in it."""
    head = io.BytesIO()
    shape = len(images), *encoder.grid, encoder.width
    write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return head.getvalue(), 4 * encoder.width * math.prod(encoder.grid)


def _need_room(file: Path, needed: int) -> None:
    free = shutil.disk_usage(file.parent).free
    if needed > free:
        raise InputError(
            f"{file}: the patches need {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; name a file on a "
            "larger disk, or take fewer images"
        )


def _mapped(file: Path) -> Tensor:
    """Changes of what is mapped stay in memory."""
    return torch.from_numpy(np.load(file, "c"))


def _journal(file: Path) -> Path:
    return file.with_name(f"{file.name}.json")


def _note(file: Path, key: str, done: set[int]) -> None:
    with replacing(_journal(file)) as journal:
        journal.write(json.dumps({"of": key, "done": sorted(done)}).encode())


def _said(file: Path) -> dict[str, Any] | None:
    """What its journal says of a file; None where there is none."""
    try:
        said = json.loads(_journal(file).read_text(encoding="utf-8"))
        return {"of": str(said["of"]), "done": [*map(int, said["done"])]}
    except (OSError, ValueError, TypeError, KeyError):
        return None
