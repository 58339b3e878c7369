"""A run that was killed goes on bit for bit as if nothing had happened."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from twinblock.core.errors import InputError, Interrupted
from twinblock.data import take
from twinblock.optim import make_optimizer, parameter_groups
from twinblock.runs import checkpoint
from twinblock.runs.run import Run
from twinblock.training.pretrain import pretrain

CASES = [(method, "end_to_end") for method in tiny.METHODS] + [
    *((method, "end_to_end") for method in tiny.PRUNED),
    ("sdclr_byol", "simultaneous"),
    ("sdclr", "sequential"),
    ("byol", "simultaneous"),
    ("moco_v2", "sequential"),
    ("vicreg", "sequential"),
    ("nnclr", "simultaneous"),
    ("pcl", "sequential"),
    ("byol", "overlapping"),
    *((method, scope) for method, other in tiny.OTHERS.items() for scope in other.scopes),
    *(("byol", rule) for rule in tiny.CREDIT),
]


class Killed(Exception):
    pass


def fit(config, out: Path, kill_at: int | None = None):
    """Train to the end, or until just before step `kill_at` is taken."""
    trainer = tiny.trainer(config, out)

    def train_step(*batch):
        if trainer.step == kill_at:
            raise Killed
        return step(*batch)

    step = tiny.take_steps_by(trainer, train_step)
    trainer.resume()
    try:
        trainer.fit()
    finally:
        trainer.run.release()
    return trainer


def assert_same(a, b) -> None:
    mine, theirs = tiny.state(a), tiny.state(b)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
    assert a.run.metrics() == b.run.metrics()
    assert (a.run.path / "metrics.jsonl").read_bytes() == (b.run.path / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(("method", "scope"), CASES)
def test_a_killed_run_ends_as_the_uninterrupted_one(method, scope, tmp_path):
    """Three steps an epoch, saved every two: the kills fall within epochs, and within each of the four phases."""
    train = {"length": "9steps", "checkpoint_every": "2steps"}
    config = tiny.config(method, scope, precision="fp32", train=train)
    straight = fit(config, tmp_path / "straight")
    for kill_at in (1, 3, 5, 8):
        with pytest.raises(Killed):
            fit(config, tmp_path / "killed", kill_at)
    assert_same(fit(config, tmp_path / "killed"), straight)


def test_a_killed_run_with_small_crops_ends_as_the_uninterrupted_one(tmp_path):
    train = {"length": "5steps", "checkpoint_every": "2steps"}
    config = tiny.cropped(tiny.config("dino", precision="fp32", train=train))
    straight = fit(config, tmp_path / "straight")
    with pytest.raises(Killed):
        fit(config, tmp_path / "killed", 3)
    assert_same(fit(config, tmp_path / "killed"), straight)


def test_the_optimizer_state_matters(tmp_path, monkeypatch):
    """The comparison above would find a resume that forgets something."""
    config = tiny.config("simclr", train={"length": "6steps", "checkpoint_every": "2steps"})
    straight = fit(config, tmp_path / "straight")
    with pytest.raises(Killed):
        fit(config, tmp_path / "killed", 5)
    monkeypatch.setattr(checkpoint, "restore_optimizer", lambda *_: None)
    with pytest.raises(AssertionError):
        assert_same(fit(config, tmp_path / "killed"), straight)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_the_optimizer_state_has_the_layout_of_its_parameters(kind):
    """As on a GPU, where convolutions are channels last and fused optimizers walk through both side by side."""

    def built():
        torch.manual_seed(0)
        conv = torch.nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
        optimizer = make_optimizer(parameter_groups(conv, 1e-4), kind, lr=0.1)
        return conv, optimizer

    def step(conv, optimizer, x):
        conv(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    straight, resumed = built(), built()
    step(*straight, x)
    saved = {name: t.contiguous().clone() for name, t in checkpoint.flatten_optimizer(straight[1]).items()}
    resumed[0].load_state_dict(straight[0].state_dict())
    checkpoint.restore_optimizer(resumed[1], saved)
    step(*straight, x)
    step(*resumed, x)
    assert torch.equal(resumed[0].weight, straight[0].weight)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path):
    config = tiny.config("byol", train={"length": "8steps", "checkpoint_every": "2steps"})
    straight = fit(config, tmp_path / "straight")
    with pytest.raises(Killed):
        fit(config, tmp_path / "killed", 7)
    last = tmp_path / "killed" / "checkpoint" / checkpoint.LAST
    last.write_bytes(last.read_bytes()[:-100])
    trainer = tiny.trainer(config, tmp_path / "killed")
    trainer.resume()
    assert trainer.step == 4
    trainer.fit()
    assert_same(trainer, straight)
    assert last.with_name(last.name + ".damaged").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_good_state(tmp_path):
    config = tiny.config("simclr", "simultaneous", train={"length": "30steps", "checkpoint_every": "4steps"})
    trainer = tiny.trainer(config, tmp_path / "run")

    def bad(*batch):
        return good(*batch) * torch.tensor([1.0, float("nan") if trainer.step >= 13 else 1.0, 1.0, 1.0])

    good = tiny.take_steps_by(trainer, bad)
    with pytest.raises(InputError, match=r"Learner 2 of 4 is nan at step 13.*optim\.lr"):
        trainer.fit()
    _, meta = checkpoint.read(tmp_path / "run" / "checkpoint" / checkpoint.LAST)
    assert meta["step"] == 12
    rows = trainer.run.metrics()  # up to the last step whose losses are numbers
    assert [row["step"] for row in rows if "loss" in row] == list(range(13))
    assert max(row["step"] for row in rows) <= 13


def test_however_a_training_ends_the_terminal_is_given_back(tmp_path, monkeypatch):
    for number, end in enumerate((Interrupted(15, 1), InputError("bad"), None)):
        trainer, closed = tiny.trainer(tiny.config("simclr"), tmp_path / str(number)), []
        monkeypatch.setattr(trainer.reporter, "close", lambda closed=closed: closed.append(1))
        if end is None:
            trainer.fit()
        else:
            monkeypatch.setattr(trainer, "flush", lambda *_, end=end: exec("raise end", {"end": end}))
            with pytest.raises(type(end)):
                trainer.fit()
        assert closed == [1]


@pytest.mark.parametrize("now", ["fewer", "other labels"])
def test_a_run_does_not_go_on_with_other_images(tmp_path, now):
    """Its order of samples, its schedule and a classifier's width would silently be others."""
    config, images = tiny.config("supervised", train={"length": "9steps", "checkpoint_every": "2steps"}), tiny.images()
    with pytest.raises(Killed):
        fit(config, tmp_path, 5)
    other = take(images, np.arange(47)) if now == "fewer" else replace(images, labels=images.labels[::-1].copy())
    trainer = tiny.trainer(config, tmp_path, other)
    with pytest.raises(InputError, match=rf"other images than this run began with \({len(other)} now, 48 then\)"):
        trainer.resume()
    trainer.run.release()
    fit(config, tmp_path)


def test_metrics_of_a_running_training_may_end_in_half_a_line(tmp_path):
    run = Run(tmp_path)
    run.append_metrics([{"step": 0, "loss": [1.0]}, {"step": 1, "loss": [0.5]}])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "lo')
    assert [row["step"] for row in run.metrics()] == [0, 1]
    run.truncate_metrics(1)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 0, "loss": [1.0]}\n'


SMALL = ["data.batch=64", "train.length=2steps", "encoder.width=8", "projector.dims=[16,8]"]


def test_a_field_left_out_is_another_config_and_what_was_open_stays_as_it_was(tmp_path):
    """`train.precision=auto` may be another on another machine, or without a fast bfloat16."""
    out = tmp_path / "run"
    pretrain("demo", out=out, quiet=True, overrides=[*SMALL, "optim.clip=1.0", "train.precision=bf16"])
    for file in ("result.json", "encoder.safetensors"):
        (out / file).unlink()  # as killed just before its end
    with pytest.raises(InputError, match=r"optim\.clip: 1\.0 there, None here"):
        pretrain("demo", out=out, quiet=True, overrides=SMALL)
    stop = [*SMALL, "optim.clip=1.0", "encoder.kind=auto", "train.on_collapse=stop"]
    run = pretrain("demo", out=out, quiet=True, overrides=stop)
    assert run.finished
    assert (run.config.train.precision, run.config.train.on_collapse) == ("bf16", "stop")


def test_a_refused_run_holds_its_folder_no_longer(tmp_path):
    """An interactive session keeps the error, and with it whatever the call that raised it had open."""
    trainer = tiny.trainer(tiny.config("simclr"), tmp_path / "run")
    trainer.run.write_config(trainer.config)
    trainer.run.release()
    with pytest.raises(InputError, match="another config") as kept:
        pretrain("demo", out=tmp_path / "run", quiet=True)
    again = Run(tmp_path / "run")
    again.claim(trainer.config)
    again.release()
    assert "another config" in str(kept.value)


def test_of_two_runs_that_begin_at_once_the_refused_one_leaves_the_folder_to_the_other(tmp_path, monkeypatch):
    first, second = Run(tmp_path / "run"), Run(tmp_path / "run")
    config = tiny.config("simclr")
    first.claim(config)
    monkeypatch.setattr(Path, "exists", lambda path: False)  # the second looked before the first made it
    with pytest.raises(InputError, match="another process is training there"):
        second.claim(config)
    second.release()
    assert (tmp_path / "run" / ".lock").is_file()


def test_a_run_in_double_precision_comes_to_its_end(tmp_path):
    run = pretrain("demo", out=tmp_path / "run", quiet=True, overrides=[*SMALL, "train.precision=fp64"])
    assert run.result["knn"]["encoder"] > 0


def test_a_state_that_is_not_finite_is_never_saved(tmp_path):
    trainer = tiny.trainer(tiny.config("simclr", train={"checkpoint_every": "2steps"}), tmp_path / "run")

    def bad(*batch):
        if trainer.step == 3:
            trainer.encoder.layer1[0].bn1.running_var.fill_(float("inf"))
        return good(*batch)

    good = tiny.take_steps_by(trainer, bad)
    last = tmp_path / "run" / "checkpoint" / checkpoint.LAST
    with pytest.raises(
        InputError, match=rf"running_var holds NaN or infinity after step 4: .*; .*last state that was saved is {last}"
    ):
        trainer.fit()
    assert checkpoint.read(last)[1]["step"] == 2


def command(out: Path, *more: str) -> list[str]:
    fields = ["data.batch=64", "train.length=40steps", "train.checkpoint_every=7steps", "encoder.width=8"]
    fields += ["projector.dims=[32,16]", "train.precision=fp32", f"out={out}", *more]
    return [sys.executable, "-m", "twinblock", "pretrain", "simclr", *fields]


def steps_done(out: Path) -> int:
    return len([row for row in Run(out).metrics() if "loss" in row])


def start_and_signal(out: Path, signum: int) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command(out), stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 300
    while not (out / "checkpoint" / checkpoint.LAST).exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signum)
    _, text = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, stderr=text)


@pytest.mark.slow
def test_real_kills_of_the_command(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command(tmp_path / "straight"), check=True, capture_output=True, env=environment)
    for signum, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)):
        out = tmp_path / signal.Signals(signum).name
        killed = start_and_signal(out, signum)
        assert killed.returncode == code, killed.stderr
        assert steps_done(out) < 40
        subprocess.run(command(out), check=True, capture_output=True, env=environment)
        a = checkpoint.read(tmp_path / "straight" / "encoder.safetensors")[0]
        b = checkpoint.read(out / "encoder.safetensors")[0]
        assert all(torch.equal(a[name], b[name]) for name in a)
        assert Run(out).metrics() == Run(tmp_path / "straight").metrics()


def test_other_pixels_under_the_same_names_are_other_images(tmp_path):
    images = tiny.images()
    config = tiny.config("simclr")
    trainer = fit(config, tmp_path / "run")
    other = replace(images, pixels=255 - images.pixels)
    again = tiny.trainer(trainer.config, tmp_path / "run", other)
    with pytest.raises(InputError, match="holds other images than this run began with"):
        again.resume()


def test_steps_are_taken_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    """And it holds the state of its own step."""
    config = tiny.config(
        "byol", "end_to_end", precision="fp32", train={"length": "6steps", "checkpoint_every": "3steps"}
    )
    straight = fit(config.model_copy(update={"train": config.train}), tmp_path / "a", kill_at=None)
    with pytest.raises(Killed):
        fit(config, tmp_path / "b", kill_at=3)
    expected, _ = checkpoint.read(tmp_path / "b/checkpoint/last.safetensors")
    trainer, save, seen = tiny.trainer(config, tmp_path / "c"), checkpoint.save, []

    def slow(folder, tensors, meta):
        until = time.monotonic() + 60
        while meta["step"] == 3 and trainer.step < 5 and time.monotonic() < until:
            time.sleep(0.01)
        seen.append((meta["step"], trainer.step, dict(tensors)))
        save(folder, tensors, meta)

    monkeypatch.setattr(checkpoint, "save", slow)
    trainer.resume()
    trainer.fit()
    trainer.run.release()
    assert [(of, at) for of, at, _ in seen] == [(3, 5), (6, 6)]
    assert all(torch.equal(seen[0][2][name], tensor) for name, tensor in expected.items())
    assert_same(straight, trainer)
