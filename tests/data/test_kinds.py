"""What a file holds and what the network sees, for each kind of file in the table of the docs."""

import re
from pathlib import Path

import numpy as np
import pytest
from kinds import (
    BYTES,
    COUNT,
    FOUR,
    KINDS,
    RGB,
    SIDE,
    STACK,
    TWELVE,
    WHITE,
    avif,
    netpbm,
    pillow_tiff,
    png,
    tiff,
    turned,
    values,
)
from pictures import one_line
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
REFUSED = r"pages or frames|data\.(channels|fps|tile)|folder of its own|MINISBLACK|TIFF or PNG"  # what its message says


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
        with pytest.raises(InputError, match=REFUSED) as error:
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
    if ranges := re.findall(r"\[(\S+), (\S+)\]", said):
        assert np.array_equal(np.array(ranges, float), np.reshape(data.range, (-1, 2)))
    else:  # of the values themselves
        assert np.allclose(data.range, np.nanpercentile(np.repeat(expected.ravel(), COUNT), (0.1, 99.9)), rtol=1e-4)
    words = in_words(images, data)
    assert (words is None) == (images.channels == 3 and images.pixels.dtype == np.uint8)
    assert words is None or all(f"[{low:.6g}, {high:.6g}]" in words for low, high in np.reshape(data.range, (-1, 2)))


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


def test_how_a_declared_nodata_value_is_treated_is_said(folder, caplog):
    nodata = lambda text: {"extratags": [(42113, 2, len(text) + 1, text, True)]}  # noqa: E731
    photos = str(folder([tiff(values(4095, low=1), **nodata("7"))]))
    images = load(photos)
    assert images.kind == "16-bit TIFF with nodata 7" and not caplog.text
    assert "16-bit TIFF with nodata 7, 1 channel" in in_words(images, fitted(Data(source=photos), images))
    for content in (tiff(TWELVE, **nodata("0")), tiff(BYTES, **RGB, **nodata("0"))):
        for file in Path(photos).iterdir():
            file.write_bytes(content[1])
        caplog.clear()
        assert not np.isnan(load(photos).batch([0]).numpy().astype(float)).any()
        assert caplog.text.count("nodata 0 is kept as a value") == 1


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
