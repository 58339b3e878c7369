"""kill -9 within steps and at every moment of writing: a run ends as if nothing had happened."""

import random
from pathlib import Path

import pytest
import tiny
import torch
from reliability.killing import BEREAVED, IN_A_STEP, WRITING, End, in_processes

from twinblock.config.recipes import recipes
from twinblock.runs import checkpoint

STEPS = 36  # three an epoch, a checkpoint every third, and phases of nine steps in sequential runs
LAST_KILL = 30  # so that something is left to kill even where every kill comes after a checkpoint
FAST = [("simclr", "end_to_end"), ("byol", "simultaneous"), ("moco_v2", "sequential")]
ALL = [(method, scope) for method in (*tiny.METHODS, *tiny.PRUNED) for scope in tiny.SCOPES]


LENGTHS = {"length": f"{STEPS}steps", "checkpoint_every": "3steps"}


def config(method: str, scope: str, norm: str = "batch"):
    return tiny.config(method, scope, norm, precision="fp32", train=LENGTHS)


def ends(kills: int, world: int, seed: str) -> list[End]:
    """Where to kill, in order of time: every third kill while something is written."""
    rng = random.Random(seed)
    steps = sorted(rng.sample(range(LAST_KILL), kills))
    at = [(step, rng.choice(IN_A_STEP if i % 3 else WRITING)) for i, step in enumerate(steps)]
    return [(step, moment, 0 if moment in WRITING else rng.randrange(world)) for step, moment in at]


def assert_same_end(killed: Path, straight: Path) -> None:
    mine, theirs = (checkpoint.read(out / "end.safetensors")[0] for out in (killed, straight))
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
    assert (killed / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()


def survive(run, kills: int, world: int, folder: Path, seed: str) -> None:
    assert in_processes(run, folder / "straight", world) == [0] * world
    for end in ends(kills, world, f"{seed} {world}"):
        codes = in_processes(run, folder / "killed", world, end)
        assert codes.pop(end[2]) == -9, f"{end} did not happen"
        assert codes == [BEREAVED] * (world - 1), "no process goes on alone"
    assert in_processes(run, folder / "killed", world) == [0] * world
    assert_same_end(folder / "killed", folder / "straight")


@pytest.mark.parametrize(("method", "scope"), FAST)
def test_a_few_kills(method, scope, tmp_path):
    survive(config(method, scope), 6, 1, tmp_path, f"{method} {scope}")


@pytest.mark.parametrize("norm", ["batch", "sync"])
def test_a_few_kills_of_two_processes(norm, tmp_path):
    survive(config("byol", "sequential", norm), 2, 2, tmp_path, norm)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "scope"), ALL)
def test_twenty_kills(method, scope, tmp_path):
    survive(config(method, scope), 20, 1, tmp_path, f"{method} {scope}")


@pytest.mark.slow
@pytest.mark.parametrize(("method", "scope"), ALL)
def test_twenty_kills_of_two_processes(method, scope, tmp_path):
    survive(config(method, scope), 20, 2, tmp_path, f"{method} {scope}")


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("name", sorted(recipes()))
def test_twenty_kills_of_every_recipe(name, world, tmp_path):
    survive(tiny.recipe(name, **LENGTHS), 20, world, tmp_path, name)


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("straight")
    assert in_processes(config("simclr", "end_to_end"), out) == [0]
    return out


@pytest.mark.parametrize("moment", WRITING)
def test_every_moment_of_writing(moment, straight, tmp_path):
    """The first, the second and the last checkpoint are cut short at each moment."""
    run = config("simclr", "end_to_end")
    for step in (3, 6, STEPS):
        assert in_processes(run, tmp_path, end=(step, moment, 0)) == [-9]
    assert in_processes(run, tmp_path) == [0]
    assert_same_end(tmp_path, straight)


def test_another_number_of_processes_keeps_the_order_of_the_images(tmp_path):
    """Begun on one process, ended on two: with synchronised statistics the run is the same within rounding."""
    run = config("simclr", "end_to_end", "sync").model_copy(deep=True)
    run = run.model_copy(update={"train": run.train.model_copy(update={"precision": "fp64"})})
    assert in_processes(run, tmp_path / "straight") == [0]
    assert in_processes(run, tmp_path / "changed", 1, end=(12, "before a step", 0)) == [-9]
    assert in_processes(run, tmp_path / "changed", 2) == [0, 0]
    mine, theirs = (checkpoint.read(tmp_path / n / "end.safetensors")[0] for n in ("changed", "straight"))
    difference = max(float((mine[name].double() - theirs[name].double()).abs().max()) for name in mine)
    assert difference < 1e-6
