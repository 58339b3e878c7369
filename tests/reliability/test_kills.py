"""kill -9 at random steps and at every moment of writing a checkpoint: a run ends as if nothing had happened."""

import random
from pathlib import Path

import pytest
import tiny
import torch
from reliability.killing import BEREAVED, MOMENTS, in_processes

from twinblock import checkpoint

STEPS = 24  # three an epoch, a checkpoint every fifth, and phases of six steps in sequential runs
FAST = [("simclr", "end_to_end"), ("byol", "simultaneous"), ("moco_v2", "sequential")]
ALL = [(method, scope) for method in tiny.METHODS for scope in tiny.SCOPES]


def config(method: str, scope: str, norm: str = "batch"):
    train = {"length": f"{STEPS}steps", "checkpoint_every": "5steps"}
    return tiny.config(method, scope, norm, precision="fp32", train=train)


def ends(kills: int, seed: str) -> list[tuple[int, str | None]]:
    """Where to kill, in order of time: half of them while a checkpoint is written."""
    rng = random.Random(seed)
    steps = sorted(rng.sample(range(1, STEPS), kills))
    return [(step, rng.choice(MOMENTS) if i % 2 else None) for i, step in enumerate(steps)]


def assert_same_end(killed: Path, straight: Path) -> None:
    mine, theirs = (checkpoint.read(out / "end.safetensors")[0] for out in (killed, straight))
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
    assert (killed / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()


def survive(method: str, scope: str, kills: int, world: int, folder: Path, norm: str = "batch") -> None:
    run = config(method, scope, norm)
    assert in_processes(run, folder / "straight", world) == [0] * world
    deaths = 0
    for end in ends(kills, f"{method} {scope} {world}"):
        codes = in_processes(run, folder / "killed", world, end)
        deaths += codes[0] == -9
        assert codes[0] in (-9, 0)
        assert codes[1:] == ([BEREAVED] if codes[0] == -9 else [0]) * (world - 1), "no process goes on alone"
        if codes[0] == 0:
            break
    assert deaths >= min(kills, 2) - 1
    if not (folder / "killed" / "end.safetensors").exists():
        assert in_processes(run, folder / "killed", world) == [0] * world
    assert_same_end(folder / "killed", folder / "straight")


@pytest.mark.parametrize(("method", "scope"), FAST)
def test_a_few_kills(method, scope, tmp_path):
    survive(method, scope, 5, 1, tmp_path)


def test_a_few_kills_of_two_processes(tmp_path):
    survive("byol", "simultaneous", 2, 2, tmp_path, norm="sync")


@pytest.mark.slow
@pytest.mark.parametrize(("method", "scope"), ALL)
def test_twenty_kills(method, scope, tmp_path):
    survive(method, scope, 20, 1, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("method", tiny.METHODS)
def test_twenty_kills_of_two_processes(method, tmp_path):
    survive(method, "end_to_end", 20, 2, tmp_path, norm="sync")


@pytest.mark.parametrize("moment", MOMENTS)
def test_every_moment_of_writing_a_checkpoint(moment, tmp_path):
    """The second checkpoint is cut short at each moment; the run goes on from the first or the second."""
    run = config("simclr", "end_to_end")
    assert in_processes(run, tmp_path / "straight") == [0]
    assert in_processes(run, tmp_path / "killed", end=(10, moment)) == [-9]
    assert in_processes(run, tmp_path / "killed") == [0]
    assert_same_end(tmp_path / "killed", tmp_path / "straight")


def test_another_number_of_processes_keeps_the_order_of_the_images(tmp_path):
    """Begun on one process, ended on two: with synchronised statistics the run is the same within rounding."""
    run = config("simclr", "end_to_end", "sync").model_copy(deep=True)
    run = run.model_copy(update={"train": run.train.model_copy(update={"precision": "fp64"})})
    assert in_processes(run, tmp_path / "straight") == [0]
    assert in_processes(run, tmp_path / "changed", 1, end=(12, None)) == [-9]
    assert in_processes(run, tmp_path / "changed", 2) == [0, 0]
    mine, theirs = (checkpoint.read(tmp_path / n / "end.safetensors")[0] for n in ("changed", "straight"))
    difference = max(float((mine[name].double() - theirs[name].double()).abs().max()) for name in mine)
    assert difference < 1e-6
