"""Packing that is interrupted goes on, and ends bit for bit as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pictures import encode, plain

from twinblock.data import packing, store
from twinblock.data.packing import packed
from twinblock.data.store import Encoded

# Packs 8,000 images of 64 px, each of another value, each 50th unreadable; and kills itself at one of them.
PACK = """
import os, signal, sys
import numpy as np
from twinblock.data.packing import packed
from twinblock.data.store import Encoded
count, last = 8000, int(sys.argv[1])
def items():
    for i in range(count):
        if i == last:
            os.kill(os.getpid(), signal.SIGKILL)
        yield f"{i} é.png", b"x" if i % 50 == 7 else np.full((64, 64, 3), i % 251, np.uint8), i % 3
packed(Encoded("killed", "0" * 32, count, items, lambda: [np.zeros((64, 64, 3), np.uint8)], ("a", "b", "c")))
"""


def pack(cache: Path, last: int = -1) -> int:
    """Pack in a process of its own, which is killed by SIGKILL at image `last`."""
    environment = {**os.environ, "TWINBLOCK_CACHE": str(cache)}
    return subprocess.run([sys.executable, "-c", PACK, str(last)], env=environment, check=False).returncode


def contents(cache: Path) -> dict[str, bytes]:
    (folder,) = cache.glob("*-kept")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def items_of(part: Path) -> int:
    """How many items the journal of a build holds."""
    lines = (part / "journal").read_bytes().split(b"\n")[1:-1]
    return sum(json.loads(line.partition(b" ")[2])["items"] for line in lines)


def test_a_packing_that_is_killed_again_and_again_ends_as_one_that_was_not(tmp_path):
    assert pack(tmp_path / "straight") == 0
    done = []
    for last in (4000, 6000, 7500):
        assert pack(tmp_path / "killed", last) == -signal.SIGKILL
        (part,) = (tmp_path / "killed").glob("*.part")
        done.append(items_of(part))
    assert done == sorted(done) and 0 < done[0] < done[-1] < 7500, "each goes on behind the one before"
    assert pack(tmp_path / "killed") == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "straight")
    assert list((tmp_path / "killed").glob("*.part")) == []


class Stop(KeyboardInterrupt):
    pass


def source(values: list[int], key: str = "0" * 32, stop: int | None = None, read: list[int] | None = None, **other):
    def items():
        for i, value in enumerate(values):
            if i == stop:
                raise Stop
            if read is not None:
                read.append(i)
            yield f"{i}.png", plain(value), i % 2

    return Encoded("some", key, len(values), items, lambda: [plain(0)], ("a", "b"), **other)


@pytest.fixture
def begun(cache, monkeypatch):
    """3 of 4 chunks of 16 images are packed."""
    decoded = packing._decoded

    def few_at_a_time(items, *how):
        for pixels, names, labels, aspects, skipped in decoded(items, *how):
            for i in range(0, len(names), 16):
                some = slice(i, i + 16)
                yield pixels[some], names[some], labels[some], aspects[some], skipped if i == 0 else []

    monkeypatch.setattr(packing, "_decoded", few_at_a_time)
    values, finish = list(range(64)), store.finish

    def interrupted(*_):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(packing, "finish", interrupted)
        with pytest.raises(Stop):
            packed(source(values))
    assert store.finish is finish
    (part,) = cache.glob("*.part")
    assert items_of(part) == 64
    _cut(part / "journal", lines=4)
    return values, part


def _cut(journal: Path, lines: int) -> None:
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:lines]))


def decoded_after(values, monkeypatch, **other) -> tuple[int, list[int]]:
    """How many are decoded when it is packed again, and what it is then."""
    decoded, decode = [], packing.decode
    monkeypatch.setattr(packing, "decode", lambda *what: decoded.append(1) or decode(*what))
    images = packed(source(values, **other))
    return len(decoded), images.pixels[:, 0, 0, 0].tolist()


def test_an_interrupted_packing_decodes_only_the_rest(begun, monkeypatch):
    values, _ = begun
    assert decoded_after(values, monkeypatch) == (16, values)


def test_nothing_of_another_source_is_continued(begun, monkeypatch):
    other = [value + 100 for value in begun[0]]
    assert decoded_after(other, monkeypatch, key="1" * 32) == (64, other)


@pytest.mark.parametrize("what", ["count", "pillow", "shape", "key"])
def test_nothing_of_the_same_name_that_is_something_else_is_continued(begun, monkeypatch, what):
    """By another version of the decoder, or of another shape."""
    values, part = begun
    first, *rest = (part / "journal").read_bytes().splitlines(keepends=True)
    fields = json.loads(first.partition(b" ")[2])
    text = json.dumps({**fields, what: "another"}).encode()
    (part / "journal").write_bytes(b"".join([b"%08x %s\n" % (store.crc32(text), text), *rest]))
    assert decoded_after(values, monkeypatch) == (64, values)


@pytest.mark.parametrize("victim", ["pixels.u8", "names.u8", "journal"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "zeroed", "gone", "longer"])
def test_only_what_is_whole_is_continued(begun, monkeypatch, victim, damage):
    """As after a power cut, when the disk has the journal but not the pixels."""
    values, part = begun
    content = (part / victim).read_bytes()
    middle = len(content) // 2
    bad = {
        "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "cut": content[:middle],
        "zeroed": content[:middle] + bytes(len(content) - middle),
        "longer": content + b"\0" * 100,
    }
    (part / victim).write_bytes(bad[damage]) if damage in bad else (part / victim).unlink()
    decoded, found = decoded_after(values, monkeypatch)
    assert found == values
    assert decoded == {"gone": 64, "longer": 16}.get(damage, decoded) and 16 <= decoded <= 64
    images = packed(source(values))
    assert list(images.names) == [f"{i}.png" for i in range(64)]
    assert images.labels.tolist() == [i % 2 for i in range(64)]


def test_an_error_leaves_nothing(cache):
    with pytest.raises(store.InputError, match="cannot be read"):
        packed(Encoded("some", "0" * 32, 2, lambda: iter([("a", b"x", -1), ("b", b"y", -1)]), lambda: [b"x"]))
    assert list(cache.glob("*.part")) == []


def test_what_a_killed_build_of_a_python_object_left_is_swept(cache):
    part = cache / f"object-{'0' * 32}-kept.{os.getuid()}.part"
    part.mkdir(parents=True)
    packed(source([1, 2]))
    assert not part.exists()


def test_unreadable_files_before_and_behind_the_interrupt_are_counted_once(cache, monkeypatch):
    files = [b"x" if i in (3, 90) else encode(np.full((8, 8, 3), i, np.uint8)) for i in range(100)]
    of = Encoded("some", "0" * 32, 100, lambda: iter([(f"{i}", f, -1) for i, f in enumerate(files)]), lambda: files[:1])
    with monkeypatch.context() as patch:
        patch.setattr(packing, "finish", lambda *_: (_ for _ in ()).throw(Stop))
        with pytest.raises(Stop):
            packed(of)
    assert packed(of).skipped == (("3", "not an image of a known format"), ("90", "not an image of a known format"))
