"""Files of any values, channels and pages: what they hold, by their headers, and their values as they are."""

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from jaxtyping import Shaped
from numpy import ndarray as Array
from PIL import UnidentifiedImageError

from twinblock.data import geo, slides, tiff, video
from twinblock.data.endings import is_slide, is_video
from twinblock.data.pillow import ANIMATED, bits_of_jpeg2000, frames, is_picture, is_rescaled, opened


@dataclass(frozen=True)
class Page:
    """One page of a file of several."""

    file: str | bytes
    number: int


# the path of an encoded image, its content, its values (h, w, c), a page; or why its source could not give it
File = str | bytes | np.ndarray | Page | Exception

MOST_CHANNELS = 32  # of an array: a longer axis is of pages
GDAL_NODATA, GEO_KEYS = 42113, 34735  # tags of GeoTIFF
ALPHA = (1, 2)  # what TIFF's ExtraSamples calls opacity


@dataclass(frozen=True)
class Facts:
    """What an image file holds, by its header.

    `dtype`: NumPy's name of its type; `shape`: (pages, height, width, channels). `picture`: of 8 bits in gray or
    colours, which Pillow reads. `opacity`: whether the last channel is said to be that. `missing`: the value that
    stands for none.
    """

    kind: str
    dtype: str
    shape: tuple[int, int, int, int]
    picture: bool = False
    opacity: bool = False
    missing: float | None = None


def facts(file: File) -> Facts:
    """What a file holds; raises anything for an unreadable one."""
    if isinstance(file, Exception):
        raise file
    if isinstance(file, Page):
        whole = facts(file.file)
        return Facts(whole.kind, whole.dtype, (1, *whole.shape[1:]), whole.picture, whole.opacity, whole.missing)
    if isinstance(file, np.ndarray):
        picture = file.dtype == np.uint8 and file.shape[2] == 3
        return Facts("array", file.dtype.name, (1, *file.shape), picture)
    return READERS[kind_of(file)][0](file)


def planes(file: File) -> Shaped[Array, "pages h w c"]:
    """The values of a file as they are; raises anything for an unreadable one."""
    if isinstance(file, Exception):
        raise file
    if isinstance(file, Page):
        return planes(file.file)[file.number][None]
    return file[None] if isinstance(file, np.ndarray) else READERS[kind_of(file)][1](file)


def kind_of(file: str | bytes) -> str:
    """Which of the readers a file is for: a video or slide by its ending, all others by their first bytes."""
    if isinstance(file, str) and (is_video(file) or is_slide(file)):
        return "video" if is_video(file) else "slide"
    if isinstance(file, bytes):
        head = file[:132]
    else:
        with open(file, "rb") as first:
            head = first.read(132)
    if not head:
        raise ValueError("empty file")
    if head[128:] == b"DICM":  # its first bytes may be those of a TIFF
        return "DICOM"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if head.startswith(geo.BEGINNINGS):
        return "JPEG2000"
    return "npy" if head[:6] == b"\x93NUMPY" else "picture"


# ---- what Pillow reads


def _picture_facts(file: str | bytes) -> Facts:
    with opened(file) as image:
        kind, mode, size = image.format or "", image.mode, (image.height, image.width)
        pages = getattr(image, "n_frames", 1) if image.format in ANIMATED else 1
        if is_rescaled(image):
            dtype, channels = "uint16", {"L": 1, "I": 1, "LA": 2, "RGBA": 4}.get(mode, 3)
        else:
            dtype = "float32" if mode == "F" else "uint16" if mode.startswith("I;16") else "int32"
            dtype = dtype if mode.startswith("I") or mode == "F" else "uint8"
            transparent = mode == "P" and "transparency" in image.info
            channels = {"L": 1, "1": 1, "LA": 2, "RGBA": 4}.get(mode, 4 if transparent else 3)
            channels = 1 if dtype != "uint8" else channels
        # Pillow gives 16-bit gray of some formats as 32-bit integers
        dtype = "uint16" if dtype == "int32" and kind in ("PNG", "PPM") else dtype
        picture = is_picture(image, first=True)
        channels = 3 if picture and pages > 1 else channels
        return Facts(kind, dtype, (pages, *size, channels), picture, channels in (2, 4))


def _picture_planes(file: str | bytes) -> np.ndarray:
    with opened(file) as image:
        rescaled, kind = is_rescaled(image), image.format
        integers = image.mode == "I" and kind in ("PNG", "PPM")
        # Pillow shifts grey JPEG 2000 of 12 bits to 16
        spare = 16 - bits_of_jpeg2000(image) if kind == "JPEG2000" and image.mode.startswith("I;16") else 0
    if rescaled and kind in ("PNG", "PPM"):
        return (_png if kind == "PNG" else _netpbm)(file)[None]
    if rescaled and kind == "JPEG2000":
        raise ValueError(geo.EXTRA)
    if rescaled:
        raise ValueError(f"more than 8 bits, of which Pillow gives 8 of {kind}: convert it to TIFF or PNG")
    found = [frame if frame.ndim == 3 else frame[..., None] for frame in frames(file)]
    if spare:
        found = [frame >> spare for frame in found]
    return np.stack([frame.astype(np.uint16) for frame in found] if integers else found)


def _netpbm(file: str | bytes) -> np.ndarray:
    """(h, w, c) uint16 of a PGM or PPM whose white is not 255, which Pillow scales to 8 or 16 bits."""
    image: Any
    with opened(file) as image:
        decoder, _, start, (_, white) = image.tile[0]
        shape = image.height, image.width, 3 if image.mode == "RGB" else 1
        image.fp.seek(start)
        data = image.fp.read()
    if decoder == "ppm_plain":  # in digits, with remarks
        data = np.array(re.sub(rb"#[^\r\n]*", b"", data).split()[: math.prod(shape)], np.uint16).tobytes()
        kind = "=u2"
    else:
        kind = "u1" if white < 256 else ">u2"
    if len(data) < math.prod(shape) * np.dtype(kind).itemsize:
        raise ValueError("truncated")
    return np.frombuffer(data, kind, math.prod(shape)).reshape(shape).astype(np.uint16)


def _png(file: str | bytes) -> np.ndarray:
    """(h, w, c) uint16 of a PNG of 16 bits and several samples, of which Pillow gives 8 bits."""
    import torch
    from torchvision.io import decode_png

    if isinstance(file, str):
        with open(file, "rb") as whole:
            file = whole.read()
    return decode_png(torch.frombuffer(bytearray(file), dtype=torch.uint8)).numpy().transpose(1, 2, 0)


# ---- TIFF


def _tiff_facts(file: str | bytes) -> Facts:
    with tiff.opened(file) as (page, series):
        shape = tiff.ordered(np.broadcast_to(np.empty((), page.dtype), series[0].shape), series[0].axes).shape
        if tiff.lies(page) >= 5:
            shape = shape[0], shape[2], shape[1], shape[3]
        nodata, top = page.tags.get(GDAL_NODATA), tiff.white(page)
        missing = _number(nodata.value) if nodata else None
        opacity = bool(page.extrasamples) and page.extrasamples[-1] in ALPHA
        colours = 4 if page.photometric == 5 else 3  # 5: CMYK
        dtype = "uint8" if page.bitspersample <= 8 and page.dtype.kind in "bu" else page.dtype.name
        return Facts(
            "GeoTIFF" if GEO_KEYS in page.tags else "TIFF",
            dtype,
            (shape[0] * len(series), *shape[1:]),
            dtype == "uint8" and shape[3] in (1, colours),
            opacity,
            missing if missing is None or top is None else top - missing,
        )


def _tiff_planes(file: str | bytes) -> np.ndarray:
    one = _tiff_facts(file)
    with tiff.opened(file) as (page, series):
        top = tiff.white(page)
        if one.picture and (page.photometric not in (1, 2) or page.bitspersample < 8):
            return _picture_planes(file)  # of a palette, inks or single bits Pillow makes colours
        try:
            pages = [tiff.ordered(each.asarray(), each.axes) for each in series]
            values = tiff.upright(np.concatenate(pages), tiff.lies(page))
        except (ValueError, ImportError) as error:
            if "imagecodecs" not in str(error):
                raise
            if page.samplesperpixel > 1:
                raise ValueError(
                    f'its compression ({page.compression.name}) needs: pip install "twinblock[tiff]"'
                ) from None
            values = _picture_planes(file)  # libtiff, in Pillow, knows the usual compressions, and gives gray as it is
    return values if top is None else top - values


def _number(text: Any) -> float | None:
    try:
        return float(re.sub(r"[\0\s]+$", "", str(text)))
    except ValueError:
        return None


# ---- NumPy


def _npy(file: str | bytes) -> np.ndarray:
    if isinstance(file, bytes):
        values = np.load(BytesIO(file), allow_pickle=False)
    else:
        values = np.load(file, mmap_mode="r", allow_pickle=False)
    if values.ndim == 2:
        return values[None, :, :, None]
    if values.ndim not in (3, 4) or 0 in values.shape:
        raise ValueError(f"an array of shape {values.shape}; an image is (h, w), (h, w, c) or (c, h, w)")
    if values.ndim == 3 and min(values.shape[0], values.shape[2]) > MOST_CHANNELS:
        return values[..., None]
    return channels_last(values if values.ndim == 4 else values[None])


def channels_last(stack: Shaped[Array, "n a b c"]) -> Shaped[Array, "n h w k"]:
    """Images whose channels are the shorter of the first and the last axis; ValueError where these are of one size."""
    first, last = stack.shape[1], stack.shape[3]
    if first == last:
        raise ValueError(f"of shape {stack.shape[1:]} either end may be the channels; give (height, width, channels)")
    return stack if last < first else stack.transpose(0, 2, 3, 1)


def _npy_facts(file: str | bytes) -> Facts:
    values = _npy(file)
    picture = values.dtype == np.uint8 and values.shape[3] in (1, 3)
    return Facts("npy", values.dtype.name, values.shape, picture)


# ---- DICOM


def _dicom(file: str | bytes) -> Any:
    try:
        import pydicom
    except ImportError:
        raise ValueError('DICOM files need: pip install "twinblock[dicom]"') from None
    return pydicom.dcmread(BytesIO(file) if isinstance(file, bytes) else os.fspath(file))


def _dicom_facts(file: str | bytes) -> Facts:
    image = _dicom(file)
    pages, channels = int(image.get("NumberOfFrames") or 1), int(image.SamplesPerPixel)
    dtype = "uint8" if image.BitsAllocated <= 8 else "int16"  # what rescaling leaves
    return Facts("DICOM", dtype, (pages, image.Rows, image.Columns, channels))


def _dicom_planes(file: str | bytes) -> np.ndarray:
    """Values as the file's own slope and intercept have them: Hounsfield units of a CT; white is high."""
    from pydicom.pixels.processing import apply_rescale
    from pydicom.pixels.utils import pixel_array

    image = _dicom(file)
    shape = _dicom_facts(file).shape
    values = pixel_array(image).reshape(shape)
    if image.PhotometricInterpretation == "MONOCHROME1":
        values = (2**image.BitsStored - 1) - values.astype(np.int32)
    values = np.asarray(apply_rescale(values, image))
    if image.BitsAllocated <= 8 and values.dtype == np.uint8:
        return values
    rounded = np.rint(values)
    exact = np.array_equal(rounded, values) and rounded.min() >= -(2**15) and rounded.max() < 2**15
    return rounded.astype(np.int16) if exact else values.astype(np.float32)


# ---- JPEG 2000


def _jpeg2000_facts(file: str | bytes) -> Facts:
    if not geo.installed():
        try:
            return _picture_facts(file)
        except UnidentifiedImageError:  # of more channels than Pillow knows
            raise ValueError(geo.EXTRA) from None
    dtype, shape, opacity, missing = geo.header(file)
    return Facts("JPEG2000", dtype, (1, *shape), dtype == "uint8" and shape[2] - opacity in (1, 3), opacity, missing)


def _jpeg2000_planes(file: str | bytes) -> np.ndarray:
    return geo.values(file)[None] if geo.installed() else _picture_planes(file)


# ---- videos and slides


def _video_facts(file: str | bytes) -> Facts:
    assert isinstance(file, str)
    return Facts("video", "uint8", (1, *video.header(file).size, 3), picture=True)


def _video_planes(file: str | bytes) -> np.ndarray:
    raise ValueError("a video; data.fps=1 takes one frame a second")


def _slide_facts(file: str | bytes) -> Facts:
    assert isinstance(file, str)
    return Facts("slide", "uint8", (1, *slides.size(file), 3), picture=True)


def _slide_planes(file: str | bytes) -> np.ndarray:
    raise ValueError('a whole-slide image; data.tile="{size: 256}" cuts it into tiles')


READERS: dict[str, tuple[Callable[[str | bytes], Facts], Callable[[str | bytes], np.ndarray]]] = {
    "picture": (_picture_facts, _picture_planes),
    "TIFF": (_tiff_facts, _tiff_planes),
    "npy": (_npy_facts, _npy),
    "DICOM": (_dicom_facts, _dicom_planes),
    "JPEG2000": (_jpeg2000_facts, _jpeg2000_planes),
    "video": (_video_facts, _video_planes),
    "slide": (_slide_facts, _slide_planes),
}
