"""One encoded image to 8-bit RGB pixels of a given size, upright; or the reason why not."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO

import numpy as np
from PIL import Image

File = str | bytes | np.ndarray  # the path of an encoded image, its content, or its (h, w, 3) uint8 pixels

_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(file: File, height: int, width: int) -> tuple[np.ndarray, float]:
    """(height, width, 3) uint8 pixels and the true width / height; raises anything for an unreadable file."""
    try:
        return _decode(file, height, width)
    except ValueError as error:
        if "MAX_TEXT" not in str(error):  # Pillow's limit for profiles and texts in a PNG, which no pixel needs
            raise
        return _decode(_bare_png(file), height, width)


def _bare_png(file: File) -> bytes:
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


def _decode(file: File, height: int, width: int) -> tuple[np.ndarray, float]:
    with _open(file) as image:
        aspect = image.width / image.height
        # A large JPEG decodes faster at a reduced scale; with this margin pixels change by 3 levels at most.
        image.draft(image.mode, (width * 3 // 2, height * 3 // 2))
        image.load()
        orientation, image = _orientation(image), rgb(image)
    if orientation in _TURN:
        image = image.transpose(_TURN[orientation])
        aspect = 1 / aspect if orientation >= 5 else aspect
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return np.asarray(image), aspect


def upright_size(file: File, small: int) -> tuple[int, int]:
    """Width and height from the header; an image of more than `small` pixels a side is not turned upright."""
    try:
        image = _open(file)
    except ValueError as error:
        if "MAX_TEXT" not in str(error):
            raise
        image = _open(_bare_png(file))
    with image:
        width, height = image.size
        turned = max(width, height) <= small and _orientation(image) >= 5
    return (height, width) if turned else (width, height)


def reason(error: Exception) -> str:
    """Why a file could not be decoded, on one line and without its path."""
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"more than {Image.MAX_IMAGE_PIXELS} pixels"
    if type(error).__name__ == "UnidentifiedImageError":
        return "not an image of a known format"
    return printable(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def printable(text: str) -> str:
    """The text on one line, with control characters and undecodable bytes escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def quiet() -> Iterator[None]:
    """Pillow's warnings about odd files are not shown, except that too many pixels are an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@cache
def _formats() -> list[str]:
    """Formats told by their first bytes and decoded by Pillow itself (EPS, say, would start Ghostscript)."""
    Image.init()
    formats = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000")
    return [name for name in formats if name in Image.OPEN]


def _open(file: File) -> Image.Image:
    if isinstance(file, np.ndarray):
        return Image.fromarray(file)
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
    """8-bit RGB: 16 bits are scaled, never clipped; transparency is laid over white, as a page shows it."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        # No header says what white is: the smallest usual full scale that holds the values, else their range.
        x = np.nan_to_num(np.asarray(image, np.float64), posinf=0, neginf=0)
        low, high = x.min(), x.max()
        usual = [top for top in ((1, 255, 65535) if image.mode == "F" else (255, 65535)) if low >= 0 and high <= top]
        low, high = (0, usual[0]) if usual else (low, max(high, low + 1))
        image = Image.fromarray(np.rint((x - low) * (255 / (high - low))).astype(np.uint8))
    elif image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or (image.mode == "P" and "transparency" in image.info):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
