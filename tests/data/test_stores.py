"""What the cache holds: `twinblock cache`."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from pictures import one_line, plain, put

import twinblock
from twinblock.core.errors import InputError
from twinblock.data import load, locks, packing, store
from twinblock.data.packing import packed
from twinblock.data.store import Encoded
from twinblock.data.stores import cache as stores


def source(values, key="0", name="some"):
    items = [(f"{i}.png", plain(value), value) for i, value in enumerate(values)]
    return Encoded(name, key * 32, len(values), lambda: iter(items), lambda: [plain(0)])


def test_stores_are_listed_by_source_size_and_date(tmp_path, cache):
    put(tmp_path, "photos/a.png", 1)
    load(str(tmp_path / "photos"))
    packed(source([1, 2, 3]))
    (cache / "cifar10").mkdir()  # a download
    rows = {row["source"]: row for row in twinblock.cache()}
    assert set(rows) == {"some", str(tmp_path / "photos")}
    assert (rows["some"]["images"], rows["some"]["state"]) == (3, "whole")
    folder = cache / rows["some"]["name"]
    assert rows["some"]["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    assert rows["some"]["date"][:4] == "20" + rows["some"]["date"][2:4] and ":" in rows["some"]["date"]


def test_a_relative_source_is_listed_by_its_whole_path(tmp_path, monkeypatch):
    put(tmp_path, "photos/a.png", 1)
    monkeypatch.chdir(tmp_path)
    load("photos")
    assert [row["source"] for row in stores()] == [str(tmp_path / "photos")]
    assert stores("clear", "photos")[0]["state"] == "removed"
    assert stores() == []


def test_an_empty_cache_is_no_error():
    assert stores() == stores("verify") == stores("clear") == []


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def _zero(path: Path, at: int, length: int) -> None:
    content = bytearray(path.read_bytes())
    content[at : at + length] = bytes(length)
    path.write_bytes(content)


def damages(here: Path, other: Path):
    """What may become of a store, `other` being one of as many images of the same size."""
    size = 8 * 8 * 3

    def swapped():
        pixels = np.fromfile(here / "pixels.u8", np.uint8).reshape(-1, size)
        pixels[[5, 300]] = pixels[[300, 5]]
        pixels.tofile(here / "pixels.u8")

    return {
        "a flipped bit": lambda: _flip(here / "pixels.u8", 333 * size + 7),
        "zeros": lambda: _zero(here / "pixels.u8", 201 * size, size),
        "two images in each other's place": swapped,
        "the pixels of another": lambda: shutil.copy(other / "pixels.u8", here),
        "the names of another": lambda: shutil.copy(other / "names.u8", here),
        "the ends of names of another": lambda: shutil.copy(other / "names.npy", here),
        "the labels of another": lambda: shutil.copy(other / "labels.npy", here),
        "the aspects of another": lambda: np.save(here / "aspect.npy", np.full(400, 2, np.float32)),
        "pixels and checksums of another": lambda: [shutil.copy(other / n, here) for n in ("pixels.u8", "sums.npy")],
        "all of another": lambda: [shutil.copy(path, here) for path in other.iterdir()],
        "cut off": lambda: os.truncate(here / "pixels.u8", 399 * size),
    }


@pytest.mark.parametrize("damage", list(damages(Path(), Path())))
def test_verify_finds_every_damage_and_the_next_use_packs_anew(cache, damage, monkeypatch):
    monkeypatch.setattr(store, "OPENED", 0)  # as of a store larger than what is compared at opening
    values = [i % 200 for i in range(400)]
    packed(source(values))
    other = Encoded(
        "other", "1" * 32, 400, lambda: ((f"{i} b.png", plain(7), 1) for i in range(400)), lambda: [plain(0)]
    )
    packed(other)
    here, there = cache / f"{'0' * 32}-kept", cache / f"{'1' * 32}-kept"
    assert [row["state"] for row in stores("verify")] == ["whole", "whole"]
    damages(here, there)[damage]()
    assert [row["state"] for row in stores("verify")] == ["damaged", "whole"]
    assert [row["state"] for row in stores()] == ["damaged", "whole"]
    images = packed(source(values))
    assert images.pixels[:, 0, 0, 0].tolist() == values
    assert (images.labels.tolist(), images.names[399]) == (values, "399.png")
    assert [row["state"] for row in stores("verify")] == ["whole", "whole"]


def test_what_is_unfinished_is_listed_and_cleared(cache, monkeypatch):
    class Stop(KeyboardInterrupt):
        pass

    monkeypatch.setattr(packing, "finish", lambda *_: (_ for _ in ()).throw(Stop))
    with pytest.raises(Stop):
        packed(source([1, 2]))
    for action in ("list", "verify"):
        (row,) = stores(action)
        assert (row["state"], row["source"], row["images"]) == ("unfinished", "some", 2)
    assert stores("clear")[0]["state"] == "removed"
    assert not list(cache.glob("*.part"))


def test_clear_takes_what_it_is_given_and_nothing_else(cache):
    for key in "01":
        packed(source([1, 2], key, f"source {key}"))
    (cache / "cifar10").mkdir()
    (cache / "notes.txt").touch()
    (cache / ("a" * 32)).mkdir()  # of that form, nearly
    assert [row["name"] for row in stores("clear", "source 1")] == [f"{'1' * 32}-kept"]
    assert [row["source"] for row in stores()] == ["source 0"]
    stores("clear")
    assert sorted(path.name for path in cache.iterdir() if path.suffix != ".lock") == ["a" * 32, "cifar10", "notes.txt"]


def test_images_in_use_stay_usable_when_they_are_cleared():
    images = packed(source([1, 2]))
    stores("clear")
    assert images.batch([1])[0, 0, 0, 0] == 2


def test_a_store_that_is_being_packed_is_not_cleared(cache):
    packed(source([1, 2]))
    with locks.locked(cache / f"{'0' * 32}-kept.lock"):
        assert stores("clear")[0]["state"] == "is being packed"
    assert stores()[0]["state"] == "whole"


def test_a_store_of_an_earlier_version_is_called_so(cache):
    packed(source([1, 2]))
    (path,) = cache.glob("*/meta.json")
    fields = json.loads(path.read_bytes().split(b"\n")[0])
    del fields["key"], fields["source"]
    text = json.dumps(fields).encode()
    path.write_bytes(b"%s\n%08x\n" % (text, store.crc32(text)))
    assert [row["state"] for row in stores("verify")] == ["of another version"]
    assert path.exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [(("clean",), "did you mean clear"), (("x",), "There are list, verify, clear"), (("clear", "gone"), "called gone")],
)
def test_what_cannot_be_meant_is_one_line(given, words):
    with pytest.raises(InputError, match=words) as error:
        stores(*given)
    one_line(error)
