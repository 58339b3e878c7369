"""Packed images on a server where something goes wrong: it fails, it lies, the disk is full, the run is killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch
from data.test_portable import same
from served import COUNT, loaders, pieces_here

import twinblock
from twinblock.core.errors import InputError
from twinblock.data import load, server


def test_a_server_that_fails_every_tenth_request(site):
    expected = load(f"{site.url}/jpeg").batch(range(COUNT))
    shutil.rmtree(os.environ["TWINBLOCK_CACHE"], ignore_errors=True)
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
    site.fails = lambda number, path: 403 if "/test/" in path else None  # as a bucket that may not be listed
    assert load(f"{site.url}/jpeg", split="test") is None and len(load(f"{site.url}/jpeg")) == COUNT


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
        shutil.rmtree(packs / "new")
        shutil.copytree(packs / "jpeg", packs / "new")
        second = load(f"{site.url}/new")
        assert first.pixels.jpeg is False and second.pixels.jpeg is True
        same(second, load(str(packs / "jpeg")))
        pixels = packs / "bad/train/pixels.u8"
        pixels.unlink()
        pixels.write_bytes(bytes(COUNT * 16 * 16 * 3))
        with pytest.raises(
            InputError,
            match=r"image \d+ in http.*/bad/train/pixels.u8 is not what was packed: copy the folder there once more",
        ):
            load(f"{site.url}/bad").batch(range(COUNT))
        (packs / "bad/train/labels.npy").unlink()
        (packs / "bad/train/labels.npy").write_bytes(b"other")
        shutil.rmtree(os.environ["TWINBLOCK_CACHE"], ignore_errors=True)
        with pytest.raises(InputError, match=r"bad/train is damaged, or did not come whole"):
            load(f"{site.url}/bad")
    finally:
        for name in ("bad", "new"):
            shutil.rmtree(packs / name, ignore_errors=True)


def test_pixels_that_change_while_they_are_used(packs, site):
    """What was read before is compared again: it comes again where pieces were given up."""
    shutil.copytree(packs / "jpeg", packs / "changed")
    try:
        images = load(f"{site.url}/changed")
        images.batch(range(COUNT))
        for file in pieces_here(images):
            file.unlink()
        pixels = packs / "changed/train/pixels.u8"
        content = pixels.read_bytes()
        pixels.unlink()
        pixels.write_bytes(content[::-1])
        with pytest.raises(InputError, match="is not what was packed"):
            images.batch(range(COUNT))
    finally:
        shutil.rmtree(packs / "changed")


@pytest.mark.parametrize(
    ("change", "column"),
    [
        ({"files": {"/dev/zero": 1}}, None),
        ({"files": ["labels.npy"]}, None),
        ({"shape": [10**13, 16, 16, 3]}, None),
        ({"shape": [COUNT, 10**6, 10**6, 3]}, None),
        ({"shape": [0, 16, 16, 3]}, None),
        ({"shape": [COUNT, 16, 16]}, None),
        ({"dtype": "object"}, None),
        ({}, ("labels.npy", np.zeros(6, np.int64))),
        ({}, ("labels.npy", np.full(COUNT, "a"))),
        ({}, ("own-labels.npy", np.zeros(6, np.int64))),
        ({}, ("own-labels.npy", np.zeros((COUNT, 3), np.int64))),
        ({}, ("pixels.npy", np.full(COUNT, np.nan))),
        ({}, ("pixels.npy", np.arange(COUNT)[::-1].copy())),
    ],
)
def test_a_set_that_someone_made_up(packs, site, change, column):
    """Its checksums are right. It ends with one line, and reads no other file."""
    evil = packs / "made-up"
    shutil.copytree(packs / "jpeg", evil)
    try:
        meta = evil / "train/meta.json"
        fields = json.loads(meta.read_bytes().partition(b"\n")[0]) | change
        if column is not None:
            file = evil / "train" / column[0]
            file.unlink()  # it is linked
            np.save(file, column[1])
            fields["files"][column[0]] = crc32(file.read_bytes())
        text = json.dumps(fields).encode()
        meta.unlink()
        meta.write_bytes(b"%s\n%08x\n" % (text, crc32(text)))
        with pytest.raises(InputError, match="made-up/train is damaged"):
            load(f"{site.url}/made-up").batch([0])
    finally:
        shutil.rmtree(evil)


def test_a_cache_that_may_only_be_read(site, monkeypatch):
    images = load(f"{site.url}/pixels")
    expected = images.batch(range(COUNT))

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    again = load(f"{site.url}/pixels")
    assert torch.equal(again.batch(range(COUNT)), expected)


ASK = """
import signal, sys, threading, numpy as np
from twinblock.data import load
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it runs in the background ignore it
images = load(sys.argv[1])
threading.Timer(1.0, lambda: print("asked", flush=True)).start()
images.batch(np.arange(len(images)))
"""


@pytest.mark.parametrize("status", [503, None])
def test_an_interrupt_does_not_wait_for_the_server(site, tmp_path, status):
    """It fails, or it is silent."""
    hang = threading.Event()

    def fails(number, path):
        if path.endswith("pixels.u8"):
            return status or hang.wait(60) or 503
        return None

    load(f"{site.url}/pixels")  # what stands beside the pixels is here
    site.fails = fails
    words = [sys.executable, "-c", ASK, f"{site.url}/pixels"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as program:
        try:
            assert program.stdout.readline() == "asked\n"
            program.send_signal(signal.SIGINT)
            program.wait(20)  # requests are made again for longer
        finally:
            hang.set()
            program.kill()


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
        ("zip://x.zip::http://host/pack", "a URL begins with one of http"),
        ("http://host/a::file:///etc", "and has no '::'"),
        ("http://host/pack?token=1", "ends without '\\?' and '#'"),
        ("HTTP://127.0.0.1:9/pack", "http://127.0.0.1:9/pack/train/meta.json cannot be read"),
        ("http://127.0.0.1:9/pack", "cannot be read"),
        ("s3://bucket/pack", "pip install 's3fs'"),
    ],
)
def test_urls_that_are_no_set(source, message, monkeypatch):
    monkeypatch.setattr(server, "WAITS", (0.01,) * 7)
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
