"""The command line as a person meets it: runs from start to verdict, and one line for every fault."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from commands import call
from PIL import Image

import twinblock
from twinblock import cli
from twinblock.core.errors import InputError, Interrupted
from twinblock.runs import checkpoint
from twinblock.runs.run import Run

SMALL = [
    "encoder.kind=resnet10",
    "encoder.width=8",
    "data.batch=64",
    "train.length=4steps",
    "projector.dims=[16,8]",
    "train.precision=fp32",
]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A hundred small photographs of noise, flat in one folder, with names that need care."""
    monkeypatch.setenv("TWINBLOCK_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "my photos [b]é"
    folder.mkdir()
    rng = np.random.Generator(np.random.PCG64(0))
    for i in range(100):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"a b [red]{i}.png")
    return folder


def test_a_folder_of_photos_from_start_to_finish(monkeypatch, capsys, tmp_path, photos):
    (photos / "broken.jpg").write_bytes(b"not a picture")
    out = tmp_path / "run"
    command = ["pretrain", "simclr", f"data={photos}", f"out={out}", *SMALL]
    code, _, error = call(monkeypatch, capsys, *command)
    assert code == 0, error
    assert "100 images" in error
    assert "1 unreadable" in error
    assert "no labels" in error
    assert "effective rank" in error
    lines = error.splitlines()
    assert [i for i, line in enumerate(lines) if line.startswith("step 1/4 · loss ")] == [1]  # shown at once
    assert len(lines) < 20
    assert error.splitlines()[-1] == f"next: twinblock embed {out} · twinblock evaluate {out} data=LABELLED"
    assert f"twinblock.load_encoder({str(out)!r})" in error
    assert "broken.jpg" in (out / "skipped.txt").read_text()
    for name in ("config.yaml", "metrics.jsonl", "encoder.safetensors", "result.json"):
        assert (out / name).is_file()
    (tmp_path / "new").touch()
    assert (out / "encoder.safetensors").stat().st_mode == (tmp_path / "new").stat().st_mode
    code, _, error = call(monkeypatch, capsys, *command)
    assert code == 0
    assert "finished; nothing to do" in error
    code, _, error = call(monkeypatch, capsys, *command, "optim.lr=9")
    assert code == 2
    assert "optim.lr: 0.06 there, 9.0 here" in error
    code, _, error = call(monkeypatch, capsys, "evaluate", out)
    assert code == 2
    assert "no labels" in error


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), None])
def test_without_memory_the_run_says_what_takes_less(monkeypatch, capsys, tmp_path, photos, error):
    from twinblock.training.step import TrainStep

    def train_step(*_):
        if error is not None:
            raise error
        torch.empty(10**15)  # as the machine refuses it

    monkeypatch.setattr(TrainStep, "__call__", train_step)
    code, _, shown = call(
        monkeypatch, capsys, "pretrain", "simclr", f"data={photos}", f"out={tmp_path / 'run'}", *SMALL
    )
    assert code == 2
    assert shown.splitlines()[-1].startswith("error: out of memory (")
    assert "lower data.batch or data.size" in shown


def test_an_interrupted_run_says_how_to_go_on(monkeypatch, capsys, tmp_path, photos):
    from twinblock.training.step import TrainStep

    step = TrainStep.__call__

    def interrupted(self, number, samples):
        if number == 2:
            os.kill(os.getpid(), 2)
        return step(self, number, samples)

    out = tmp_path / "run"
    command = ["pretrain", "simclr", f"data={photos}", f"out={out}", *SMALL, "train.length=9steps"]
    monkeypatch.setattr(TrainStep, "__call__", interrupted)
    code, _, error = call(monkeypatch, capsys, *command)
    assert code == 130
    assert "stopped at step 3, state saved; the same command goes on" in error
    monkeypatch.setattr(TrainStep, "__call__", step)
    code, _, error = call(monkeypatch, capsys, *command)
    assert code == 0
    assert "resuming at step 3 of 9" in error
    assert len([row for row in Run(out).metrics() if "loss" in row]) == 9


@pytest.mark.parametrize("rank", [0, 1])
def test_of_several_processes_that_stop_one_says_so(monkeypatch, capsys, rank):
    def stopped():
        raise Interrupted(15, 3)

    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setattr(cli, "app", stopped)
    code, _, error = call(monkeypatch, capsys)
    assert code == 143
    assert error == ("stopped at step 3, state saved; the same command goes on from there\n" if rank == 0 else "")


def test_python_and_evaluation(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TWINBLOCK_CACHE", str(tmp_path / "cache"))
    run = twinblock.pretrain("byol", out=tmp_path / "a", quiet=True, overrides=[*SMALL, "predictor.dims=[16,8]"])
    assert run.result["knn"].keys() == {"encoder", "raw pixels", "untrained encoder"}
    encoder = twinblock.load_encoder(tmp_path / "a")
    assert not encoder.training
    assert encoder(torch.zeros(2, 3, 32, 32)).shape == (2, encoder.width)
    rows = twinblock.evaluate(tmp_path / "a")
    assert [row["features"] for row in rows] == ["encoder", "raw pixels", "untrained encoder"]
    written = json.loads((tmp_path / "a" / "evaluation.json").read_text())
    assert written["rows"] == rows
    code, out, _ = call(monkeypatch, capsys, "evaluate", tmp_path / "a")
    assert code == 0
    assert "raw pixels" in out


def test_an_out_that_cannot_be_used(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    for out, words in (
        ("file", "cannot write there"),
        ("full", "not empty"),
        ("file/below", "cannot write there"),
    ):
        code, _, error = call(monkeypatch, capsys, "pretrain", "byol", f"out={tmp_path / out}")
        assert code == 2
        assert words in error
    assert (tmp_path / "full" / "thesis.tex").read_text() == "x"
    for command in ("evaluate",):
        code, _, error = call(monkeypatch, capsys, command, tmp_path / "nothing")
        assert code == 2
        assert "no run at" in error


def test_a_full_disk_keeps_the_last_checkpoint(monkeypatch, capsys, tmp_path, photos):
    save_file, calls = checkpoint.save_file, []

    def full(tensors, path, metadata):
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save_file(tensors, path, metadata)

    monkeypatch.setattr(checkpoint, "save_file", full)
    out = tmp_path / "run"
    more = ["train.length=9steps", "train.checkpoint_every=2steps"]
    code, _, error = call(monkeypatch, capsys, "pretrain", "simclr", f"data={photos}", f"out={out}", *SMALL, *more)
    assert code == 2
    assert "No space left on device" in error.splitlines()[-1]
    assert checkpoint.read(out / "checkpoint" / "last.safetensors")[1]["step"] == 2
    assert sorted(p.name for p in (out / "checkpoint").iterdir()) == ["last.safetensors"]


def test_a_learning_rate_that_is_far_too_high_ends_with_a_reason(monkeypatch, capsys, tmp_path, photos):
    out = tmp_path / "run"
    more = ["optim.lr=1e6", "train.length=200steps", "train.checkpoint_every=1steps"]
    code, _, error = call(monkeypatch, capsys, "pretrain", "simclr", f"data={photos}", f"out={out}", *SMALL, *more)
    assert code == 2
    last = error.splitlines()[-1]
    assert "training diverged; lower optim.lr" in last and "in another out" in last
    assert not (out / "encoder.safetensors").exists()
    if (out / "checkpoint").exists():
        assert str(out / "checkpoint" / "last.safetensors") in last
        state, _ = checkpoint.read(out / "checkpoint" / "last.safetensors")
        assert all(tensor.isfinite().all() for tensor in state.values() if tensor.is_floating_point())


@pytest.mark.parametrize("state", ["complete collapse", "diverging", "healthy"])
def test_a_run_that_failed_ends_with_code_3_and_the_reason_last(monkeypatch, capsys, tmp_path, photos, state):
    from twinblock import diagnosis

    judged = diagnosis.Verdict(state, state, "numbers", "advice")
    monkeypatch.setattr(sys.modules["twinblock.diagnosis.verdict"], "verdict", lambda *_, **__: judged)
    command = ["pretrain", "simclr", f"data={photos}", f"out={tmp_path / 'run'}", *SMALL, "train.length=1steps"]
    for _ in range(2):  # the second time it says so again and does nothing
        code, _, error = call(monkeypatch, capsys, *command)
        assert code == (0 if state == "healthy" else 3)
        first, *below = error.splitlines()[-3:]
        assert state == "healthy" or (first.startswith(f"{state}: ") and below == ["why: numbers", "advice: advice"])
        assert ("twinblock embed" in error) == (state == "healthy" and "nothing to do" not in error)


def test_a_run_that_did_not_begin_leaves_no_folder(monkeypatch, capsys, tmp_path):
    (tmp_path / "mine").mkdir()
    for out in ("runs/new", "mine"):
        code, _, error = call(monkeypatch, capsys, "pretrain", "simclr", "data=no/such/folder", f"out={tmp_path / out}")
        assert code == 2 and error.count("\n") == 1
    assert not (tmp_path / "runs" / "new").exists()
    assert (tmp_path / "mine").is_dir()


FULL = """
import errno, io, sys
class Full(io.TextIOBase):
    encoding = "utf-8"
    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")
sys.stdout = Full()
from twinblock.cli import main
main()
"""


@pytest.mark.parametrize("command", [["recipes"], ["show", "demo"]])
def test_a_full_disk_where_the_output_goes_is_one_line(command):
    done = subprocess.run([sys.executable, "-c", FULL, *command], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: No space left on device: where the output goes")
    assert done.stderr.count("\n") == 1


def test_a_picture_that_fails_leaves_a_finished_run(monkeypatch, capsys, tmp_path, photos):
    from twinblock.runs import curves

    def draw(*_):
        raise ValueError("no such font")

    monkeypatch.setattr(curves, "draw", draw)
    out = tmp_path / "lr$0.1$^$"
    code, _, error = call(monkeypatch, capsys, "pretrain", "simclr", f"data={photos}", f"out={out}", *SMALL)
    assert code == 0, error
    assert "curves.png was not drawn (no such font)" in error
    assert Run(out).finished and (out / "encoder.safetensors").exists()
    assert json.loads((out / "environment.json").read_text())["starts"][0]["to_step"] == 4


def test_a_program_s_settings_neither_disturb_a_run_nor_are_changed(tmp_path, photos):
    def weights(out):
        overrides = [*SMALL, "train.length=2steps", "train.deterministic=true"]
        twinblock.pretrain("simclr", data=str(photos), out=tmp_path / out, overrides=overrides, quiet=True)
        return Run(tmp_path / out).encoder().state_dict()

    usual, before = weights("a"), dict(os.environ)
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    try:
        disturbed = weights("b")
        assert torch.get_default_dtype() == torch.float64 and not torch.is_grad_enabled()
        assert not torch.are_deterministic_algorithms_enabled()
        assert dict(os.environ) == before
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
    assert [name for name in usual if not torch.equal(usual[name], disturbed[name])] == []


def test_a_run_that_may_not_be_written_is_measured_all_the_same(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("TWINBLOCK_CACHE", str(tmp_path / "cache"))
    run = twinblock.pretrain("simclr", out=tmp_path / "a", quiet=True, overrides=[*SMALL, "train.length=1steps"])

    def refuse(self, name, content):
        raise InputError(f"cannot write {self.path / name}: Permission denied")

    monkeypatch.setattr(Run, "write", refuse)
    code, out, _ = call(monkeypatch, capsys, "evaluate", run.path)
    assert code == 0 and "untrained encoder" in out
    assert run.evaluation is None
    code, _, _ = call(monkeypatch, capsys, "embed", run.path, f"out={tmp_path / 'mine.npz'}")
    assert code == 0 and (tmp_path / "mine.npz").exists()
    code, _, _ = call(monkeypatch, capsys, "diagnose", run.path)
    assert code == 0
