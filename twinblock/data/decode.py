"""One image of any kind as values of a given size, in the form of its set; or the reason why not."""

import numpy as np

from twinblock.data import pillow, readers
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
    if isinstance(file, str | bytes) and (form is None or form.picture):
        try:
            return pillow.picture(file, height, width, first=form is None or form.pages == "first")
        except NoPicture:
            pass
        except OSError:  # what Pillow does not know
            if readers.kind_of(file) == "picture":
                raise
    values = (form or own_form(file)).fit(readers.planes(file))
    return readers.resized(values, height, width), values.shape[1] / values.shape[0]


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
