"""Packed images on a server where something goes wrong: it fails, it lies, the disk is full, the run is killed."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from zlib import crc32

import pytest
import torch
from data.test_portable import same
from served import COUNT, loaders, pieces_here

import twinblock
from twinblock.core.errors import InputError
from twinblock.data import load, served


def test_a_server_that_fails_every_tenth_request(site):
    expected = load(f"{site.url}/jpeg").batch(range(COUNT))
    shutil.rmtree(os.environ["TWINBLOCK_CACHE"])
    site.fails = lambda number, path: 503 if number % 10 == 0 else None
    images = load(f"{site.url}/jpeg")
    (loader,) = loaders(images, 1)
    for step in range(20):
        found = loader.gather(step)
        assert torch.equal(found.pixels, expected[found.index])


def test_a_server_that_fails_for_good(site):
    images = load(f"{site.url}/pixels")
    site.fails = lambda number, path: 500
    with pytest.raises(InputError, match=r"/pixels/train/pixels.u8 cannot be read \(500.*give the command again"):
        images.batch(range(COUNT))
    site.fails = lambda number, path: 404
    with pytest.raises(InputError, match=r"pixels\.u8 is no longer there"):
        images.batch(range(COUNT))
    site.fails = lambda number, path: 403
    with pytest.raises(InputError, match="403"):
        load(f"{site.url}/jpeg")
    asked = [path for path, _ in site.requests if path.startswith("/jpeg")]
    assert len(asked) == 1, "what is forbidden is not asked for again"


def test_a_damaged_piece_is_fetched_again(site):
    images = load(f"{site.url}/pixels")
    expected = images.batch(range(COUNT))
    for file in pieces_here(images):
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    pieces_here(images)[0].write_bytes(b"")
    again = load(f"{site.url}/pixels")
    assert torch.equal(again.batch(range(COUNT)), expected)


def test_a_disk_that_is_full(site, monkeypatch):
    images = load(f"{site.url}/pixels")
    monkeypatch.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(InputError, match=r"cannot write .*piece-\d+ \(No space left on device\): free some space"):
        images.batch(range(COUNT))
    assert not [*images.pixels.folder.glob("*.part")]


def test_what_changes_on_the_server(packs, site, tmp_path):
    """Pixels that are not those of the checksums are an error, a set that was packed anew is copied anew."""
    for name in ("bad", "new"):
        shutil.copytree(packs / "pixels", packs / name)
    try:
        first = load(f"{site.url}/new")
        pixels = packs / "bad/train/pixels.u8"
        pixels.unlink()
        pixels.write_bytes(bytes(COUNT * 16 * 16 * 3))
        with pytest.raises(InputError, match=r"packed image \d+ in .* is damaged"):
            load(f"{site.url}/bad").batch(range(COUNT))
        (packs / "bad/train/labels.npy").unlink()
        (packs / "bad/train/labels.npy").write_bytes(b"other")
        shutil.rmtree(os.environ["TWINBLOCK_CACHE"])
        with pytest.raises(InputError, match=r"bad/train is damaged, or did not come whole"):
            load(f"{site.url}/bad")
        shutil.rmtree(packs / "new")
        shutil.copytree(packs / "jpeg", packs / "new")
        second = load(f"{site.url}/new")
        assert first.pixels.jpeg is False and second.pixels.jpeg is True
        same(second, load(str(packs / "jpeg")))
    finally:
        for name in ("bad", "new"):
            shutil.rmtree(packs / name, ignore_errors=True)


def test_names_in_what_is_served_stay_in_its_folder(packs, site, tmp_path):
    """meta.json is text that anyone could have made: it names no file outside."""
    shutil.copytree(packs / "pixels", packs / "evil")
    try:
        file = packs / "evil/train/meta.json"
        fields = json.loads(file.read_bytes().partition(b"\n")[0])
        fields["files"]["../../../outside"] = 0
        fields["portable"]["columns"] = ["../../../outside"]
        text = json.dumps(fields).encode()
        file.unlink()
        file.write_bytes(b"%s\n%08x\n" % (text, crc32(text)))
        (packs / "outside").write_bytes(b"x")
        with pytest.raises(InputError, match="is damaged"):
            load(f"{site.url}/evil")
        assert not any("outside" in path for path, _ in site.requests)
        assert not [*tmp_path.rglob("outside")]
    finally:
        shutil.rmtree(packs / "evil")


def test_a_server_without_parts_is_refused_before_it_sends_all(site):
    site.parts = False
    with pytest.raises(InputError, match=r"sends no parts of files \(HTTP's Range\)"):
        load(f"{site.url}/pixels")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("ftp://host/pack", "a URL begins with one of http, https, s3"),
        ("reference://host/pack", "a URL begins with one of http"),
        ("simplecache::http://host/pack", "there is no such folder"),
        ("http://127.0.0.1:9/pack", "cannot be read"),
        ("s3://bucket/pack", "pip install 's3fs'"),
    ],
)
def test_urls_that_are_no_set(source, message, monkeypatch):
    monkeypatch.setattr(served, "WAITS", (0.01,) * 7)
    with pytest.raises(InputError, match=message):
        load(source)


def test_where_there_is_no_set(site, packs):
    with pytest.raises(InputError, match="there are no packed images; `twinblock pack` makes"):
        load(f"{site.url}/shard-000.tar")
    with pytest.raises(InputError, match="is packed, and cannot be joined"):
        load((f"{site.url}/pixels", str(packs)))
    with pytest.raises(InputError, match="only images that are packed from files"):
        twinblock.pack(f"{site.url}/pixels", packs / "again")


RUN = ["simclr", "data.size=16", "data.batch=32", "encoder=resnet10", "encoder.width=8", "encoder.norm=none"]
RUN += ["projector.norm=none", "train.length=60steps", "train.checkpoint_every=4steps", "train.precision=fp64"]


def test_a_run_that_is_killed_between_pieces_and_on_two_processes(site, tmp_path):
    """One server fails every tenth request; the weights are those of a run that nothing happened to."""

    def train(out: str, *before: str) -> subprocess.Popen:
        cache = {"TWINBLOCK_CACHE": str(tmp_path / f"cache-{out}"), "OMP_NUM_THREADS": "1"}
        program = [sys.executable, *before, "-m", "twinblock", "pretrain", *RUN, f"data={site.url}/jpeg", f"out={out}"]
        return subprocess.Popen(program, cwd=tmp_path, env={**os.environ, **cache}, stderr=subprocess.DEVNULL)

    assert train("straight").wait(300) == 0
    site.fails = lambda number, path: 503 if number % 10 == 0 else None
    killed = train("killed")
    metrics = tmp_path / "killed/metrics.jsonl"
    while killed.poll() is None and not (metrics.exists() and metrics.read_text().count("loss") >= 8):
        time.sleep(0.002)
    killed.kill()
    assert killed.wait() == -9, "it ended before it was killed"
    assert train("killed").wait(300) == 0
    two = train("two", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    assert two.wait(300) == 0
    straight = twinblock.load_encoder(tmp_path / "straight").state_dict()
    for name in ("killed", "two"):
        for key, value in twinblock.load_encoder(tmp_path / name).state_dict().items():
            bound = 0 if name == "killed" else 1e-9
            assert (value.double() - straight[key].double()).abs().max() <= bound, (name, key)
