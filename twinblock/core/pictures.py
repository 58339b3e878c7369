"""Pictures beside results: one that cannot be drawn is a warning, and no result is lost for it."""

import io
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from twinblock.core.errors import InputError, one_line
from twinblock.core.files import need_free

log = logging.getLogger(__name__)


@contextmanager
def optional_picture(path: Path, warn: Callable[[str], None] = log.warning) -> Iterator[None]:
    """What draws and writes the picture `path`; whatever fails in it is said by `warn`."""
    try:
        yield
    except Exception as error:  # fonts, backends and formats have errors of their own
        warn(f"{path.name} was not drawn ({one_line(error)}); nothing else is missing")


def as_png(drawing: Any) -> bytes:
    """A figure of matplotlib as the bytes of a PNG."""
    file = io.BytesIO()
    drawing.savefig(file, format="png", dpi=130)
    return file.getvalue()


def picture_file(file: Path, own: str) -> Path:
    """A picture's file that may be written: one named `own` is replaced, another never. Raises InputError otherwise."""
    if file.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise InputError(f"out={file}: a picture ends in .png, .pdf or .svg")
    need_free(file, file.name == own)
    return file


def colours(images: Float[Tensor, "n c h w"]) -> Float[np.ndarray, "n h w 3"]:
    """Images in [0, 1] to look at: the first three channels as red, green and blue, or the first one in gray."""
    shown = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    return shown.permute(0, 2, 3, 1).clamp(0, 1).float().cpu().numpy()


def captions(names: Sequence[str] | None, shown: Iterable[int], most: int) -> dict[int, str]:
    """What to call the images that are shown: the file, with its folder where another file of `names` is called so too.

    What is longer than `most` characters loses its middle. Without names there is nothing to say.
    """
    if names is None:
        return {}
    files = {i: names[i].rpartition("/")[2] for i in shown}
    wanted = set(files.values())
    times = Counter(file for file in (name.rpartition("/")[2] for name in names) if file in wanted)
    return {i: shortened(file if times[file] == 1 else names[i], most) for i, file in files.items()}


def shortened(text: str, most: int) -> str:
    """At most so many characters: what is longer loses its middle."""
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"


def literal(text: str) -> str:
    """A text that matplotlib shows letter by letter: `$` begins no formula, bytes that are no text are escapes."""
    return text.encode("utf-8", "backslashreplace").decode().replace("$", r"\$")
