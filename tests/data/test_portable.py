"""`twinblock pack`: packed images in a folder that is a source by itself."""

import json
import os
import shutil
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from pictures import plain, put

import twinblock
from twinblock.core.errors import InputError
from twinblock.data import load
from twinblock.data.forms import Wanted
from twinblock.data.rows import Jpegs

COLUMNS = ("labels", "groups", "weights", "indicators", "aspect")


@pytest.fixture
def splits(tmp_path):
    """Two classes, two splits, images of two sizes, one of them unreadable."""
    for split, count in (("train", 30), ("test", 6)):
        for i in range(count):
            put(tmp_path, f"splits/{split}/{'ab'[i % 2]}/{i:02}.png", i)
    wide = tmp_path / "splits/train/a/wide.png"
    wide.write_bytes(plain(99, 24, 12))
    (tmp_path / "splits/train/b/bad.png").write_bytes(b"none")
    return str(tmp_path / "splits")


def same(a, b) -> None:
    """Of two sets: the same images, and all that is known of them."""
    assert len(a) == len(b) and a.classes == b.classes and a.classes_from == b.classes_from
    assert torch.equal(a.batch(range(len(a))), b.batch(range(len(b))))
    for name in COLUMNS:
        assert (getattr(a, name) is None) == (getattr(b, name) is None), name
        assert getattr(a, name) is None or np.array_equal(getattr(a, name), getattr(b, name)), name
    assert list(a.names) == list(b.names) and a.skipped == b.skipped and a.kind == b.kind
    assert (a.parts is None) == (b.parts is None) and (a.parts is None or a.parts.tolist() == b.parts.tolist())


def test_it_is_the_source_without_its_files_and_without_the_cache(splits, tmp_path, cache):
    before = {split: load(splits, split=split) for split in ("train", "test")}
    packed = twinblock.pack(splits, tmp_path / "packed")
    for split, images in before.items():
        same(load(str(packed), split=split), images)
    moved = tmp_path / "elsewhere"
    shutil.copytree(packed, moved)
    kept = {split: images.batch(range(len(images))) for split, images in before.items()}
    for gone in (splits, cache, packed):
        shutil.rmtree(gone)
    for split, images in kept.items():
        assert torch.equal(load(str(moved), split=split).batch(range(len(images))), images)
    assert not cache.exists()


def test_pixels_take_no_more_room_on_the_same_disk(splits, tmp_path, cache, monkeypatch):
    packed = twinblock.pack(splits, tmp_path / "packed")
    assert os.stat(packed / "train/pixels.u8").st_nlink == 2
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(18, "another disk")))
    copied = twinblock.pack(splits, tmp_path / "copied")
    assert os.stat(copied / "train/pixels.u8").st_nlink == 1
    same(load(str(copied)), load(str(packed)))


def test_what_a_table_says_is_kept(tmp_path):
    for i in range(8):
        put(tmp_path, f"{i}.png", i)
    rows = "".join(f"{i}.png,{'xy'[i % 2]},{i // 2},{i + 1}\n" for i in range(8))
    (tmp_path / "list.csv").write_text("path,label,group,weight\n" + rows)
    before = load(str(tmp_path / "list.csv"))
    assert before.groups is not None and before.weights is not None
    same(load(str(twinblock.pack(tmp_path / "list.csv", tmp_path / "packed"))), before)


def test_several_classes_an_image_are_kept(tmp_path):
    for i in range(4):
        put(tmp_path, f"photos/{i}.png", i)
    (tmp_path / "tags.csv").write_text("file,tags\n0.png,a;b\n1.png,b\n2.png,a\n3.png,a\n")
    fields = {"source": str(tmp_path / "photos"), "labels": str(tmp_path / "tags.csv"), "separator": ";"}
    packed = load(str(twinblock.pack(fields, tmp_path / "packed")))
    assert packed.indicators.tolist() == [[1, 1], [0, 1], [1, 0], [1, 0]] and packed.classes == ("a", "b")


def test_jpegs_and_tiles_are_kept(tmp_path):
    for i in range(3):
        put(tmp_path, f"photos/{i}.png", i)
    (tmp_path / "photos/large.png").write_bytes(plain(7, 64, 64))
    source = str(tmp_path / "photos")
    jpeg = load(str(twinblock.pack({"source": source, "jpeg": 80}, tmp_path / "jpeg")))
    assert isinstance(jpeg.pixels, Jpegs)
    same(jpeg, load(source, wanted=Wanted(jpeg=80)))
    tiles = load(str(twinblock.pack({"source": source, "tile": {"size": 8}}, tmp_path / "tiles")))
    assert tiles.tiled and len(tiles) == 64 + 3


def test_labels_can_be_left_out_or_given(splits, tmp_path):
    packed = str(twinblock.pack(splits, tmp_path / "packed"))
    assert load(packed, labels="none").labels is None
    with pytest.raises(InputError, match="has no columns"):
        load(packed, labels="species")
    with pytest.raises(InputError, match=r"data\.tile is for image files"):
        twinblock.pretrain("simclr", data={"source": packed, "tile": {"size": 8}}, out=tmp_path / "run", quiet=True)


def test_it_is_not_joined_with_others_and_not_seen_as_images(splits, tmp_path):
    packed = twinblock.pack(splits, tmp_path / "photos/packed")
    with pytest.raises(InputError, match="cannot be joined"):
        load([str(packed), splits])
    put(tmp_path, "photos/one.png", 1)
    assert list(load(str(tmp_path / "photos")).names) == ["one.png"]


@pytest.mark.parametrize("what", ["pixels.u8", "own-labels.npy", "meta.json", "names.u8"])
def test_damage_is_told_and_nothing_is_removed(splits, tmp_path, what, monkeypatch):
    packed = twinblock.pack(splits, tmp_path / "packed")
    moved = tmp_path / "moved"
    shutil.copytree(packed, moved)
    content = bytearray((moved / "test" / what).read_bytes())
    content[len(content) // 2] ^= 1
    (moved / "test" / what).write_bytes(content)
    before = sorted(path.name for path in (moved / "test").iterdir())
    with pytest.raises(InputError, match=r"is damaged: copy the folder once more, or pack again"):
        load(str(moved), split="test")
    assert sorted(path.name for path in (moved / "test").iterdir()) == before
    load(str(moved), split="train")


@pytest.mark.parametrize(
    "about", [5, {}, {"columns": 3, "classes": None, "classes_from": None}, {"columns": ["x"], "classes": 1}]
)
def test_a_folder_that_somebody_made_is_one_line(splits, tmp_path, about):
    packed = twinblock.pack(splits, tmp_path / "packed")
    line = json.loads((packed / "train/meta.json").read_bytes().split(b"\n")[0])
    text = json.dumps({**line, "portable": about}).encode()
    (packed / "train/meta.json").write_bytes(b"%s\n%08x\n" % (text, zlib.crc32(text)))
    with pytest.raises(InputError, match="is damaged"):
        load(str(packed))
    text = b"5"
    (packed / "train/meta.json").write_bytes(b"%s\n%08x\n" % (text, zlib.crc32(text)))
    with pytest.raises(InputError, match="there are no image files"):
        load(str(packed))


def test_damage_that_comes_later_is_told(splits, tmp_path, monkeypatch):
    from twinblock.data import store

    monkeypatch.setattr(store, "OPENED", 0)
    packed = twinblock.pack(splits, tmp_path / "packed")
    images = load(str(packed))
    content = np.fromfile(packed / "train/pixels.u8", np.uint8)
    content[-1] ^= 1
    shutil.copyfile(packed / "train/pixels.u8", tmp_path / "other")
    os.unlink(packed / "train/pixels.u8")
    content.tofile(packed / "train/pixels.u8")
    images = load(str(packed))
    with pytest.raises(InputError, match=r"packed image \d+ in .* is damaged: copy the folder once more"):
        images.batch(range(len(images)))
    assert (packed / "train/meta.json").exists()


def test_what_is_there_already_and_what_is_no_file_is_refused(splits, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="is there already"):
        twinblock.pack(splits, tmp_path / "there")
    with pytest.raises(InputError, match="no such folder"):
        twinblock.pack(tmp_path / "gone/", tmp_path / "packed")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"):
        twinblock.pack(splits, tmp_path / "file/packed")
    assert not (tmp_path / "packed").exists() and not list(tmp_path.glob("*.part"))


def test_the_command_packs_and_a_run_takes_it(splits, tmp_path):
    command = [
        sys.executable,
        "-m",
        "twinblock",
        "pack",
        f"data={splits}",
        "data.jpeg=90",
        f"out={tmp_path / 'packed'}",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{tmp_path / 'packed'}: 31 images of train, 6 images of test"
    run = twinblock.pretrain(
        "simclr", data={"source": str(tmp_path / "packed"), "batch": 8}, out=tmp_path / "run", quiet=True,
        encoder={"kind": "resnet10", "width": 8}, projector={"dims": [8, 4]}, train={"length": "2steps"},
    )  # fmt: skip
    assert run.result is not None and run.result["classes"] == 2
    short = subprocess.run(command[:-1], capture_output=True, text=True)
    assert short.returncode == 2 and short.stderr == "error: pack: give out=...\n"
