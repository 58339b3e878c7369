"""`embed processes=N`: the same bytes as by one process, and what a killed one did is kept."""

import os
import signal
import subprocess
import sys
import time

import pytest
import tiny
import torch
from pictures import photos
from PIL import Image
from safetensors.torch import load_file

import twinblock
from twinblock.core.errors import InputError
from twinblock.evaluation import embedding, patches, stored

SMALL = ["encoder.kind=resnet10", "encoder.width=8", "data.batch=16", "train.length=1steps", "projector.dims=[16,8]"]
SMALL += ["data.size=16", "train.precision=fp32"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    (home / "photos").mkdir()
    for i, pixels in enumerate(photos(50, 16, 16)):
        Image.fromarray(pixels.numpy()).save(home / f"photos/{i:02}.png")
    os.environ["TWINBLOCK_CACHE"] = str(home / "cache")
    yield twinblock.pretrain("simclr", data=str(home / "photos"), out=home / "run", overrides=SMALL, quiet=True)
    del os.environ["TWINBLOCK_CACHE"]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(stored, "BATCHES", 1)
    monkeypatch.setattr(stored, "at_once", lambda size: 10)  # five parts


def kept(run) -> dict[str, bytes]:
    files = (run.path / "features").rglob("*.safetensors")  # whose heads name their fields in any order
    return {path.name: load_file(path)["rows"].numpy().tobytes() for path in files}


def forget(run) -> None:
    for path in (run.path / "features").rglob("*.safetensors"):
        path.unlink()


def test_two_processes_give_the_same_bytes_and_say_how_far_they_are(run, monkeypatch):
    forget(run)
    alone, files = twinblock.embed(run).features, kept(run)
    assert len(files) == 5
    forget(run)
    told, by_one = [], embedding.in_processes

    def listened(jobs, advance):
        assert [job["parts"] for job in jobs] == [[(0, 10), (20, 30), (40, 50)], [(10, 20), (30, 40)]]
        by_one(jobs, told.append)
        assert kept(run) == files  # this process has computed none

    monkeypatch.setattr(embedding, "in_processes", listened)
    assert torch.equal(twinblock.embed(run, processes=2).features, alone)
    assert sum(told) == 50 and len(told) >= 5


def test_what_a_process_did_before_it_was_killed_is_kept(run, monkeypatch):
    """The first part of each is there; the second process is killed; the same command goes on to the same bytes."""
    forget(run)
    alone = twinblock.embed(run).features
    whole, parts = kept(run), embedding.parts_of
    forget(run)

    def damaged(images, size):
        return [*parts(images, size)[:3], (30, 10_000)]  # no such images: the process of this part fails

    with monkeypatch.context() as patch:
        patch.setattr(embedding, "parts_of", damaged)
        with pytest.raises(InputError, match=r"a process ended early \(IndexError: .*what is done is kept: ") as error:
            twinblock.embed(run, processes=2)
    assert "\n" not in str(error.value)
    before = kept(run)
    assert len(before) == 3 and all(whole[name] == content for name, content in before.items())
    assert torch.equal(twinblock.embed(run, processes=2).features, alone) and kept(run) == whole


def test_a_killed_command_leaves_no_process_and_no_half_part(run):
    forget(run)
    command = f"import twinblock; twinblock.embed({str(run.path)!r}, processes=2)"
    process = subprocess.Popen([sys.executable, "-c", command], stderr=subprocess.DEVNULL)
    workers, until = [], time.monotonic() + 300
    try:
        while not workers and process.poll() is None:
            done = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False)
            workers = [int(word) for word in done.stdout.split()]
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert workers and not kept(run)
    while any(map(alive, workers)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(alive, workers))
    assert not list((run.path / "features").rglob("*.partial"))


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def patches_of_seven(monkeypatch):
    """Parts of seven images of 2 x 2 places."""
    monkeypatch.setattr(patches, "PART", 7 * 4 * 2 * 2 * 64)


def test_two_processes_write_the_patches_that_one_writes(run, tmp_path, monkeypatch, patches_of_seven):
    alone = twinblock.embed(run, features="patches", out=tmp_path / "one.npy").features
    told, noted, by_two = [], [], embedding.in_processes

    def listened(jobs, advance, note):
        assert [job["parts"] for job in jobs] == [
            [(0, 7), (14, 21), (28, 35), (42, 49)],
            [(7, 14), (21, 28), (35, 42), (49, 50)],
        ]
        by_two(jobs, told.append, lambda start: noted.append(note(start) or start))

    monkeypatch.setattr(embedding, "in_processes", listened)
    monkeypatch.setattr(patches, "features", None)  # this process computes none
    found = twinblock.embed(run, features="patches", out=tmp_path / "two.npy", processes=2).features
    assert torch.equal(found, alone)
    assert (tmp_path / "one.npy").read_bytes() == (tmp_path / "two.npy").read_bytes()
    assert sum(told) == 50 and sorted(noted) == [*range(0, 50, 7)]


def test_patches_that_a_process_wrote_before_it_was_killed_are_kept(run, tmp_path, monkeypatch, patches_of_seven):
    """One process is given no such images after its second part; one process of its own goes on with what is left."""
    alone = twinblock.embed(run, features="patches", out=tmp_path / "one.npy").features
    by_two, out = embedding.in_processes, tmp_path / "two.npy"

    def damaged(jobs, *given):
        by_two([{**jobs[0], "parts": [*jobs[0]["parts"][:2], (28, 9_000)]}, jobs[1]], *given)

    with monkeypatch.context() as patch:
        patch.setattr(embedding, "in_processes", damaged)
        with pytest.raises(InputError, match="a process ended early"):
            twinblock.embed(run, features="patches", out=out, processes=2)
    assert not out.exists() and (tmp_path / "two.npy.partial").exists()

    looked = tiny.features_asked_of(patches, monkeypatch)
    assert torch.equal(twinblock.embed(run, features="patches", out=out).features, alone)
    assert looked == [7, 7]  # of images 28 and 42 on
    assert (tmp_path / "one.npy").read_bytes() == out.read_bytes()


def test_python_objects_are_refused(run):
    pixels = photos(12, 16, 16).numpy()
    with pytest.raises(InputError, match="processes=2: other processes see no Python objects"):
        twinblock.embed(run, pixels, processes=2)
