"""What a file holds and what the network sees, for each kind of file in the table of the docs."""

import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tifffile
from pictures import encode, one_line
from PIL import Image, ImageOps

from twinblock.config.data import Data
from twinblock.core.errors import InputError
from twinblock.data import load
from twinblock.data.decode import decode, upright_size
from twinblock.data.readers import facts, planes
from twinblock.data.tiles import bands
from twinblock.data.training import training
from twinblock.data.values import fitted, in_words

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "kinds.md"
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
    "16-bit grey and RGB in one folder": ([tiff(TWELVE), tiff(DEEP, **RGB)], None),
}

REFUSED = r"pages or frames|data\.channels|folder of its own|MINISBLACK|TIFF or PNG"  # what its message says


@pytest.fixture
def folder(tmp_path):
    def put(files) -> Path:
        photos = tmp_path / "photos"
        photos.mkdir()
        for i in range(COUNT):
            suffix, content = files[i % len(files)]
            (photos / f"{i:02}.{suffix}").write_bytes(content)
        return photos

    return put


def table() -> dict[str, str]:
    """What the page says of each kind: of its first table, the second column by the first."""
    rows = [
        line.strip("|").split("|")
        for line in PAGE.read_text(encoding="utf-8").split("\n## Choose")[0].splitlines()
        if line[:2] == "| "
    ]
    return {cells[0].strip(): cells[1].strip() for cells in rows if cells[0].strip() not in ("file", "---")}


def test_the_table_has_a_row_for_each_kind():
    assert list(table()) == list(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_sees_what_the_file_holds(kind, folder):
    files, expected = KINDS[kind]
    photos, said = str(folder(files)), table()[kind]
    if expected is None:
        assert said.startswith("refused")
        with pytest.raises(
            InputError, match=r"pages or frames|data\.channels|folder of its own|MINISBLACK|TIFF or PNG"
        ) as error:
            load(photos)
        one_line(error)
        return
    images = load(photos)
    data = fitted(Data(source=photos), images)
    if isinstance(expected, str):
        from pydicom import dcmread
        from pydicom.data import get_testdata_file

        image = dcmread(get_testdata_file("CT_small.dcm"))
        expected = (image.pixel_array * float(image.RescaleSlope) + float(image.RescaleIntercept))[..., None]
    assert np.array_equal(images.batch([0])[0].numpy(), expected, equal_nan=expected.dtype.kind == "f")
    assert said.startswith(f"{images.channels} channel")
    low, high = data.range
    if ranges := re.search(r"\[(\S+), (\S+)\]", said):
        assert (float(ranges[1]), float(ranges[2])) == (low, high)
    else:  # of the values themselves
        assert np.allclose((low, high), np.nanpercentile(np.repeat(expected.ravel(), COUNT), (0.1, 99.9)), rtol=1e-4)
    words = in_words(images, data)
    assert (words is None) == (images.channels == 3 and images.pixels.dtype == np.uint8)
    assert words is None or f"range [{low:.6g}, {high:.6g}]" in words


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_values_of_any_depth_come_back_exactly(bits, folder):
    ramp = np.arange(2**bits, dtype=np.uint16).reshape(-1, 32)[-64:]
    assert np.array_equal(load(str(folder([tiff(ramp)]))).batch([3])[0, ..., 0].numpy(), ramp)


def test_pages_are_what_the_user_says(folder):
    photos = str(folder([tiff(STACK)]))
    see = lambda pages: training(Data(source=photos, pages=pages))  # noqa: E731
    assert np.array_equal(see("first").batch([7])[0, ..., 0].numpy(), STACK[0])
    assert np.array_equal(see("channels").batch([7])[0].numpy(), STACK.transpose(1, 2, 0))
    each = see("images")
    assert len(each) == 5 * COUNT and each.names[6] == "01.tif[1]"
    assert np.array_equal(each.batch(range(5, 10))[..., 0].numpy(), STACK)


def test_channels_are_what_the_user_says(folder):
    see = lambda photos, channels: training(Data(source=photos, channels=channels)).batch([0])[0].numpy()  # noqa: E731
    photos = str(folder([tiff(FOUR, extrasamples=("unassalpha",), **RGB)]))
    assert np.array_equal(see(photos, 4), FOUR)
    assert np.array_equal(see(photos, 3), FOUR[..., :3])
    luma = np.asarray(Image.fromarray(FOUR[..., :3]).convert("L"), float)
    assert np.abs(see(photos, 1)[..., 0] - luma).max() <= 1
    with pytest.raises(InputError, match=r"4 channels, and data\.channels=7") as error:
        see(photos, 7)
    one_line(error)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_seen_upright_whoever_reads_it(bits, orientation):
    """By Pillow, by tifffile, and by libtiff where its compression is one that tifffile does not know."""
    array = values(2**bits - 1, 10, 14, dtype=f"uint{bits}")
    upright = np.asarray(ImageOps.exif_transpose(tagged(Image.fromarray(array), orientation)))
    height, width = upright.shape
    lzw = pillow_tiff(array, compression="tiff_lzw", tiffinfo={274: orientation})
    plain = tiff(array, **turned(orientation))
    assert np.array_equal(np.concatenate([part for part, _ in bands(plain[1])])[..., 0], upright)
    for _, file in (plain, lzw):
        assert np.array_equal(planes(file)[0, ..., 0], upright)
        assert facts(file).shape[1:3] == (height, width) == upright_size(file, 100)[::-1]
        assert np.array_equal(decode(file, height, width)[0][..., 0], upright)
        assert decode(file, height, width)[1] == width / height


def tagged(image, orientation):
    image.getexif()[274] = orientation
    return image


@pytest.mark.parametrize(("dtype", "top"), [("bool", 255), ("uint8", 255), ("uint16", 65535)])
def test_a_tiff_whose_zero_is_white_is_seen_so_whoever_reads_it(dtype, top, folder):
    array = np.arange(256).reshape(SIDE, SIDE).astype(dtype)
    expected = top - array.astype(int) * (255 if dtype == "bool" else 1)
    file = tiff(array, **WHITE)
    assert np.array_equal(planes(file[1])[0, ..., 0], expected)
    if dtype == "uint16":  # in fewer bits Pillow turns what it writes
        lzw = pillow_tiff(array, compression="tiff_lzw", tiffinfo={262: 0})[1]
        assert np.array_equal(planes(lzw)[0, ..., 0], expected)
    one = training(Data(source=str(folder([file])), channels=1))
    assert np.array_equal(one.batch([0])[0, ..., 0].numpy(), expected)


def test_the_missing_value_of_a_tiff_whose_zero_is_white_is_turned_with_it(folder):
    nodata = [(42113, 2, 2, "7", True)]
    array = values(9)
    image = load(str(folder([tiff(array, extratags=nodata, **WHITE)]))).batch([0])[0, ..., 0].numpy()
    assert np.array_equal(image, np.where(array == 7, np.nan, 65535 - array.astype(float)), equal_nan=True)


def test_inks_and_palettes_are_colours_whatever_channels_are_asked_for(folder):
    photos = folder([pillow_tiff(BYTES, "P"), pillow_tiff(BYTES, "CMYK")])
    luma = training(Data(source=str(photos), channels=1)).batch([0, 1])[..., 0].numpy()
    for i in range(2):
        with Image.open(photos / f"{i:02}.tif") as image:
            assert np.abs(luma[i] - np.asarray(image.convert("RGB").convert("L"), float)).max() <= 1


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("white", [1, 100, 255, 256, 1023, 65535])
def test_a_netpbm_file_gives_its_own_values(plain, white, tmp_path):
    for array in (values(white, 5, 7), values(white, 5, 7, 3)):
        _, file = netpbm(array, white, plain)
        (tmp_path / "a.pgm").write_bytes(file)
        for given in (file, str(tmp_path / "a.pgm")):
            found = planes(given)
            assert found.dtype == facts(given).dtype == ("uint8" if white == 255 else "uint16")
            assert found.shape == facts(given).shape == (1, 5, 7, array.size // 35)
            assert np.array_equal(found.reshape(array.shape), array)
            seen = array if white != 255 or array.ndim == 3 else np.stack([array] * 3, 2)
            assert np.array_equal(decode(given, 5, 7)[0].reshape(seen.shape), seen)
        with pytest.raises((ValueError, OSError), match=r"truncated|EOF|enough image data"):
            decode(file[: len(file) // 2], 5, 7)


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_more_than_8_bits_of_a_photograph_are_not_read_as_8(kind):
    assert decode(avif(8, kind)[1], SIDE, SIDE)[0].shape == (SIDE, SIDE, 3)
    for bits in (10, 12) if kind == "AVIF" else (10,):
        with pytest.raises(ValueError, match=f"more than 8 bits, of which Pillow gives 8 of {kind}: .* TIFF or PNG"):
            decode(avif(bits, kind)[1], SIDE, SIDE)


def test_few_files_of_another_kind_are_left_out_and_listed(folder):
    photos = folder([tiff(TWELVE)])
    for name, (_, content) in {"odd": png(BYTES), "stack": tiff(STACK)}.items():
        for i in range(19):
            (photos / f"more{name}{i}.tif").write_bytes(tiff(TWELVE)[1])
        (photos / f"{name}.tif").write_bytes(content)
    images = load(str(photos))
    assert len(images) == COUNT + 38
    assert dict(images.skipped).keys() == {"odd.tif", "stack.tif"}
    assert "8-bit, and most others 16-bit" in dict(images.skipped)["odd.tif"]


def test_missing_values_do_not_spread_when_images_are_resized(folder):
    holed = np.full((200, 200), 500, np.float32)
    holed[:, :50] = -9999
    holed[0, 60:] = np.arange(140) + 300
    small = load(str(folder([tiff(holed)])), size=32).batch([0])[0, ..., 0].numpy()
    assert small.shape == (37, 37)
    assert np.isnan(small[:, :8]).all() and not np.isnan(small[:, 11:]).any()
    assert np.abs(small[5:, 11:] - 500).max() < 1
