"""A file of each kind in the table of docs/howto/kinds.md, and the values that a network gets of it."""

import warnings
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
import rasterio
import tifffile
from pictures import encode
from PIL import Image

SIDE, COUNT = 16, 20


def values(top, *shape, dtype=np.uint16, low=0, seed=0):
    """Numbers from `low` to `top`, both of which are there."""
    found = np.random.default_rng(seed).integers(low, top + 1, shape or (SIDE, SIDE)).astype(dtype)
    found.flat[:2] = low, top
    return found


def png(array, mode=None):
    return "png", encode(array, mode)


def deep_png(array):
    """A PNG of 16 bits and three samples, which Pillow cannot write."""
    import struct
    import zlib

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", *array.shape[1::-1], 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)))
    parts = [
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in (*chunks, (b"IEND", b""))
    ]
    return "png", b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(array, **options):
    file = BytesIO()
    options = {"photometric": "minisblack", **options}
    tifffile.imwrite(file, array, **options)
    return "tif", file.getvalue()


def pillow_tiff(array, mode=None, **options):
    image = Image.fromarray(array) if mode is None else Image.fromarray(array).convert(mode)
    return "tif", encode(image, kind="TIFF", **options)


def netpbm(array, white, plain=False):
    """A PGM or PPM whose white is a number of its own; `plain`: in digits, with a remark."""
    number, size = 5 + (array.ndim == 3) - 3 * plain, f"{array.shape[1]} {array.shape[0]}"
    head = f"P{number}\n# a remark\n{size}\n{white}\n".encode()
    digits = "".join(f"{value} # {i}\n" for i, value in enumerate(array.flat)).encode()
    return "pgm", head + (digits if plain else array.astype(">u2" if white > 255 else "u1").tobytes())


def avif(bits, kind="AVIF"):
    """An AVIF or HEIC whose header says that it holds so many bits."""
    if kind == "HEIF":
        from pillow_heif import from_bytes

        file, mode = BytesIO(), "RGB" if bits == 8 else "RGB;16"
        from_bytes(mode, (SIDE, SIDE), bytes(SIDE * SIDE * 3 * (1 if bits == 8 else 2))).save(file)
        return "heic", file.getvalue()
    file = bytearray(encode(np.full((SIDE, SIDE, 3), 90, np.uint8), kind="AVIF"))
    samples, config = file.index(b"pixi") + 9, file.index(b"av1C") + 6
    file[samples : samples + 3] = [bits] * 3
    file[config] |= {8: 0, 10: 0x40, 12: 0x60}[bits]
    return "avif", bytes(file)


def npy(array):
    file = BytesIO()
    np.save(file, array)
    return "npy", file.getvalue()


def gif():
    frames = [Image.fromarray(values(255, SIDE, SIDE, dtype=np.uint8, seed=i)) for i in range(3)]
    return "gif", encode(frames[0], kind="GIF", save_all=True, append_images=frames[1:])


def dicom():
    from pydicom.data import get_testdata_file

    return "dcm", Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()


def jp2(array, bits):
    """A JPEG 2000 without loss."""
    (height, width, count), how = array.shape, {"QUALITY": 100, "REVERSIBLE": "YES", "NBITS": bits, "YCBCR420": "NO"}
    shape = {"height": height, "width": width, "count": count, "dtype": array.dtype}
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(f"{folder}/a.jp2", "w", driver="JP2OpenJPEG", **shape, **how) as file:
            file.write(array.transpose(2, 0, 1))
        return "jp2", Path(folder, "a.jp2").read_bytes()


def svs():
    """A whole slide, as Aperio's scanners write it."""
    file, said = BytesIO(), "Aperio Image Library v10\r\n64x64 [0,0 64x64] (16x16) none|AppMag = 20|MPP = 0.5"
    tifffile.imwrite(file, np.tile(BYTES, (4, 4, 1)), description=said, photometric="rgb", tile=(16, 16), metadata=None)
    return "svs", file.getvalue()


def video():
    file = BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = SIDE, SIDE, "bgr0"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(BYTES, format="rgb24")))
        container.mux(stream.encode())
    return "mkv", file.getvalue()


def pyramid():
    file, whole = BytesIO(), values(4000, 32, 32)
    with tifffile.TiffWriter(file) as out:
        out.write(whole, photometric="minisblack")
        out.write(whole[::2, ::2], subfiletype=1, photometric="minisblack")
    return "tif", file.getvalue()


BYTES = values(255, SIDE, SIDE, 3, dtype=np.uint8)
FOUR = values(255, SIDE, SIDE, 4, dtype=np.uint8)
OPAQUE = np.concatenate([BYTES, np.full((SIDE, SIDE, 1), 255, np.uint8)], 2)
TWELVE, NARROW = values(4095), values(8206, low=7301)
DEEP, BANDS = values(65535, SIDE, SIDE, 3), values(9000, SIDE, SIDE, 12)
UNIT = np.random.default_rng(0).random((SIDE, SIDE), np.float32)
HU = values(1500, low=-1024, dtype=np.int16)
HEIGHTS = values(900, low=200, dtype=np.float32) + np.float32(0.25)
HOLED = np.where(np.arange(SIDE) < 4, np.float32(-9999), HEIGHTS)
MASKED = np.stack([values(60_000), values(3)], 2)
STACK = values(4095, 5, SIDE, SIDE)
RGB, SAMPLES = {"photometric": "rgb"}, {"planarconfig": "contig"}
WHITE = {"photometric": "miniswhite"}  # 0 is white


def turned(orientation):
    """The option of a TIFF that is to be turned when it is looked at."""
    return {"extratags": [(274, 3, 1, orientation, True)]}


# the row of the table: files, and the values that the network gets; None: refused
KINDS = {
    "8-bit RGB PNG": ([png(BYTES)], BYTES),
    "8-bit RGB TIFF": ([pillow_tiff(BYTES)], BYTES),
    "8-bit grey": ([png(BYTES[..., 0])], np.stack([BYTES[..., 0]] * 3, 2)),
    "8-bit grey and RGB in one folder": ([png(BYTES), png(BYTES[..., 0])], BYTES),
    "1-bit": ([png(np.full((SIDE, SIDE), 255, np.uint8), "1")], np.full((SIDE, SIDE, 3), 255)),
    "PNG with opacity": ([png(OPAQUE)], BYTES),
    "CMYK": ([pillow_tiff(np.zeros((SIDE, SIDE, 3), np.uint8), "CMYK")], np.zeros((SIDE, SIDE, 3))),
    "10 bits in a 16-bit PNG": ([png(values(1023))], values(1023)[..., None]),
    "12 bits in a 16-bit TIFF": ([tiff(TWELVE)], TWELVE[..., None]),
    "12 bits in an LZW TIFF": ([pillow_tiff(TWELVE, compression="tiff_lzw")], TWELVE[..., None]),
    "16-bit grey": ([png(values(65535))], values(65535)[..., None]),
    "a thermal camera, 7301 to 8206": ([tiff(NARROW)], NARROW[..., None]),
    "16-bit RGB PNG": ([deep_png(DEEP)], DEEP),
    "16-bit RGB TIFF": ([tiff(DEEP, **RGB)], DEEP),
    "16-bit RGB TIFF, planar": ([tiff(DEEP.transpose(2, 0, 1), planarconfig="separate", **RGB)], DEEP),
    "4 bands of 8 bits, no opacity": ([tiff(FOUR, extrasamples=("unspecified",), **RGB)], FOUR),
    "4 bands of 8 bits, the last called opacity": ([tiff(FOUR, extrasamples=("unassalpha",), **RGB)], None),
    "RGBA TIFF, opaque": ([pillow_tiff(OPAQUE)], BYTES),
    "12 bands of 16 bits": ([tiff(BANDS, **SAMPLES)], BANDS),
    "12 bands of 16 bits, planar": ([tiff(BANDS.transpose(2, 0, 1), planarconfig="separate")], BANDS),
    "floats from 0 to 1": ([tiff(UNIT)], UNIT[..., None]),
    "signed 16-bit TIFF, Hounsfield units": ([tiff(HU)], HU[..., None]),
    "32-bit integers": ([tiff(HU.astype(np.int32))], HU[..., None]),
    "heights, -9999 for none": ([tiff(HOLED)], np.where(HOLED < 0, np.nan, HOLED)[..., None]),
    "heights, NaN for none": (
        [tiff(np.where(HOLED < 0, np.nan, HOLED))],
        np.where(HOLED < 0, np.nan, HOLED)[..., None],
    ),
    "16 bits, GDAL's nodata 4000": (
        [tiff(np.where(TWELVE % 7, TWELVE, 4000), extratags=[(42113, 2, 5, "4000", True)])],
        np.where((TWELVE % 7 == 0) | (TWELVE == 4000), np.nan, TWELVE)[..., None],
    ),
    "8 bits, GDAL's nodata 0": ([tiff(BYTES, **RGB, extratags=[(42113, 2, 2, "0", True)])], BYTES),
    "8-bit TIFF whose 0 is white": ([tiff(BYTES[..., 0], **WHITE)], np.stack([255 - BYTES[..., 0]] * 3, 2)),
    "16-bit TIFF whose 0 is white": ([tiff(values(65535), **WHITE)], 65535 - values(65535)[..., None]),
    "float TIFF whose 0 is white": ([tiff(UNIT, **WHITE)], None),
    "8-bit TIFF that lies on its side": (
        [tiff(BYTES[:12], **RGB, **turned(6))],
        np.rot90(BYTES[:12], -1),
    ),
    "16-bit TIFF that lies on its side": ([tiff(TWELVE[:12], **turned(6))], np.rot90(TWELVE[:12], -1)[..., None]),
    "PGM whose white is 255": ([netpbm(BYTES[..., 0], 255)], np.stack([BYTES[..., 0]] * 3, 2)),
    "PGM whose white is 100": ([netpbm(values(100), 100)], values(100)[..., None]),
    "PGM whose white is 1000": ([netpbm(values(1000), 1000)], values(1000)[..., None]),
    "PGM whose white is 65535": ([netpbm(values(65535), 65535)], values(65535)[..., None]),
    "PPM whose white is 4095": ([netpbm(DEEP // 16, 4095)], DEEP // 16),
    "PPM whose white is 65535": ([netpbm(DEEP, 65535)], DEEP),
    "AVIF of 10 bits": ([avif(10)], None),
    "JPEG 2000 of 8 bits": ([jp2(BYTES, 8)], BYTES),
    "JPEG 2000 of 12 bits, one band": ([jp2(TWELVE[..., None], 12)], TWELVE[..., None]),
    "JPEG 2000 of 15 bits, one band, as Sentinel-2's": ([jp2(BANDS[..., :1], 15)], BANDS[..., :1]),
    "JPEG 2000 of 12 bits, 5 bands": ([jp2(BANDS[..., :5] % 4096, 12)], BANDS[..., :5] % 4096),
    "whole slide, `.svs`": ([svs()], None),
    "video": ([video()], None),
    "TIFF of 5 pages": ([tiff(STACK)], None),
    "ImageJ's channels": ([tiff(STACK[:2], imagej=True, metadata={"axes": "CYX"})], STACK[:2].transpose(1, 2, 0)),
    "ImageJ's stack": ([tiff(STACK, imagej=True, metadata={"axes": "ZYX"})], None),
    "OME-TIFF over time": ([tiff(STACK, ome=True, metadata={"axes": "TYX"})], None),
    "TIFF with a small copy of itself": ([pyramid()], values(4000, 32, 32)[..., None]),
    "GIF that moves": ([gif()], None),
    "`.npy` of (h, w)": ([npy(TWELVE)], TWELVE[..., None]),
    "`.npy` of (h, w, c)": ([npy(BANDS)], BANDS),
    "`.npy` of (c, h, w)": ([npy(BANDS.transpose(2, 0, 1))], BANDS),
    "`.npy` of (n, h, w, c)": ([npy(np.stack([BANDS] * 3))], None),
    "DICOM of a CT": ([dicom()], "rescaled"),
    "8 and 16 bits in one folder": ([png(BYTES), tiff(TWELVE)], None),
    "16 bits beside a mask of 0 to 3, as channels": ([npy(MASKED)], MASKED),
    "16-bit grey and RGB in one folder": ([tiff(TWELVE), tiff(DEEP, **RGB)], None),
}
