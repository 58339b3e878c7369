"""Decoding: colour modes, orientation, and files that are no images."""

import numpy as np
import pytest
from pictures import encode, encoded, huge
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from sklearn.datasets import load_sample_images

from twinblock.data import geo
from twinblock.data.decode import decode, quiet, upright_size
from twinblock.data.packing import packed


def palette(transparency: int | None) -> bytes:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 250, 10, 20])
    return encode(image, **({} if transparency is None else {"transparency": transparency}))


MODES = {
    "gray": (encode(np.full((4, 4), 90, np.uint8)), (90, 90, 90)),
    "1 bit": (encode(np.full((4, 4), 255, np.uint8), "1"), (255, 255, 255)),
    "gray, transparent": (encode(np.full((4, 4, 2), 0, np.uint8)), (255, 255, 255)),
    # 200 * 128/255 + 255 * 127/255 = 227.4, and so on: half of it over white
    "RGBA": (encode(np.full((4, 4, 4), (200, 100, 0, 128), np.uint8)), (227, 177, 127)),
    "palette": (palette(None), (250, 10, 20)),
    "palette, transparent": (palette(1), (255, 255, 255)),
    "palette, another colour transparent": (palette(0), (250, 10, 20)),
    "CMYK": (encode(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), kind="TIFF"), (255, 0, 0)),
    "bmp named otherwise": (encode(np.full((4, 4, 3), (1, 2, 3), np.uint8), kind="BMP"), (1, 2, 3)),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb(mode):
    file, colour = MODES[mode]
    pixels, aspect = decode(file, 4, 4)
    assert pixels.shape == (4, 4, 3)
    assert pixels.dtype == np.uint8
    assert aspect == 1
    assert pixels.reshape(-1, 3).tolist() == [list(colour)] * 16


VALUES = {
    "16 bit gray": np.full((4, 4), 300, np.uint16),
    "16 bit TIFF": (np.full((4, 4), 65535, np.uint16), "TIFF"),
    "32 bit integers": (np.full((4, 4), -1024, np.int32), "TIFF"),
    "floats": (np.full((4, 4), 0.2, np.float32), "TIFF"),
}


@pytest.mark.parametrize("mode", VALUES)
def test_what_is_no_picture_of_8_bits_keeps_its_values(mode):
    values, *kind = VALUES[mode] if isinstance(VALUES[mode], tuple) else (VALUES[mode],)
    found, aspect = decode(encode(values, kind=kind[0] if kind else "PNG"), 4, 4)
    assert np.array_equal(found[..., 0], values) and found.shape == (4, 4, 1)
    assert found.dtype == (np.uint16 if values.dtype == np.uint16 else np.float32)
    assert aspect == 1


# The EXIF standard says where row 0 and column 0 of the stored picture are seen.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_images_are_turned_upright(orientation):
    stored = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = UPRIGHT[orientation](stored)
    images = packed(encoded([encode(stored, exif=exif)]))
    assert np.array_equal(images.pixels[0], expected)
    assert images.aspect is None


def test_a_large_jpeg_is_decoded_small_but_alike():
    coarse = np.random.default_rng(0).integers(0, 256, (75, 100, 3), np.uint8)
    picture = Image.fromarray(coarse).resize((800, 600), Image.Resampling.BICUBIC)
    whole = np.asarray(picture.resize((64, 64), Image.Resampling.BICUBIC))
    pixels, aspect = decode(encode(picture, kind="JPEG", quality=95), 64, 64)
    assert np.abs(pixels.astype(int) - whole).mean() <= 2
    assert aspect == pytest.approx(4 / 3)


@pytest.mark.parametrize("size", [(120, 90), (300, 640), (150, 100), (639, 426), (108, 470)])
def test_a_picture_is_resized_as_by_pillows_bicubic(size):
    """Down, up, and each in one direction."""
    for photo in load_sample_images().images:
        picture = Image.fromarray(photo)
        expected = np.asarray(picture.resize(size, Image.Resampling.BICUBIC))
        pixels, _ = decode(encode(picture), size[1], size[0])
        assert np.abs(pixels.astype(int) - expected).max() <= 2


def test_a_postscript_file_is_not_interpreted():
    with pytest.raises(Exception, match="cannot identify"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", 9, 9)


def test_pillow_warnings_are_quiet_but_too_many_pixels_are_an_error():
    with quiet(), pytest.raises((Image.DecompressionBombError, Image.DecompressionBombWarning)):
        decode(huge(), 8, 8)


@pytest.mark.parametrize("beside", ["profile", "text before", "long text"])
def test_a_png_with_much_beside_its_pixels_is_sound(beside, tmp_path):
    info = PngInfo()
    if beside != "profile":
        info.add_text("workflow", "x" * 2**21, zip=beside == "text before")
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    options = {"icc_profile": bytes(2**21)} if beside == "profile" else {"pnginfo": info}
    file = encode(pixels, **options)
    (tmp_path / "a.png").write_bytes(file)
    for given in (file, str(tmp_path / "a.png")):
        assert np.array_equal(decode(given, 9, 7)[0], pixels)
        assert upright_size(given, 128) == (7, 9)


def test_jpeg_2000_of_16_bits_is_not_read_as_8(monkeypatch):
    """Pillow gives 8 of its bits in colours; the marker SIZ says how many there are."""
    file = bytearray(encode(np.zeros((40, 40, 3), np.uint8), kind="JPEG2000", no_jp2=True))
    assert decode(bytes(file), 40, 40)[0].shape == (40, 40, 3)
    siz = file.find(b"\xff\x51")
    file[siz + 40 : siz + 49 : 3] = [15] * 3  # bits of each sample, less one
    monkeypatch.setattr(geo, "installed", lambda: False)
    with pytest.raises(ValueError, match=r'several channels needs: pip install "twinblock\[geo\]"'):
        decode(bytes(file), 40, 40)
