"""Full disks, cut and flipped files, vanished images: each ends in the last good state and one clear line."""

import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from reliability.killing import in_processes

import twinblock
from twinblock.core.errors import InputError
from twinblock.runs import checkpoint
from twinblock.runs.run import Run
from twinblock.training.step import TrainStep

SMALL = ["encoder.kind=resnet10", "encoder.width=8", "data.batch=16", "projector.dims=[16,8]", "train.precision=fp32"]


@contextmanager
def no_file_above(size: int):
    """A disk that is full: every write beyond `size` bytes of a file fails, as the kernel says it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def config():
    return tiny.config("byol", train={"length": "12steps", "checkpoint_every": "3steps"}, precision="fp32")


@pytest.fixture(scope="module")
def straight(config, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("straight") / "run"
    assert in_processes(config, out) == [0]
    return out


def go_on(config, out: Path):
    trainer = tiny.trainer(config, out)
    trainer.resume()
    try:
        trainer.fit()
    finally:
        trainer.run.release()
    return trainer


def assert_same_end(trainer, straight: Path) -> None:
    theirs, mine = checkpoint.read(straight / "end.safetensors")[0], trainer.state()
    assert [name for name in theirs if not torch.equal(mine[name], theirs[name])] == []
    assert (trainer.run.path / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("part", [0, 0.02, 0.3, 0.9, 0.999])
def test_a_disk_that_fills_at_any_write(config, straight, tmp_path, part):
    """The limit falls into the metrics, or at some part of a checkpoint; once there is room, nothing was lost."""
    size = (straight / "checkpoint" / checkpoint.LAST).stat().st_size
    out = tmp_path / "run"
    trainer = tiny.trainer(config, out)
    with no_file_above(int(part * size)), pytest.raises(InputError, match="cannot write") as told:
        trainer.fit()
    trainer.run.release()
    assert "\n" not in str(told.value)
    assert_same_end(go_on(config, out), straight)


def test_a_disk_that_fills_while_the_run_goes_on(config, straight, tmp_path):
    out = tmp_path / "run"
    assert in_processes(config, out, end=(7, "before a step", 0)) == [-9]
    before = checkpoint.read(out / "checkpoint" / checkpoint.LAST)[1]
    trainer = tiny.trainer(config, out)
    trainer.resume()
    with no_file_above(20_000), pytest.raises(InputError, match="cannot write"):
        trainer.fit()
    trainer.run.release()
    assert checkpoint.read(out / "checkpoint" / checkpoint.LAST)[1] == before
    assert_same_end(go_on(config, out), straight)


def test_a_checkpoint_cut_at_fifty_lengths_or_with_a_flipped_byte(straight, tmp_path):
    """Each is noticed, set aside, and the one before is taken."""
    rng = random.Random(0)
    good = (straight / "checkpoint" / checkpoint.LAST).read_bytes()
    assert (straight / "checkpoint" / checkpoint.PREVIOUS).exists()
    flipped = []
    for position in rng.sample(range(len(good)), 50):
        damaged = bytearray(good)
        damaged[position] ^= 1 << rng.randrange(8)
        flipped.append(bytes(damaged))
    cut = [good[:length] for length in [0, 1, 7, 8, 9, len(good) - 1, *rng.sample(range(len(good)), 44)]]
    for i, content in enumerate([*cut, *flipped]):
        folder = tmp_path / str(i)
        shutil.copytree(straight / "checkpoint", folder)
        (folder / checkpoint.LAST).write_bytes(content)
        complaints = checkpoint.recover(folder)
        assert len(complaints) == 1 and "\n" not in complaints[0]
        assert checkpoint.read(folder / checkpoint.LAST)[1]["step"] == 9
        assert (folder / (checkpoint.LAST + ".damaged")).read_bytes() == content
        shutil.rmtree(folder)


def test_with_every_checkpoint_damaged_the_run_starts_again(config, straight, tmp_path):
    out = tmp_path / "run"
    assert in_processes(config, out, end=(10, "before a step", 0)) == [-9]
    for file in (out / "checkpoint").iterdir():
        file.write_bytes(b"x" * 100)
    assert_same_end(go_on(config, out), straight)


def test_a_run_that_was_killed_before_its_config_was_written_starts_again(config, straight, tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / "config.yaml.4711.partial").write_text("data:\n  sou")
    assert_same_end(go_on(config, tmp_path), straight)
    assert not (tmp_path / "config.yaml.4711.partial").exists()


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.setenv("TWINBLOCK_CACHE", str(tmp_path / "cache"))
    rng = np.random.Generator(np.random.PCG64(0))
    (tmp_path / "photos").mkdir()
    for i in range(48):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path / "photos"


def test_images_that_vanish_during_training_are_not_missed(photos, tmp_path, monkeypatch):
    """They were packed before; a later start says that they are gone, and keeps the run."""
    take = TrainStep.__call__

    def train_step(self, number, samples):
        if number == 2:
            shutil.rmtree(photos)
        return take(self, number, samples)

    monkeypatch.setattr(TrainStep, "__call__", train_step)
    fields = [*SMALL, "train.length=6steps"]
    run = twinblock.pretrain("simclr", data=str(photos), out=tmp_path / "run", overrides=fields, quiet=True)
    assert run.finished
    monkeypatch.setattr(TrainStep, "__call__", take)
    with pytest.raises(InputError, match="photos"):
        twinblock.pretrain("simclr", data=str(photos), out=tmp_path / "other", overrides=fields, quiet=True)


def test_a_reader_of_images_that_fails_ends_the_run_with_its_state_kept(config, straight, tmp_path, monkeypatch):
    out = tmp_path / "run"
    trainer = tiny.trainer(config, out)
    gather = trainer.loader.gather

    def fail(step: int):
        if step == 8:
            raise OSError(5, "Input/output error")
        return gather(step)

    trainer.loader.gather = fail
    with pytest.raises(InputError, match="Input/output error"):
        trainer.fit()
    trainer.run.release()
    assert checkpoint.read(out / "checkpoint" / checkpoint.LAST)[1]["step"] == 6
    assert_same_end(go_on(config, out), straight)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_with_its_reason(photos, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fields = [*SMALL, f"data={photos}", f"out={tmp_path / 'run'}", "train.length=100000steps"]
    command = ["-m", "twinblock", "pretrain", "simclr", *fields, "train.checkpoint_every=20steps"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    process = subprocess.Popen([*launcher, *command], stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 300
    while not (tmp_path / "run" / "checkpoint" / checkpoint.LAST).exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    _, error = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "SIGKILL" in error or "Signal 9" in error
    step = checkpoint.read(tmp_path / "run" / "checkpoint" / checkpoint.LAST)[1]["step"]
    assert step >= 20 and step % 20 == 0
    assert Run.open(tmp_path / "run").encoder() is not None
