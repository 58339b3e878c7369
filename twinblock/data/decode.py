"""One image of any kind as values of a given size, in the form of its set; or the reason why not."""

import numpy as np
from jaxtyping import Shaped
from numpy import ndarray as Array
from PIL import Image

from twinblock.data import pillow, readers
from twinblock.data.endings import is_slide
from twinblock.data.forms import Form, own_form
from twinblock.data.pillow import NoPicture, printable, quiet, reason, rgb
from twinblock.data.readers import File, Page

__all__ = ["File", "Page", "decode", "printable", "quiet", "reason", "rgb", "upright_size"]


def decode(file: File, height: int, width: int, form: Form | None = None) -> tuple[np.ndarray, float]:
    """(height, width, channels) values in the form of a set, and the true width / height.

    `form` None: that of the file itself, with its first page. Raises anything for an unreadable file, and ValueError
    for one of another form.
    """
    if isinstance(file, Exception):
        raise file
    if isinstance(file, str) and is_slide(file):
        return readers.planes(file), 1.0  # which says that tiles are cut from it
    if isinstance(file, str | bytes) and (form is None or form.picture):
        try:
            return pillow.picture(file, height, width, first=form is None or form.pages == "first")
        except NoPicture:
            pass
        except OSError:  # what Pillow does not know
            if readers.kind_of(file) == "picture":
                raise
    values = (form or own_form(file)).fit(readers.planes(file))
    return resized(values, height, width), values.shape[1] / values.shape[0]


def upright_size(file: File, small: int) -> tuple[int, int]:
    """Width and height from the header; an image of more than `small` pixels a side is not turned upright."""
    if isinstance(file, str | bytes):
        try:
            return pillow.upright_size(file, small)
        except OSError:
            if readers.kind_of(file) == "picture":
                raise
    _, height, width, _ = readers.facts(file).shape
    return width, height


def resized(values: Shaped[Array, "h w c"], height: int, width: int) -> Shaped[Array, "height width c"]:
    """The values at another size, by Pillow's bicubic, channel by channel; NaN is where most of a place is NaN."""
    if values.shape[:2] == (height, width):
        return values
    out = np.empty((height, width, values.shape[2]), values.dtype)
    for channel in range(values.shape[2]):
        x = values[..., channel].astype(np.float32)
        missing = np.isnan(x)
        if missing.all():
            out[..., channel] = np.nan
            continue
        small = _bicubic(np.where(missing, 0, x), height, width)
        if missing.any():
            share = _bicubic((~missing).astype(np.float32), height, width)
            small = np.where(share > 0.5, small / np.maximum(share, 0.5), np.nan)
        if values.dtype.kind in "iu":
            top = np.iinfo(values.dtype)
            small = np.rint(small).clip(top.min, top.max)
        out[..., channel] = small
    return out


def _bicubic(x: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(x).resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0))
