"""Packed images that are damaged, killed, full or older: made again, left alone, or said."""

import subprocess
import sys
from collections import namedtuple

import numpy as np
import pytest
from pictures import encoded, one_line, plain, values

from twinblock.core.errors import InputError
from twinblock.data import packing, store, take
from twinblock.data.packing import packed

FILES = ("pixels.u8", "meta.json", "labels.npy", "aspect.npy", "sums.npy", "names.u8", "names.npy")


@pytest.mark.parametrize("victim", FILES)
@pytest.mark.parametrize("damage", ["cut", "flipped", "zeroed", "longer", "empty", "gone"])
def test_a_damaged_store_is_made_again_and_this_is_said(cache, victim, damage, caplog):
    source = encoded([plain(1), plain(2), plain(3)], labels=[1, 0, 1])
    packed(source)
    (path,) = cache.glob(f"*/{victim}")
    content = path.read_bytes()
    middle = len(content) * 2 // 3
    flipped = content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]
    bad = {"cut": content[:-1], "flipped": flipped, "zeroed": bytes(len(content)), "longer": content * 2, "empty": b""}
    path.write_bytes(bad[damage]) if damage in bad else path.unlink()
    caplog.clear()
    images = packed(source)
    assert (values(images), images.labels.tolist()) == ([1, 2, 3], [1, 0, 1])
    assert list(images.names) == ["000.png", "001.png", "002.png"]
    (line,) = caplog.messages
    assert "damaged" in line and "anew" in line
    packed(source)
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(
    "content", ["[]", "null", "{}", "3", "[" * 100_000, '{"shape": null, "skipped": null}', "\x00"]
)
def test_a_store_whose_facts_are_nonsense_is_made_again(cache, content):
    source = encoded([plain(1), plain(2)])
    packed(source)
    (path,) = cache.glob("*/meta.json")
    path.write_text(content)
    assert values(packed(source)) == [1, 2]


def test_labels_of_another_length_or_type_are_never_used(cache):
    source = encoded([plain(1), plain(2)], labels=[0, 1])
    for labels in (np.zeros(5, np.int64), np.zeros(2), np.array(["a", "b"]), np.zeros((2, 2), np.int64)):
        packed(source)
        (path,) = cache.glob("*/labels.npy")
        np.save(path, labels)
        assert packed(source).labels.tolist() == [0, 1]


def test_damage_that_the_opening_missed_ends_at_its_first_use_and_the_next_start_packs_anew(cache, monkeypatch):
    monkeypatch.setattr(store, "OPENED", 0)  # as in a store that is larger than what is compared then
    source = encoded([plain(i) for i in range(9)])
    packed(source)
    (path,) = cache.glob("*/pixels.u8")
    content = bytearray(path.read_bytes())
    content[192 * 5 + 100] ^= 1
    path.write_bytes(content)
    images = packed(source)
    assert images.batch([4, 6]).shape == (2, 8, 8, 3)
    part = take(images, np.array([8, 5]))
    with pytest.raises(InputError, match=r"packed image 5 in .* is damaged.*packs all anew") as error:
        part.batch([1])
    one_line(error)
    assert packed(source).batch([5])[0, 0, 0, 0] == 5


def test_stores_of_an_older_format_are_left_alone(monkeypatch):
    parts = [plain(1), plain(2)]
    monkeypatch.setattr(store, "FORMAT", store.FORMAT - 1)
    old = encoded(parts)
    monkeypatch.undo()
    assert encoded(parts).key != old.key


def test_a_build_that_fails_leaves_nothing(cache, monkeypatch):
    source = encoded([plain(1), plain(2)])
    with monkeypatch.context() as patch:
        patch.setattr(packing, "finish", lambda *_: (_ for _ in ()).throw(RuntimeError))
        with pytest.raises(RuntimeError):
            packed(source)
    assert [path for path in cache.iterdir() if path.is_dir()] == []
    assert len(packed(source)) == 2


KILLED = """
import sys, time
from twinblock.data import packing, store
def items():
    for i in range(3000):
        yield str(i), open(sys.argv[1], "rb").read(), -1
    print("half", flush=True)
    time.sleep(60)
packing.packed(store.Encoded("killed", "killed", 6000, items, lambda: [sys.argv[1]]))
"""


def test_a_killed_build_leaves_nothing_that_is_used_as_a_store(cache, tmp_path):
    (tmp_path / "a.png").write_bytes(plain(1))
    command = [sys.executable, "-c", KILLED, str(tmp_path / "a.png")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "half\n"
            (temporary,) = cache.glob("*.part")
            packed(encoded([plain(1)]))
        finally:
            process.kill()
    assert store.read(cache / "killed-kept", "killed", None) is None
    packed(encoded([plain(2)]))
    assert temporary.exists()  # the next packing of this source goes on there
    (cache / "killed-kept").mkdir()  # as when another user has finished it
    packed(encoded([plain(3)]))
    assert not temporary.exists()


def test_a_full_disk_is_told_before_the_work(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: usage(100, 0, 100))
    with pytest.raises(InputError, match=r"2 images need .* GB in .*TWINBLOCK_CACHE"):
        packed(encoded([plain(1), plain(2)]))


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TWINBLOCK_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cannot write packed images to .*TWINBLOCK_CACHE") as error:
        packed(encoded([plain(1)]))
    assert "\n" not in str(error.value)
