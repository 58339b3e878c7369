"""Packing and caching of images."""

import os
import threading
import time
import zlib

import numpy as np
import pytest
import torch
from pictures import encode, encoded, huge, plain, truncated, values

from twinblock.core import console as report
from twinblock.core.errors import InputError
from twinblock.data import Names, packing, store, take
from twinblock.data.decode import decode, quiet, reason
from twinblock.data.forms import Form
from twinblock.data.packing import packed
from twinblock.data.store import Encoded

# ---- stored size


def test_small_images_of_one_size_are_kept_as_they_are():
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    images = packed(encoded([encode(picture)] * 3), size=224)
    assert np.array_equal(images.pixels, np.stack([picture] * 3))
    assert images.aspect is None


@pytest.mark.parametrize(("size", "side"), [(None, 256), (224, 256), (56, 64)])
def test_images_of_mixed_size_are_squashed_to_a_square(size, side):
    wide = np.zeros((300, 600, 3), np.uint8)
    wide[:, 300:] = 255
    tall = wide.transpose(1, 0, 2)
    images = packed(encoded([encode(wide), encode(tall)]), size=size)
    assert images.pixels.shape == (2, side, side, 3)
    assert images.aspect.dtype == np.float32
    assert images.aspect.tolist() == [2, 0.5]
    half, near = side // 2, side // 16
    assert images.pixels[0, :, : half - near].max() == 0  # nothing is cut off: the halves stay halves
    assert images.pixels[0, :, half + near :].min() == 255
    assert images.pixels[1, : half - near].max() == 0
    assert images.pixels[1, half + near :].min() == 255


@pytest.mark.parametrize(("width", "height"), [(200, 200), (200, 150), (20, 40)])
def test_images_are_not_enlarged_beyond_the_largest(width, height):
    images = packed(encoded([plain(5, width, height), plain(5, 10, 10)]))
    assert images.pixels.shape[1:3] == (max(width, height),) * 2
    if width > packing.KEEP:  # of one same size, too
        assert packed(encoded([plain(6, width, height)] * 2)).pixels.shape[1:3] == (max(width, height),) * 2


def test_large_images_of_one_square_size_have_no_aspect():
    images = packed(encoded([plain(1, 300, 300), plain(2, 300, 300)]))
    assert images.pixels.shape == (2, 256, 256, 3)
    assert images.aspect is None


def test_an_odd_size_that_the_sample_missed_is_resized_with_its_aspect():
    files = [plain(1, 16, 16), plain(2, 16, 16), plain(3, 40, 20)]
    source = encoded(files)
    images = packed(Encoded(source.name, source.key, 3, source.items, lambda: files[:2]))
    assert images.pixels.shape == (3, 16, 16, 3)
    assert images.pixels[2].min() == images.pixels[2].max() == 3
    assert images.aspect.tolist() == [1, 1, 2]


# ---- unreadable files


def test_unreadable_files_are_left_out_and_rows_stay_aligned(tmp_path):
    bad = {3: truncated("PNG"), 20: b"", 41: b"hello, not an image", 42: truncated("JPEG"), 77: huge()}
    files = [bad.get(i, plain(i)) for i in range(120)]
    files[99] = str(tmp_path / "gone.png")
    images = packed(encoded(files, labels=list(range(120)), classes=tuple(map(str, range(120)))))
    good = [i for i in range(120) if i not in (*bad, 99)]
    assert images.labels.tolist() == good
    assert images.pixels[:, 0, 0, 0].tolist() == good
    reasons = dict(images.skipped)
    assert list(reasons) == [f"{i:03}.png" for i in (3, 20, 41, 42, 77, 99)]
    assert "truncated" in reasons["003.png"]
    assert "truncated" in reasons["042.png"]
    assert reasons["020.png"] == "empty file"
    assert reasons["041.png"] == "not an image of a known format"
    assert "pixels" in reasons["077.png"]
    assert reasons["099.png"] == "No such file or directory"
    assert packed(encoded(files, labels=list(range(120)))).skipped == images.skipped  # from the cache, too


def test_more_than_five_percent_unreadable_is_an_error(cache):
    packed(encoded([plain(1)] * 19 + [b"x"]))  # exactly 5 %
    with pytest.raises(InputError, match=r"some: 2 of 39 .*5%: 037\.png \(not an image.*\), 038\.png") as error:
        packed(encoded([plain(1)] * 37 + [b"x", b"y"]))
    (report,) = cache.glob("*.skipped.txt")
    assert str(report) in str(error.value)
    assert len(report.read_text().splitlines()) == 2


def test_reasons_and_names_stay_on_one_line():
    assert reason(OSError("two\nlines")) == "two\\nlines"
    source = encoded([plain(1)] * 30)
    items = [*source.items(), ("a\nb \udcff [red].png", b"", -1)]
    images = packed(Encoded("some", "key", 31, lambda: iter(items), source.sample))
    assert images.skipped == (("a\\nb \\udcff [red].png", "empty file"),)


# ---- names


NAMES = ["é.png", "a\nb.png", "sub/=1+1.png", "\udcff.png", " .png", "日本.png"]


def test_names_are_read_as_they_are_looked_at():
    names = Names.of(NAMES)
    assert list(names) == NAMES
    assert (len(names), names[-1], names[np.int64(1)]) == (6, "日本.png", "a\nb.png")
    assert list(names[np.array([5, 0, 5])]) == ["日本.png", "é.png", "日本.png"]
    assert list(names[1:3]) == NAMES[1:3]
    assert names[torch.tensor(5)] == names[np.array(5)] == "日本.png"
    assert list(names[torch.tensor([5, 0])]) == list(names[[5, 0]]) == ["日本.png", "é.png"]
    with pytest.raises(IndexError):
        names[6]


def test_names_stand_beside_the_pixels_of_the_same_file(cache):
    files, names = [plain(i) for i in range(120)], [f"{i} {NAMES[i % 6]}" for i in range(120)]
    files[3] = b"not an image"
    items = list(zip(names, files, [-1] * 120, strict=True))
    source = Encoded("some", "key", 120, lambda: iter(items), lambda: files)
    for images in (packed(source), packed(source)):  # the second time from the cache
        shown = [int(name.split()[0]) for name in images.names]
        assert shown == images.pixels[:, 0, 0, 0].tolist() == [i for i in range(120) if i != 3]
        assert images.names[3] == names[4]
        some = take(images, np.array([7, 2]))
        assert list(some.names) == [names[8], names[2]]
        assert some.batch([1, 0])[:, 0, 0, 0].tolist() == [2, 8]
        assert some.pixels is images.pixels  # a part of a set that is larger than memory costs none
        assert take(some, np.array([1])).batch([0])[0, 0, 0, 0] == 2
        assert len(some) == 2
        assert isinstance(images.names.text, np.memmap)


# ---- the cache


def test_images_are_decoded_once(monkeypatch):
    source = encoded([plain(i) for i in range(9)], labels=[0, 1, 2] * 3, classes=("a", "b", "c"))
    first = packed(source)
    monkeypatch.setattr(packing, "decode", lambda *_: pytest.fail("decoded again"))
    again = packed(source)
    assert isinstance(again.pixels, np.memmap)
    assert np.array_equal(again.pixels, first.pixels)
    assert np.array_equal(again.labels, first.labels)
    assert again.classes == ("a", "b", "c")


def test_labels_that_are_all_unknown_are_no_labels():
    images = packed(encoded([plain(1), plain(2)], classes=("a", "b")))
    assert images.labels is None
    assert images.classes is None


def test_an_image_is_compared_once(monkeypatch):
    images = packed(encoded([plain(i) for i in range(9)]))
    images.check.seen[:] = False
    sums = []
    monkeypatch.setattr(store, "crc32", lambda data: sums.append(1) or zlib.crc32(data))
    for _ in range(3):
        images.batch([2, 7])
    assert len(sums) == 2


def test_pixels_are_on_the_disk_before_the_store_has_its_name(cache, monkeypatch):
    synced, fsync = [], store.os.fsync

    def record(handle):
        synced.append(
            (os.readlink(f"/proc/self/fd/{handle}"), os.fstat(handle).st_size, len(list(cache.glob("*-kept"))))
        )
        fsync(handle)

    monkeypatch.setattr(store.os, "fsync", record)
    packed(encoded([plain(1), plain(2)]))
    ((name, size, stores),) = synced
    assert name.endswith("pixels.u8") and (size, stores) == (2 * 192, 0)


def test_chunks_of_many_decoders_stay_in_order():
    images = packed(encoded([np.full((120, 120, 3), i % 256, np.uint8) for i in range(1500)], labels=list(range(1500))))
    assert images.labels.tolist() == list(range(1500))
    assert values(images) == [i % 256 for i in range(1500)]
    assert list(images.names[-2:]) == ["1498.png", "1499.png"]


def test_a_store_without_names_has_none(cache):
    (cache / "a").mkdir(parents=True)
    with store.Pixels(cache / "a") as out:
        out.write(np.zeros((2, 4, 4, 3), np.uint8))
    store.finish(cache / "a", (2, 4, 4, 3), store.Columns([-1, -1], np.ones(2), out.sums))
    assert store.read(cache / "a", "old", None).names is None  # as STL-10's


def test_threads_that_ask_at_once_build_once(monkeypatch):
    decoded, source = [], encoded([plain(i) for i in range(40)])

    def slow(*arguments):
        decoded.append(1)
        time.sleep(0.005)
        return decode(*arguments)

    monkeypatch.setattr(packing, "decode", slow)
    results = []
    threads = [threading.Thread(target=lambda: results.append(packed(source))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(images) for images in results] == [40] * 4
    assert len(decoded) == 40


def test_only_a_few_encoded_images_are_in_memory_at_a_time():
    drawn = 0

    def items():
        nonlocal drawn
        for i in range(100_000):
            drawn = i + 1
            yield str(i), file, -1

    file = plain(1)
    with quiet():
        chunks = packing._decoded(items(), (8, 8, 3), Form())
        first = next(chunks)
        chunks.close()
    assert len(first[0]) <= 1024
    assert drawn <= 9 * 1024


def test_progress_shows_only_where_it_takes_long(capsys, monkeypatch):
    packed(encoded([plain(1)] * 3))
    assert capsys.readouterr() == ("", "")
    clock = iter(range(0, 10_000, 2))
    monkeypatch.setattr(report.time, "monotonic", lambda: next(clock))
    packed(encoded([plain(2)] * 3))
    out, err = capsys.readouterr()
    assert out == ""
    assert "packing images" in err and "3 of 3 · 0:00 left" in err
