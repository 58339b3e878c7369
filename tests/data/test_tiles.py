"""Tiles are the image's own pixels, wherever they lie in the file, and take memory for a band alone."""

import io

import numpy as np
import pytest
import tifffile
from PIL import Image

from twinblock.config.schema import Tile
from twinblock.data.tiles import starts, tiles

WAYS = [
    {"tile": (128, 128)},
    {"rowsperstrip": 50},
    {"rowsperstrip": 1000},
    {"tile": (64, 96), "planarconfig": "separate"},
    {"rowsperstrip": 7, "planarconfig": "separate"},
    {"tile": (128, 128), "compression": "zlib", "predictor": True},
]


def scan(channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4096, (700, 530, channels)).astype(np.uint16)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("overlap", [0, 40])
def test_a_tile_is_a_piece_of_the_image(tmp_path, way, overlap):
    image, file = scan(), str(tmp_path / "scan.tif")
    planar = way.get("planarconfig") == "separate"
    tifffile.imwrite(file, image.transpose(2, 0, 1) if planar else image, photometric="rgb", **way)
    places = set()
    for top, left, values in tiles(file, Tile(size=200, overlap=overlap)):
        assert (values == image[top : top + 200, left : left + 200]).all()
        places.add((top, left))
    step = 200 - overlap
    rows, columns = ({*range(0, n - 199, step), n - 200} for n in (700, 530))
    assert places == {(top, left) for top in rows for left in columns}


def test_every_pixel_is_in_a_tile():
    for length in range(20, 60):
        for overlap in range(20):
            seen = np.zeros(length, bool)
            for start in starts(length, 20, 20 - overlap):
                seen[start : start + 20] = True
            assert seen.all() and start + 20 == length


def test_other_formats_are_cut_alike():
    image = scan()
    picture = (image >> 4).astype(np.uint8)
    png = io.BytesIO()
    Image.fromarray(picture).save(png, "PNG")
    for top, left, values in tiles(png.getvalue(), Tile(size=256)):
        assert (values == picture[top : top + 256, left : left + 256]).all()


def test_empty_tiles_are_left_out():
    image = np.full((400, 400, 1), 1000, np.uint16)
    image[200:, 200:] = np.random.default_rng(0).integers(0, 4096, (200, 200, 1))
    cut = [(top, left) for top, left, _ in tiles(image, Tile(size=200, skip_empty=10))]
    assert cut == [(200, 200)]
    assert len(list(tiles(image, Tile(size=200)))) == 4


def test_only_a_band_is_held(tmp_path, monkeypatch):
    """Of an image of 20 000 rows, no array is larger than a tile and two strips."""
    file, largest = str(tmp_path / "long.tif"), 0
    tifffile.imwrite(file, np.zeros((20_000, 300, 1), np.uint8), rowsperstrip=64)
    concatenate = np.concatenate

    def watched(parts):
        nonlocal largest
        largest = max(largest, sum(map(len, parts)))
        return concatenate(parts)

    monkeypatch.setattr(np, "concatenate", watched)
    assert sum(1 for _ in tiles(file, Tile(size=256))) == 158
    assert largest <= 256 + 2 * 64


@pytest.mark.parametrize(("shape", "said"), [((100, 300, 1), "smaller than a tile of 200"), ((2, 300, 300), "pages")])
def test_what_cannot_be_cut_says_why(tmp_path, shape, said):
    file = str(tmp_path / "small.tif")
    tifffile.imwrite(file, np.zeros(shape, np.uint16), photometric="minisblack")
    with pytest.raises(ValueError, match=said):
        list(tiles(file, Tile(size=200)))
