"""Tiles are the image's own pixels, wherever they lie in the file, and take memory for a band alone."""

import io
import json
import weakref
from zlib import crc32

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageOps

import twinblock
from twinblock.config.data import Data, Tile
from twinblock.core.errors import InputError
from twinblock.data import packing, tiff
from twinblock.data.tiles import starts, tiles
from twinblock.data.training import training
from twinblock.evaluation.features import by_image
from twinblock.evaluation.labelled import LabelledSets, labelled

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


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tile_of_an_image_that_lies_on_its_side_is_upright(tmp_path, monkeypatch, way, orientation):
    """As Pillow turns an image with this tag of Exif. It is read in parts of a seventh at most."""
    image, file = scan(), str(tmp_path / "scan.tif")
    planar = way.get("planarconfig") == "separate"
    turn = {"extratags": [(274, 3, 1, orientation, True)]}
    tifffile.imwrite(file, image.transpose(2, 0, 1) if planar else image, photometric="rgb", **way, **turn)
    whole = np.arange(image.shape[0] * image.shape[1], dtype=np.int32).reshape(image.shape[:2])
    picture = Image.fromarray(whole)
    picture.getexif()[274] = orientation
    upright = image.reshape(-1, 3)[np.asarray(ImageOps.exif_transpose(picture))]
    monkeypatch.setattr(tiff, "HELD", image.nbytes // 7)
    parts = [part for part, _ in tiff.bands(file)]
    assert np.array_equal(np.concatenate(parts), upright)
    if way.get("rowsperstrip") != 1000 or orientation >= 5:
        assert max(part.nbytes for part in parts) <= image.nbytes // 4
    for top, left, values in tiles(file, Tile(size=200)):
        assert (values == upright[top : top + 200, left : left + 200]).all()


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
    for as_picture in (False, True):
        for top, left, values in tiles(png.getvalue(), Tile(size=256), as_picture):
            assert (values == picture[top : top + 256, left : left + 256]).all()


def test_a_palette_is_seen_in_its_colours(tmp_path):
    picture = Image.fromarray((scan() >> 4).astype(np.uint8)).quantize(16)
    picture.save(tmp_path / "palette.tif")
    colours = np.asarray(picture.convert("RGB"))
    for top, left, values in tiles(str(tmp_path / "palette.tif"), Tile(size=256), picture=True):
        assert (values == colours[top : top + 256, left : left + 256]).all()


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


# ---- a run on tiles

SMALL = [
    *("encoder.kind=resnet10", "encoder.width=8", "data.batch=8", "train.length=1steps", "projector.dims=[16,8]"),
    *("train.precision=fp32", "data.size=16"),
]


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Ten 16-bit scans of two classes, six tiles each, two of the first one empty; one file is smaller than a tile."""
    folder = tmp_path_factory.mktemp("data") / "slides"
    for i in range(10):
        (folder / f"class{i % 2}").mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(i).integers(100 * (i + 1), 100 * (i + 1) + 50, (64, 96)).astype(np.uint16)
        if i == 0:
            values[:32, :64] = 7
        tifffile.imwrite(folder / f"class{i % 2}" / f"{i}.tif", values)
    tifffile.imwrite(folder / "class0" / "small.tif", np.zeros((20, 96), np.uint16))
    return folder


def data(slides, **tile) -> Data:
    return Data(source=str(slides), tile=Tile(size=32, **tile), size=16)


def test_images_are_tiles_of_their_own_values(slides, caplog):
    images = training(data(slides, skip_empty=1))
    assert "2 of 60 tiles are empty and left out" in caplog.text
    assert len(images) == 58 and images.tiled and len(np.unique(images.groups)) == 10
    assert images.pixels.dtype == np.uint16 and images.pixels.shape[1:] == (32, 32, 1)
    assert [name for name, _ in images.skipped] == ["class0/small.tif"]
    for i in range(0, 58, 5):
        name, _, place = images.names[i].partition("[")
        top, left = map(int, place.rstrip("]").split(","))
        held = images.batch([i]).numpy()[0, ..., 0]
        assert (held == tifffile.imread(slides / name)[top : top + 32, left : left + 32]).all()


def test_tiles_of_an_image_are_tested_together_and_judged_as_one(slides):
    train, test = labelled(data(slides), seed=0)
    assert not set(train.groups) & set(test.groups)
    sets = LabelledSets.of(train, test)
    assert len(sets.train_labels) + len(sets.test_labels) == 10
    files = [name.partition("[")[0] for name in test.names]
    values = test.batch(range(len(test))).numpy().reshape(len(test), -1).mean(1)
    expected = [values[[one == file for one in files]].mean() for file in sorted(set(files))]
    got = by_image(torch.from_numpy(values)[:, None].split(4), test)[:, 0]
    assert np.allclose(got, expected)
    assert [int(file[5]) for file in sorted(set(files))] == sets.classes[sets.test_labels].tolist()


def test_features_of_tiles_are_added_up_as_they_come(slides):
    images, alive = training(data(slides)), []

    def rows():
        for i in range(0, len(images), 4):
            part = torch.ones(min(4, len(images) - i), 3)
            alive.append(weakref.ref(part))
            yield part
            del part
            assert sum(one() is not None for one in alive) <= 1

    assert torch.equal(by_image(rows(), images), torch.ones(10, 3))


def test_opening_tiles_reads_no_name(slides, monkeypatch):
    """Where each tile lies is a column of the store. One that was packed without it still opens."""
    first = training(data(slides))

    def never(*_):
        raise AssertionError("a name is read")

    with monkeypatch.context() as patch:
        patch.setattr(packing, "parts_of", never)
        again = training(data(slides))
    assert again.parts.dtype.names == ("group", "top", "left")
    assert [f"[{top},{left}]" for _, top, left in again.parts] == [name[name.index("[") :] for name in again.names]
    files = [name.partition("[")[0] for name in again.names]
    assert [sorted(set(files))[group] for group in again.groups] == files
    (store,) = (path.parent for path in packing.cache().glob("*/meta.json"))
    meta = json.loads((store / "meta.json").read_bytes().split(b"\n")[0])
    del meta["files"]["parts.npy"]
    (store / "parts.npy").unlink()
    line = json.dumps(meta).encode()
    (store / "meta.json").write_bytes(b"%s\n%08x\n" % (line, crc32(line)))
    old = training(data(slides))
    assert not (store / "parts.npy").exists()
    for images in (again, old):
        assert (images.groups == first.groups).all() and (images.parts == first.parts).all()


def test_a_run_on_tiles_trains_evaluates_and_embeds(slides, tmp_path):
    overrides = [*SMALL, "data.tile={size: 32}"]
    run = twinblock.pretrain("simclr", data=str(slides), out=tmp_path / "run", overrides=overrides, quiet=True)
    assert twinblock.evaluate(run, quiet=True)
    assert run.evaluation["train"] + run.evaluation["test"] == 10
    embeddings = twinblock.embed(run, out=tmp_path / "run" / "embeddings.npz")
    table = np.load(tmp_path / "run" / "embeddings.npz")
    assert len(embeddings.features) == 60
    assert sorted({*zip(table["top"].tolist(), table["left"].tolist(), strict=True)}) == [
        (top, left) for top in (0, 32) for left in (0, 32, 64)
    ]
    assert set(table["name"]) == {f"class{i % 2}/{i}.tif" for i in range(10)}
    with pytest.raises(InputError, match="published: these probes see whole images"):
        twinblock.evaluate(run, published=True, quiet=True)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tile": {"size": 32, "overlap": 32}}, "overlap: 32 should be less than the tile's size"),
        ({"tile": {"size": 4}}, "data.tile.size"),
        ({"tile": {"size": 32, "skip_empty": 1e6}}, "all tiles are empty; lower data.tile.skip_empty"),
        ({"source": "photodigits", "tile": {"size": 32}}, "data.tile is for image files, not for photodigits"),
    ],
)
def test_bad_tiles_are_one_line(slides, tmp_path, fields, said):
    given = {"source": str(slides), "size": 16, **fields}
    with pytest.raises(InputError, match=said) as error:
        twinblock.pretrain("simclr", data=given, out=tmp_path / "run", overrides=SMALL[:-1], quiet=True)
    assert "\n" not in str(error.value)
