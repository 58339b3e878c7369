"""Packed pictures kept as JPEG: `data.jpeg`; and the side they are packed at: `data.stored`."""

import logging
import os
import shutil
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

import twinblock
from twinblock.config.data import Data
from twinblock.core.errors import InputError
from twinblock.data import load, packing, store
from twinblock.data.forms import Wanted
from twinblock.data.objects import images_from
from twinblock.data.rows import Jpegs
from twinblock.data.stores import cache as stores
from twinblock.evaluation.stored import _place

COUNT = 12


@pytest.fixture
def photos(tmp_path):
    """Parts of two photographs, in two folders, one of which is no image."""
    whole = load_sample_images().images
    for i in range(COUNT):
        file = tmp_path / "photos" / "ab"[i % 2] / f"{i:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(whole[i % 2][10 * i : 10 * i + 200, 20 * i : 20 * i + 260]).save(file)
    (tmp_path / "photos/a/99.png").write_bytes(b"none")
    return str(tmp_path / "photos")


@pytest.fixture(autouse=True)
def lenient(monkeypatch):
    monkeypatch.setattr(packing, "UNREADABLE", 0.2)


def kept(photos: str, quality: int | None = 90, **fields):
    return load(photos, size=112, wanted=Wanted(jpeg=quality, **fields))


def test_they_are_pillows_own_jpegs_of_the_pixels(photos):
    plain, images = kept(photos, None), kept(photos)
    assert isinstance(images.pixels, Jpegs) and images.pixels.shape == plain.pixels.shape == (COUNT, 128, 128, 3)
    rows = np.array([7, 0, 7, 11])
    for pixels, row in zip(images.batch(rows).numpy(), rows, strict=True):
        file = BytesIO()
        Image.fromarray(np.asarray(plain.pixels[row])).save(file, "JPEG", quality=90)
        assert np.array_equal(pixels, np.asarray(Image.open(file)))
    assert np.array_equal(images.pixels[3], images.pixels[2:5][1]) and images.pixels[3].shape == (128, 128, 3)
    assert images.labels.tolist() == plain.labels.tolist() and images.names[3] == plain.names[3]
    assert torch.equal(images.aspects(rows), plain.aspects(rows))
    assert [name for name, _ in images.skipped] == ["a/99.png"]


def test_a_lower_quality_takes_less_and_is_another_store(photos):
    sizes = {}
    for quality in (None, 95, 60):
        folder = kept(photos, quality).pixels.filename
        sizes[quality] = os.path.getsize(folder)
    assert sizes[60] < sizes[95] < sizes[None] / 3
    assert len(stores()) == 3 and {row["state"] for row in stores("verify")} == {"whole"}


def test_gray_ones_have_one_channel(photos):
    images = kept(photos, channels=1)
    plain = kept(photos, None, channels=1)
    assert images.batch([4]).shape == (1, 128, 128, 1)
    assert (images.batch([4]).int() - plain.batch([4]).int()).abs().float().mean() < 3


def test_tiles_may_be_jpegs(photos):
    tile = Data.model_validate({"tile": {"size": 64}}).tile
    plain, images = kept(photos, None, tile=tile), kept(photos, tile=tile)
    assert len(images) == len(plain) and images.parts.tolist() == plain.parts.tolist()
    assert (images.batch([9]).int() - plain.batch([9]).int()).abs().float().mean() < 6


def test_an_interrupted_packing_goes_on_to_the_same_bytes(photos, cache, monkeypatch):
    content = lambda: {path.name: path.read_bytes() for path in next(cache.glob("*-j90")).iterdir()}  # noqa: E731
    kept(photos)
    straight = content()
    shutil.rmtree(next(cache.glob("*-j90")))
    decoded = []

    class Stop(KeyboardInterrupt):
        pass

    def chunks(items, *how):
        for one in packing_decoded((item for _, item in zip(range(5), items, strict=False)), *how):
            decoded.append(len(one[1]))
            yield one
        raise Stop

    packing_decoded = packing._decoded
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_decoded", chunks)
        with pytest.raises(Stop):
            kept(photos)
    assert decoded == [5] and list(cache.glob("*-j90.*.part"))
    kept(photos)
    assert content() == straight


@pytest.mark.parametrize("at", ["a bit", "the end"])
def test_a_damaged_one_is_found_and_packed_anew(photos, monkeypatch, at):
    monkeypatch.setattr(store, "OPENED", 0)  # all are not compared at opening
    expected = kept(photos).batch(range(COUNT))
    images = kept(photos)
    file = images.pixels.filename
    if at == "a bit":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(InputError, match=r"packed image \d+ in .* is damaged: give the command again"):
        images.batch(range(COUNT))
    assert [row["state"] for row in stores()] == ["damaged"]
    assert torch.equal(kept(photos).batch(range(COUNT)), expected)


def test_a_file_that_becomes_shorter_is_told(photos):
    images = kept(photos)  # and all are compared
    os.truncate(images.pixels.filename, images.pixels.filename.stat().st_size - 20)
    with pytest.raises(InputError, match="is shorter than when the run began"):
        images.batch(range(COUNT))


def test_verify_finds_the_damage(photos):
    file = kept(photos).pixels.filename
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    assert [row["state"] for row in stores("verify")] == ["damaged"]


def test_kept_features_follow_from_the_file_and_its_time(photos):
    pixels = kept(photos).pixels
    assert _place(pixels)[0] == str(pixels.filename)


def test_what_is_no_picture_of_eight_bits_is_refused(tmp_path):
    Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20)).save(tmp_path / "deep.png")
    with pytest.raises(InputError, match=r"data.jpeg is for 8-bit pictures, and these are 16-bit PNG; leave it out"):
        load(str(tmp_path), wanted=Wanted(jpeg=90))


def test_other_images_are_kept_as_they_are_and_that_is_said(caplog):
    store.say_once.cache_clear()
    images_from(np.zeros((4, 8, 8, 3), np.uint8), wanted=Wanted(jpeg=90, stored=64))
    load("photodigits", wanted=Wanted(jpeg=90, fps=2.0, pages="first", max_pixels=10**6))
    said = [("stored", "data=<array of 4 images>"), ("jpeg", "data=<array of 4 images>")]
    said += [(field, "photodigits") for field in ("jpeg", "fps", "pages", "max_pixels")]
    lines = [record.message for record in caplog.records]
    assert lines == [f"data.{field} is for image files: {name} is kept as it is" for field, name in said]


def test_a_set_that_is_much_for_the_memory_says_what_is_smaller(photos, caplog, monkeypatch):
    monkeypatch.setattr(packing, "MUCH", 1e-9)
    with caplog.at_level(logging.WARNING):
        kept(photos, None)
    assert "data.jpeg=90 takes about a tenth" in caplog.text
    caplog.clear()
    kept(photos)
    assert not caplog.text
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(InputError, match=r"larger disk; data.jpeg=90 takes about a tenth"):
        kept(photos, None, stored=120)


def test_the_stored_side_is_that_asked_for(photos, caplog):
    assert kept(photos, None, stored=150).pixels.shape == (COUNT, 150, 150, 3)
    assert kept(photos, None, stored=400).pixels.shape == (COUNT, 260, 260, 3)  # that of the largest
    assert not caplog.records
    kept(photos, None, stored=100)
    assert "data.stored=100 is less than data.size=112" in caplog.text
    with pytest.raises(ValueError, match="tile and stored do not go together"):
        Data.model_validate({"stored": 64, "tile": {"size": 32}})


def test_a_run_on_jpegs_trains_goes_on_and_is_embedded(photos, tmp_path):
    fields = {"source": photos, "size": 32, "batch": 4, "jpeg": 90, "stored": 48}
    how = {
        "encoder": {"kind": "resnet10", "width": 8, "stem": "cifar"}, "projector": {"dims": [8, 4]},
        "train": {"length": "2epochs", "checkpoint_every": "1epochs"},
    }  # fmt: skip
    run = twinblock.pretrain("simclr", data=fields, out=tmp_path / "run", quiet=True, **how)
    assert run.config.data.jpeg == 90
    assert len(twinblock.embed(run).features) == COUNT
