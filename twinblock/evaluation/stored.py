"""Features that a run keeps as they are computed: interrupted work goes on, and nothing is computed twice."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from twinblock.core.errors import InputError
from twinblock.core.version import __version__
from twinblock.data import Images, take
from twinblock.data.rows import Rows
from twinblock.evaluation.features import at_once, features
from twinblock.evaluation.record import hash_weights
from twinblock.runs import checkpoint
from twinblock.runs.run import Run

FOLDER = "features"
BATCHES = 4  # looks of the network in a part
ROWS = "rows"
AT_ONCE = 1024  # images whose pixels are hashed together
Part = tuple[int, int]  # its first image, and the one after its last


def stored_features(
    run: Run, encoder: nn.Module, images: Images, *, advance: Callable[[int], None] = lambda count: None, **seen: Any
) -> Float[Tensor, "n d"]:
    """`features(encoder, images, **seen)`; of the parts that lie in `features/` of the run nothing is computed again.

    A part is found by twinblock's version, the encoder's weights, the images' pixels and how they are seen, and is
    checked by its SHA-256. A run that may not be written keeps nothing. `advance` is told how many images are done.
    """
    return torch.cat([*_rows(run, encoder, images, parts_of(images, seen["size"]), advance, seen)])


def keep_parts(
    run: Run,
    encoder: nn.Module,
    images: Images,
    parts: Iterable[Part],
    *,
    advance: Callable[[int], None] = lambda count: None,
    **seen: Any,
) -> None:
    """Compute some of `parts_of`, where the run does not have them yet."""
    for _ in _rows(run, encoder, images, parts, advance, seen):
        pass


def parts_of(images: Images, size: int) -> list[Part]:
    step = BATCHES * at_once(size)
    return [(start, min(start + step, len(images))) for start in range(0, len(images), step)]


def _rows(
    run: Run,
    encoder: nn.Module,
    images: Images,
    parts: Iterable[Part],
    advance: Callable[[int], None],
    seen: dict[str, Any],
) -> Iterator[Tensor]:
    folder = run.path / FOLDER / key_of(encoder, images, seen)
    for start, end in parts:
        index = np.arange(start, end)
        file = folder / f"{start:09d}.safetensors"
        rows = _found(file, len(index))
        if rows is None:
            rows = features(encoder, take(images, index), advance=advance, **seen)
            if rows.isfinite().all():
                _keep(file, rows)
        else:
            advance(len(index))
        yield rows


def _found(file: Path, count: int) -> Tensor | None:
    try:
        rows = checkpoint.read(file)[0][ROWS] if file.is_file() else None
    except (InputError, KeyError, OSError):
        return None  # damaged: computed again
    return rows if rows is not None and rows.ndim == 2 and len(rows) == count else None


def _keep(file: Path, rows: Tensor) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write(file, {ROWS: rows}, {})
    except (InputError, OSError):  # a colleague's run, a full disk: they are here, and are computed again next time
        return


def key_of(encoder: nn.Module, images: Images, seen: dict[str, Any]) -> str:
    """What features follow from: the version, how images are seen, the weights, the images."""
    how = sorted((name, str(value)) for name, value in seen.items())
    digest = blake2b(repr((__version__, how)).encode(), digest_size=12)
    hash_weights(digest, encoder)
    digest.update(repr((images.fingerprint(), _place(images.pixels))).encode())
    return digest.hexdigest()


def _place(pixels: np.ndarray | Rows) -> Any:
    """What changes whenever a pixel does: the packed file and when it was written, or a digest of what is in memory."""
    if (file := getattr(pixels, "filename", None)) is not None:
        with suppress(FileNotFoundError):  # the file of a data set in Python has no name any more
            return str(file), os.stat(file).st_mtime_ns
    found = blake2b(digest_size=12)
    for start in range(0, len(pixels), AT_ONCE):
        found.update(np.ascontiguousarray(pixels[start : start + AT_ONCE]).data)
    return found.hexdigest()
