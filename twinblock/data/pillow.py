"""Pictures of 8 bits, as Pillow reads them: RGB pixels of a given size, upright; or the reason why not."""

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from twinblock.data.endings import reads_heif

Encoded = str | bytes  # the path of an encoded image, or its content
ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")  # of a JPEG the second frame is a map for bright screens
SAMPLES = 277  # TIFF's tag of their number
GAP = 3.0  # of a much larger image, how much larger the means are than what becomes of them

_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class NoPicture(ValueError):
    """The file holds more than 8 bits, other channels than a picture's, or several frames."""


def picture(file: Encoded, height: int, width: int, first: bool = False) -> tuple[np.ndarray, float]:
    """(height, width, 3) uint8 pixels and the true width / height.

    `first`: of a file of several frames the first. Raises NoPicture for what is no 8-bit picture, and anything for an
    unreadable file.
    """
    with opened(file) as image:
        if not is_picture(image, first):
            raise NoPicture
        aspect = image.width / image.height
        # A large JPEG decodes faster at a reduced scale; with this margin pixels change by 3 levels at most.
        image.draft(image.mode, (width * 3 // 2, height * 3 // 2))
        image.load()
        orientation, image = _orientation(image), rgb(image)
    if orientation in _TURN:
        image = image.transpose(_TURN[orientation])
        aspect = 1 / aspect if orientation >= 5 else aspect
    return _resized(image, height, width), aspect


def _resized(image: Image.Image, height: int, width: int) -> np.ndarray:
    """The pixels of an RGB image at another size, by bicubic; Pillow's and torch's differ by two levels at most."""
    if image.size == (width, height):
        return np.asarray(image)
    if max(image.width / width, image.height / height) >= 2 * GAP:  # then Pillow takes means of blocks first
        return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=GAP))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]  # twice as fast
    return F.interpolate(pixels, (height, width), mode="bicubic", antialias=True)[0].permute(1, 2, 0).numpy()


def is_picture(image: Image.Image, first: bool = False) -> bool:
    """Whether an opened image, or its `first` frame, is of 8 bits or less, in gray or colours, perhaps with opacity."""
    if image.mode.startswith("I") or image.mode == "F" or is_rescaled(image):
        return False
    if image.format == "TIFF":  # a further sample is opacity in a photograph, and infrared in a satellite's
        tags: Any = getattr(image, "tag_v2", {})
        samples, colours = tags.get(SAMPLES, 1), 4 if image.mode == "CMYK" else 3
        return samples in (1, colours) and (first or getattr(image, "n_frames", 1) == 1)
    return first or image.format not in ANIMATED or not getattr(image, "is_animated", False)


def is_rescaled(image: Image.Image) -> bool:
    """Whether Pillow gives other values than an opened image has: only 8 of its bits, or a netpbm's scaled to them."""
    if image.format in ("AVIF", "HEIF"):
        return _is_deep_avif(image) if image.format == "AVIF" else image.info.get("bit_depth", 8) > 8
    tile = next(iter(getattr(image, "tile", ())), None)
    if tile is None:
        return False
    if image.format == "PPM":
        return tile[0].startswith("ppm") and isinstance(tile[3], tuple) and tile[3][-1] != 255
    if image.mode not in ("LA", "RGB", "RGBA"):
        return False
    return bits_of_jpeg2000(image) > 8 if image.format == "JPEG2000" else ";16" in str(tile[3])


def _is_deep_avif(image: Any) -> bool:
    """Whether a sample has 10 or 12 bits, by the flag high_bitdepth of the boxes av1C (AV1-ISOBMFF, 2.3.3)."""
    return any(flags[0] & 0x40 for flags in re.findall(rb"av1C\x81.(.)", _head(image), re.DOTALL))


def bits_of_jpeg2000(image: Any) -> int:
    """Bits of the first sample, by the marker SIZ of the codestream (ITU-T T.800, A.5.1)."""
    head = _head(image)
    marker = head.find(b"\xff\x4f\xff\x51")  # start of codestream, then SIZ
    return (head[marker + 42] & 0x7F) + 1 if 0 <= marker < len(head) - 42 else 8


def _head(image: Any) -> bytes:
    """The first bytes of an opened image's file, which stays where it was."""
    place = image.fp.tell()
    image.fp.seek(0)
    head = image.fp.read(2**16)
    image.fp.seek(place)
    return head


def frames(file: Encoded) -> list[np.ndarray]:
    """All frames of an image, upright, each (h, w) or (h, w, c), with the values that Pillow gives for them."""
    found = []
    with opened(file) as image:
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            image.load()  # which turns a TIFF upright by itself
            turn = _TURN.get(_orientation(image))
            frame = (
                rgb(image.copy()) if image.format in ANIMATED and getattr(image, "is_animated", False) else image.copy()
            )
            if frame.mode not in ("L", "LA", "RGB", "RGBA", "F") and not frame.mode.startswith("I"):
                frame = frame.convert("RGBA" if "transparency" in frame.info else "RGB" if frame.mode != "1" else "L")
            found.append(np.asarray(frame if turn is None else frame.transpose(turn)))
    return found


def opened(file: Encoded) -> Image.Image:
    """An image whose pixels are not read yet."""
    try:
        return _open(file)
    except ValueError as error:
        if "MAX_TEXT" not in str(error):  # Pillow's limit for profiles and texts in a PNG, which no pixel needs
            raise
        return _open(_bare_png(file))


def _bare_png(file: Encoded) -> bytes:
    """A PNG file without its colour profile and its texts."""
    if isinstance(file, str):
        with open(file, "rb") as opened:
            data = opened.read()
    else:
        data = bytes(file)
    parts, at = [data[:8]], 8
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] not in (b"iCCP", b"iTXt", b"tEXt", b"zTXt"):
            parts.append(data[at:end])
        at = end
    return b"".join(parts)


def upright_size(file: Encoded, small: int) -> tuple[int, int]:
    """Width and height from the header; an image of more than `small` pixels a side is not turned upright."""
    with opened(file) as image:
        width, height = image.size
        # the size of a TIFF is that of the upright image
        turned = image.format != "TIFF" and max(width, height) <= small and _orientation(image) >= 5
    return (height, width) if turned else (width, height)


def reason(error: Exception) -> str:
    """Why a file could not be decoded, on one line and without its path."""
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"more than {Image.MAX_IMAGE_PIXELS} pixels; data.max_pixels=N reads larger ones"
    if type(error).__name__ == "UnidentifiedImageError":
        return "not an image of a known format"
    return printable(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def printable(text: str) -> str:
    """The text on one line, with control characters and undecodable bytes escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def quiet(max_pixels: int | None = None) -> Iterator[None]:
    """Pillow's words about odd files are not shown, except that too many pixels are an error: more than these, or than
    Pillow's own limit.
    """
    before, said = Image.MAX_IMAGE_PIXELS, logging.getLogger("PIL.TiffImagePlugin")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        level = said.level
        said.setLevel(logging.CRITICAL)  # that it cannot read 12 channels, which tifffile can
        Image.MAX_IMAGE_PIXELS = max_pixels or before
        try:
            yield
        finally:
            said.setLevel(level)
            Image.MAX_IMAGE_PIXELS = before


@cache
def _formats() -> list[str]:
    """Formats told by their first bytes and decoded by Pillow itself (EPS, say, would start Ghostscript)."""
    Image.init()
    if reads_heif():
        import pillow_heif

        pillow_heif.register_heif_opener()
    formats = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000", "HEIF")
    return [name for name in formats if name in Image.OPEN]


def _open(file: Encoded) -> Image.Image:
    if not (len(file) if isinstance(file, bytes) else os.path.getsize(file)):
        raise ValueError("empty file")
    image = Image.open(BytesIO(file) if isinstance(file, bytes) else file, formats=_formats())
    if 0 in image.size:
        raise ValueError("no pixels")
    return image


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # damaged metadata do not make the picture unreadable
        return 1


def rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of a picture of 8 bits: transparency is laid over white, as a page shows it."""
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or (image.mode == "P" and "transparency" in image.info):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
