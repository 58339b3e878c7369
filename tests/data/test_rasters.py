"""JPEG 2000 of any bits by rasterio, and whole slides by tiffslide: their own values, some rows at a time."""

import numpy as np
import pytest
import rasterio
import tifffile
from pictures import one_line, put

from twinblock.config.data import Data, Tile
from twinblock.core.errors import InputError
from twinblock.data import endings, geo, slides
from twinblock.data.readers import facts, planes
from twinblock.data.tiles import bands, tiles
from twinblock.data.training import training
from twinblock.data.values import fitted, in_words

pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")


def scene(channels: int, bits: int = 12, side: int = 200) -> np.ndarray:
    found = np.random.default_rng(channels).integers(0, 2**bits, (side, side + 30, channels))
    found.flat[0] = 2**bits - 1
    return found.astype(np.uint8 if bits == 8 else np.uint16)


def jp2(path, values: np.ndarray, bits: int = 12) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    (height, width, count), how = values.shape, {"QUALITY": 100, "REVERSIBLE": "YES", "NBITS": bits}
    how |= {"BLOCKXSIZE": 64, "BLOCKYSIZE": 64, "YCBCR420": "NO"}
    with rasterio.open(
        path, "w", driver="JP2OpenJPEG", height=height, width=width, count=count, dtype=values.dtype, **how
    ) as file:
        file.write(values.transpose(2, 0, 1))
    return str(path)


@pytest.mark.parametrize(("channels", "bits"), [(1, 12), (1, 15), (1, 16), (3, 12), (4, 12), (13, 15), (3, 8)])
def test_jpeg_2000_gives_its_own_values(tmp_path, channels, bits):
    values = scene(channels, bits)
    file = jp2(tmp_path / "a.jp2", values, bits)
    content = (tmp_path / "a.jp2").read_bytes()
    for given in (file, content):
        assert np.array_equal(planes(given)[0], values)
        assert facts(given).shape == (1, *values.shape) and facts(given).dtype == values.dtype
    parts = [part for part, _ in bands(file)]
    assert np.array_equal(np.concatenate(parts), values) and max(map(len, parts)) == 64


@pytest.mark.parametrize("bits", [12, 15, 16])
def test_grey_jpeg_2000_is_not_shifted_to_16_bits_without_rasterio(tmp_path, bits, monkeypatch):
    values = scene(1, bits)
    file = jp2(tmp_path / "a.jp2", values, bits)
    monkeypatch.setattr(geo, "installed", lambda: False)
    assert np.array_equal(planes(file)[0], values) and facts(file).shape == (1, *values.shape)


def test_a_folder_of_jpeg_2000_is_seen_and_cut_into_tiles(tmp_path, monkeypatch):
    values = scene(4, 12, 100)
    jp2(tmp_path / "scenes" / "a.jp2", values)
    jp2(tmp_path / "scenes" / "b.jp2", values[::-1])
    data = Data(source=str(tmp_path / "scenes"), tile=Tile(size=64))
    images = training(data)
    assert np.array_equal(images.batch([0])[0].numpy(), values[:64, :64])
    seen = fitted(data, images)
    assert seen.range == (0, 4095) and "16-bit JPEG2000, 4 channels" in in_words(images, seen)
    monkeypatch.setattr(geo, "installed", lambda: False)
    monkeypatch.setenv("TWINBLOCK_CACHE", str(tmp_path / "another"))
    with pytest.raises(InputError, match=r'needs: pip install "twinblock\[geo\]"') as error:
        training(Data(source=str(tmp_path / "scenes")))
    one_line(error)


# ---- whole slides


def svs(path, values: np.ndarray) -> None:
    """As Aperio's scanners write it: tiles, a thumbnail, a smaller level, and a label."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = values.shape[:2]
    said = f"Aperio Image Library v10\r\n{width}x{height} [0,0 {width}x{height}] (64x64) none|AppMag = 20|MPP = 0.5"
    tiled = {"photometric": "rgb", "tile": (64, 64), "metadata": None, "compression": "zlib"}
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        file.write(values, description=said, **tiled)
        file.write(values[::8, ::8], description=said, photometric="rgb", metadata=None, rowsperstrip=16)
        file.write(values[::4, ::4], description=said, subfiletype=1, **tiled)
        label = "Aperio Image Library v10\r\nlabel 30x20"
        file.write(values[:20, :30], description=label, subfiletype=1, photometric="rgb", metadata=None)


@pytest.fixture
def slide(tmp_path):
    values = scene(3, 8, 600)
    svs(tmp_path / "slides" / "a.svs", values)
    return values


def test_tiles_of_a_slide_are_its_own_pixels_by_rows(tmp_path, slide, monkeypatch):
    file = str(tmp_path / "slides" / "a.svs")
    assert facts(file).shape == (1, *slide.shape)
    for top, left, values in tiles(file, Tile(size=128, overlap=10), picture=True):
        assert np.array_equal(values, slide[top : top + 128, left : left + 128])
    assert [len(part) for part, _ in slides.bands(file)] == [256, 256, 88]
    images = training(Data(source=str(tmp_path / "slides"), tile=Tile(size=200)))
    assert len(images) == 3 * 4 and images.names[5] == "a.svs[200,200]"
    assert np.array_equal(images.batch([5])[0].numpy(), slide[200:400, 200:400])


def test_a_slide_needs_tiles_and_its_extra(tmp_path, slide, monkeypatch, caplog):
    folder = str(tmp_path / "slides")
    with pytest.raises(InputError, match=r'a whole-slide image; data.tile="{size: 256}" cuts it into tiles') as error:
        training(Data(source=folder))
    one_line(error)
    monkeypatch.setattr(endings, "reads_slides", lambda: False)
    with pytest.raises(InputError, match=r'1 .svs files: to read them, pip install "twinblock\[slides\]"') as error:
        training(Data(source=folder, tile=Tile(size=200)))
    one_line(error)
    put(tmp_path / "slides", "photo.png")
    assert len(training(Data(source=folder))) == 1 and "1 .svs files are not read; to read them, pip" in caplog.text
