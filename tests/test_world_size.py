"""The same weights on 1, 2 and 4 processes, for every objective, target and scope; and mistakes are found out."""

import os
from functools import cache
from pathlib import Path

import pytest
import tiny
import torch
from torch import multiprocessing

import twinblock.core.distributed
import twinblock.methods.learner
from twinblock.config.recipes import compose, recipes
from twinblock.core.errors import InputError
from twinblock.training.loader import Loader

CASES = [(method, scope) for method in tiny.COMPOSITIONS for scope in tiny.SCOPES]
FAST = [case for i, case in enumerate(CASES) if (i + i // len(tiny.SCOPES)) % len(tiny.SCOPES) == 0]  # a scope of each
EXPANDED = [(method, "expansion") for method in ("barlow_twins", "byol", "sdclr")]
BOUND = {"none": 1e-10, "sync": 1e-6}


# what continues from weights: frozen for a time, paths dropped, rates that fall towards the images
GENTLY = {"encoder": {"freeze": ["conv1", "layer1"], "freeze_for": "2steps", "drop_path": 0.5}}
GENTLY["optim"] = {"layer_decay": 0.7}
GENTLE = [("simclr gently", "end_to_end"), ("byol gently", "simultaneous")]


def run_all(folder: Path, cases, norm: str) -> dict[str, dict[str, torch.Tensor]]:
    found = {}
    for method, scope in cases:
        name, _, gently = method.partition(" ")
        config = tiny.config(name, scope, norm, **(GENTLY if gently else {}))
        trainer = tiny.trainer(config, folder / f"{name}{gently}-{scope}")
        trainer.fit()
        found[f"{method}-{scope}"] = tiny.state(trainer)
    return found


def worker(rank: int, world: int, port: int, folder: Path, cases, norm: str, mistake) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if mistake is not None:
        mistake()
    found = run_all(folder, cases, norm)
    if rank == 0:
        torch.save(found, folder / "found.pt")
    torch.distributed.destroy_process_group()


def on_processes(world: int, port: int, folder: Path, cases, norm: str, mistake=None):
    folder.mkdir(parents=True)
    arguments = (world, port, folder, cases, norm, mistake)
    multiprocessing.start_processes(worker, arguments, nprocs=world, start_method="fork")  # spawning costs seconds
    return torch.load(folder / "found.pt", weights_only=True)


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a if a[name].numel())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The states on one process, by norm and case."""

    @cache
    def one(case, norm):
        return run_all(tmp_path_factory.mktemp("alone"), [case], norm)

    return lambda cases, norm: {name: state for case in cases for name, state in one(case, norm).items()}


@pytest.mark.parametrize("norm", ["none", "sync"])
@pytest.mark.parametrize(
    ("world", "cases"),
    [
        (2, FAST + EXPANDED + GENTLE),
        pytest.param(2, CASES, marks=pytest.mark.slow),
        pytest.param(4, CASES + EXPANDED, marks=pytest.mark.slow),
    ],
    ids=["2-some", "2-all", "4-all"],
)
def test_the_weights_do_not_depend_on_the_number_of_processes(alone, world, cases, norm, tmp_path, free_port):
    expected = alone(cases, norm)
    found = on_processes(world, free_port, tmp_path / "many", cases, norm)
    differences = {name: largest_difference(found[name], expected[name]) for name in expected}
    assert max(differences.values()) < BOUND[norm], differences


def test_every_objective_and_branch_is_compared():
    """What the recipes' objectives and targets allow is covered, and nothing else exists."""
    covered = set()
    for method in tiny.COMPOSITIONS:
        config = tiny.config(method)
        covered.add((config.objective.kind, config.target.kind))
    everything = {compose(name).objective.kind: name for name in recipes()}
    targets = {"shared": {}, "ema": {"momentum": 0.9}, "pruned": {"ratio": 0.5}}
    for objective, recipe in everything.items():
        for target, fields in targets.items():
            try:
                compose(recipe, {"target": {"kind": target, **fields}})
            except InputError:
                assert (objective, target) not in covered
            else:
                assert (objective, target) in covered


@pytest.mark.parametrize("norm", ["none", "sync"])
def test_training_moves_the_weights(alone, norm, tmp_path):
    """Equality would prove nothing for a run that stands still."""
    expected = alone(FAST, norm)
    for method, scope in FAST:
        start = tiny.trainer(tiny.config(method, scope, norm), tmp_path / f"{method}-{scope}").encoder.state_dict()
        moved = {
            name: t for name, t in start.items() if not torch.equal(t, expected[f"{method}-{scope}"][f"encoder.{name}"])
        }
        assert "conv1.weight" in moved
        assert "layer4.0.conv2.weight" in moved


def gather_at_one_over_w() -> None:
    """The mistake that six libraries shipped: the own shard live, but its gradient not scaled."""
    twinblock.core.distributed._scale_gradient = lambda x, factor: x


def no_gather() -> None:
    """Each process compares the images of its own part only."""
    twinblock.methods.learner.gather = lambda x: x


def views_by_place_in_the_part() -> None:
    """Each process draws the views of the first images of the global batch."""
    views = twinblock.views.Views.__call__
    twinblock.views.Views.__call__ = lambda self, *images, offset=0, **key: views(self, *images, **key)


def same_images_for_all() -> None:
    """Each process takes the first part of the batch."""
    gather = Loader.gather

    def first(self, step):
        self.offset, offset = 0, self.offset
        try:
            return gather(self, step)
        finally:
            self.offset = offset

    Loader.gather = first


def statistics_without_gradient_of_others() -> None:
    """Synchronised statistics whose gradient is that of the own part."""
    backward = twinblock.core.distributed.NormaliseBatch.backward

    def own(*given):
        total, twinblock.core.distributed._total = twinblock.core.distributed._total, lambda x: x
        try:
            return backward(*given)
        finally:
            twinblock.core.distributed._total = total

    twinblock.core.distributed.NormaliseBatch.backward = staticmethod(own)


SEPARABLE = ("byol", "simsiam", "supervised", "sdclr_byol")  # means over images: each part's own is right


@pytest.mark.parametrize(
    ("mistake", "norm", "scopes"),
    [
        (gather_at_one_over_w, "none", tiny.SCOPES[:1]),
        pytest.param(gather_at_one_over_w, "none", tiny.SCOPES[1:], marks=pytest.mark.slow),
        (no_gather, "none", tiny.SCOPES[:1]),
        (views_by_place_in_the_part, "none", tiny.SCOPES[:1]),
        (same_images_for_all, "none", tiny.SCOPES[:1]),
        (statistics_without_gradient_of_others, "sync", tiny.SCOPES[:1]),
    ],
)
def test_mistakes_are_found_out(alone, mistake, norm, scopes, tmp_path, free_port):
    methods = tiny.COMPOSITIONS if mistake is gather_at_one_over_w else ("simclr", "moco_v2", "vicreg", *SEPARABLE)
    cases = [(method, scope) for method in methods for scope in scopes]
    expected = alone(cases, norm)
    found = on_processes(2, free_port, tmp_path / "broken", cases, norm, mistake)
    right = {name.split("-")[0] for name in expected if largest_difference(found[name], expected[name]) < BOUND[norm]}
    assert right == (set(SEPARABLE) if mistake is no_gather else set())
