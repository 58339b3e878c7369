"""Packing, caching and decoding of images."""

import io
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twinblock import report
from twinblock.data import Images, Names, store, take
from twinblock.data.decode import decode, quiet, reason
from twinblock.data.store import Encoded, digest, packed
from twinblock.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TWINBLOCK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def encode(pixels, mode=None, kind="PNG", **options) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels))
    out = io.BytesIO()
    (image.convert(mode) if mode else image).save(out, kind, **options)
    return out.getvalue()


def plain(value: int, width: int = 8, height: int = 8) -> bytes:
    return encode(np.full((height, width, 3), value, np.uint8))


def encoded(files: list[bytes], labels: list[int] | None = None, **options) -> Encoded:
    labels = labels or [-1] * len(files)
    names = [f"{i:03}.png" for i in range(len(files))]
    return Encoded(
        name="some",
        key=digest(files),
        count=len(files),
        items=lambda: iter(zip(names, files, labels, strict=True)),
        sample=lambda: files,
        **options,
    )


def truncated(kind: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    return encode(noise, kind=kind)[:-300]


def huge() -> bytes:
    """A PNG file of a few bytes that says it is 10 000 pixels wide and high."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"0")),
        (b"IEND", b""),
    )
    parts = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


# ---- Images


def test_a_batch_is_a_copy_of_these_rows_in_this_order():
    pixels = np.arange(5 * 2 * 2 * 3, dtype=np.uint8).reshape(5, 2, 2, 3)
    images = Images(pixels.copy())
    batch = images.batch([3, 0, 3])
    assert np.array_equal(batch.numpy(), pixels[[3, 0, 3]])
    batch.zero_()
    assert np.array_equal(images.pixels, pixels)
    assert images.batch([]).shape == (0, 2, 2, 3)


def test_a_batch_of_a_memory_map_can_be_written_to():
    images = packed(encoded([plain(7), plain(9)]))
    batch = images.batch(np.array([1]))
    batch += 1
    assert batch.unique().tolist() == [10]
    assert images.pixels[1, 0, 0, 0] == 9


# ---- colour modes


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
    "16 bit gray, middle": (encode(np.full((4, 4), 128 * 257, np.uint16)), (128, 128, 128)),
    "16 bit gray, dark": (encode(np.full((4, 4), 300, np.uint16)), (1, 1, 1)),
    "16 bit gray, white": (encode(np.full((4, 4), 65535, np.uint16), kind="TIFF"), (255, 255, 255)),
    "32 bit integers": (encode(np.full((4, 4), 32896, np.int32), kind="TIFF"), (128, 128, 128)),
    "float up to 1": (encode(np.full((4, 4), 0.2, np.float32), kind="TIFF"), (51, 51, 51)),
    "float up to 255": (encode(np.full((4, 4), 51, np.float32), kind="TIFF"), (51, 51, 51)),
    "float, one value below zero": (encode(np.full((4, 4), -3, np.float32), kind="TIFF"), (0, 0, 0)),
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


def test_sixteen_bits_are_scaled_and_not_clipped():
    ramp = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    pixels, _ = decode(encode(ramp), 16, 16)
    assert np.array_equal(pixels[..., 0].ravel(), np.arange(256))


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


def test_a_postscript_file_is_not_interpreted():
    with pytest.raises(Exception, match="cannot identify"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", 9, 9)


def test_pillow_warnings_are_quiet_but_too_many_pixels_are_an_error():
    with quiet(), pytest.raises((Image.DecompressionBombError, Image.DecompressionBombWarning)):
        decode(huge(), 8, 8)


# ---- names


NAMES = ["é.png", "a\nb.png", "sub/=1+1.png", "\udcff.png", " .png", "日本.png"]


def test_names_are_read_as_they_are_looked_at():
    names = Names.of(NAMES)
    assert list(names) == NAMES
    assert (len(names), names[-1], names[np.int64(1)]) == (6, "日本.png", "a\nb.png")
    assert list(names[np.array([5, 0, 5])]) == ["日本.png", "é.png", "日本.png"]
    assert list(names[1:3]) == NAMES[1:3]
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
        assert isinstance(images.names.text, np.memmap)


# ---- the cache


def test_images_are_decoded_once(monkeypatch):
    source = encoded([plain(i) for i in range(9)], labels=[0, 1, 2] * 3, classes=("a", "b", "c"))
    first = packed(source)
    monkeypatch.setattr(store, "decode", lambda *_: pytest.fail("decoded again"))
    again = packed(source)
    assert isinstance(again.pixels, np.memmap)
    assert np.array_equal(again.pixels, first.pixels)
    assert np.array_equal(again.labels, first.labels)
    assert again.classes == ("a", "b", "c")


def test_labels_that_are_all_unknown_are_no_labels():
    images = packed(encoded([plain(1), plain(2)], classes=("a", "b")))
    assert images.labels is None
    assert images.classes is None


@pytest.mark.parametrize("victim", ["pixels.u8", "meta.json", "labels.npy", "names.u8", "names.npy"])
def test_a_damaged_store_is_made_again(cache, victim):
    source = encoded([plain(1), plain(2)])
    packed(source)
    (path,) = cache.glob(f"*/{victim}")
    path.write_bytes(path.read_bytes()[:-5])
    images = packed(source)
    assert images.pixels[:, 0, 0, 0].tolist() == [1, 2]
    assert list(images.names) == ["000.png", "001.png"]


def test_stores_of_an_older_format_are_left_alone(cache, monkeypatch):
    parts = [plain(1), plain(2)]
    monkeypatch.setattr(store, "FORMAT", 1)
    old = encoded(parts)
    packed(old)
    monkeypatch.setattr(store, "FORMAT", 2)
    assert encoded(parts).key != old.key
    (folder,) = cache.glob("*-kept")
    for file in folder.glob("names.*"):
        file.unlink()
    assert store.read(folder, "old", None).names is None  # as STL-10's, whose images have none


def test_an_interrupted_build_leaves_nothing(cache, monkeypatch):
    source = encoded([plain(1), plain(2)])
    with monkeypatch.context() as patch:
        patch.setattr(store, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            packed(source)
    assert [path for path in cache.iterdir() if path.is_dir()] == []
    assert len(packed(source)) == 2


def test_threads_that_ask_at_once_build_once(monkeypatch):
    decoded, source = [], encoded([plain(i) for i in range(40)])

    def slow(*arguments):
        decoded.append(1)
        time.sleep(0.005)
        return decode(*arguments)

    monkeypatch.setattr(store, "decode", slow)
    results = []
    threads = [threading.Thread(target=lambda: results.append(packed(source))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(images) for images in results] == [40] * 4
    assert len(decoded) == 40


KILLED = """
import sys, time
from twinblock.data import store
def items():
    for i in range(3000):
        yield str(i), open(sys.argv[1], "rb").read(), -1
    print("half", flush=True)
    time.sleep(60)
store.packed(store.Encoded("killed", "killed", 6000, items, lambda: [sys.argv[1]]))
"""


def test_a_killed_build_leaves_nothing_usable_and_is_cleaned_up(cache, tmp_path):
    (tmp_path / "a.png").write_bytes(plain(1))
    command = [sys.executable, "-c", KILLED, str(tmp_path / "a.png")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "half\n"
            (temporary,) = cache.glob("*.tmp")
            packed(encoded([plain(1)]))
            assert temporary.exists()  # its owner lives
        finally:
            process.kill()
    assert temporary.exists()
    assert store.read(cache / "killed-kept", "killed", None) is None
    packed(encoded([plain(2)]))  # any build sweeps
    assert not temporary.exists()


def test_only_a_few_encoded_images_are_in_memory_at_a_time():
    drawn = 0

    def items():
        nonlocal drawn
        for i in range(100_000):
            drawn = i + 1
            yield str(i), file, -1

    file = plain(1)
    with quiet():
        chunks = store._decoded(items(), 8, 8)
        first = next(chunks)
        chunks.close()
    assert len(first[0]) <= 1024
    assert drawn <= 9 * 1024


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


def test_progress_shows_only_where_it_takes_long(capsys, monkeypatch):
    packed(encoded([plain(1)] * 3))
    assert capsys.readouterr() == ("", "")
    clock = iter(range(0, 10_000, 2))
    monkeypatch.setattr(report.time, "monotonic", lambda: next(clock))
    packed(encoded([plain(2)] * 3))
    out, err = capsys.readouterr()
    assert out == ""
    assert "packing images" in err and "3 of 3 · 0:00 left" in err
