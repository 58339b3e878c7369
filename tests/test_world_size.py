"""The same weights on 1, 2 and 4 processes, for every objective, target and scope; and mistakes are found out."""

import os
import sys
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path

import pytest
import tiny
import torch
from processes import together

import twinblock.core.distributed
import twinblock.core.seeding
import twinblock.methods.learner
from twinblock.config.recipes import compose, recipes
from twinblock.core.errors import InputError
from twinblock.methods.learners import KINDS as LEARNERS
from twinblock.methods.learners.mae import MAE
from twinblock.training.loader import Loader

CASES = [(method, scope) for method in tiny.COMPOSITIONS for scope in tiny.SCOPES]
FAST = [case for i, case in enumerate(CASES) if (i + i // len(tiny.SCOPES)) % len(tiny.SCOPES) == 0]  # a scope of each
EXPANDED = [(method, "expansion") for method in ("barlow_twins", "byol", "sdclr")]
OTHERS = [(method, scope) for method, other in tiny.OTHERS.items() for scope in other.scopes]
BOUND = {"none": 1e-10, "sync": 1e-6}

# what continues from weights: frozen for a time, paths dropped, rates that fall towards the images
GENTLY = {"encoder": {"freeze": ["conv1", "layer1"], "freeze_for": "2steps", "drop_path": 0.5}}
GENTLY["optim"] = {"layer_decay": 0.7}
GENTLE = [("simclr gently", "end_to_end"), ("byol gently", "simultaneous")]
FIELDS = {"gently": GENTLY, "bio": {"learner": {"projections": 12}}, "peers": {"learner": {"peer": 0.3}}}
VARIANTS = [("local_losses bio", "simultaneous"), ("forward_forward peers", "sequential")]
CREDITED = [*zip(("simclr", "supervised", "vicreg", "byol", "moco_v2"), tiny.CREDIT, strict=True)]
CROPPED = [("dino cropped", "end_to_end"), ("swav cropped", "simultaneous")]
SOME = FAST + EXPANDED + GENTLE + CROPPED + CREDITED + OTHERS + VARIANTS
PARTS = [SOME[i::8] for i in range(8)]  # of minutes each


@contextmanager
def views_one_by_one():
    """The last bits of small float32 views follow how many are made at once, and this is about training in float64."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(twinblock.views, "CHUNK", 1)
        yield


def run_all(folder: Path, cases, norm: str) -> dict[str, dict[str, torch.Tensor]]:
    found = {}
    for method, scope in cases:
        name, _, how = method.partition(" ")
        config = tiny.config(name, scope, norm, **FIELDS.get(how, {}))
        config = tiny.cropped(config) if how == "cropped" else config
        trainer = tiny.trainer(config, folder / f"{name}{how}-{scope}")
        with views_one_by_one() if how == "cropped" else nullcontext():
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
    together(worker, arguments, world, limit=60 * (1 + len(cases)))
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


@pytest.mark.parametrize(
    ("world", "cases", "norm"),
    [
        *((2, part, "none") for part in PARTS),
        *((2, part, "sync") for part in PARTS[::2]),
        *(pytest.param(2, CASES, norm, marks=pytest.mark.slow) for norm in BOUND),
        *(pytest.param(4, CASES + EXPANDED + CREDITED + OTHERS, norm, marks=pytest.mark.slow) for norm in BOUND),
    ],
)
def test_the_weights_do_not_depend_on_the_number_of_processes(alone, world, cases, norm, tmp_path, free_port):
    expected = alone(cases, norm)
    for method, scope in filter(CASES.__contains__, cases):  # equality would prove nothing for a run that stands still
        assert_trained(method, scope, norm, expected[f"{method}-{scope}"], tmp_path / f"{method}-{scope}")
    found = on_processes(world, free_port, tmp_path / "many", cases, norm)
    differences = {name: largest_difference(found[name], expected[name]) for name in expected}
    assert all(value < BOUND[norm] for value in differences.values()), differences


def assert_trained(method: str, scope: str, norm: str, state: dict[str, torch.Tensor], folder: Path) -> None:
    start = tiny.trainer(tiny.config(method, scope, norm), folder).encoder.state_dict()
    moved = {name for name, t in start.items() if not torch.equal(t, state[f"encoder.{name}"])}
    assert moved >= {"conv1.weight", "layer4.0.conv2.weight"}, (method, scope)


def test_every_objective_and_branch_is_compared():
    """What the recipes' objectives and targets allow is covered, and nothing else exists."""
    covered = set()
    for method in tiny.COMPOSITIONS:
        config = tiny.config(method)
        covered.add((config.objective.kind, config.target.kind))
    composed = {name: compose(name) for name in recipes()}
    assert (
        {config.learner.kind for config in composed.values() if config.learner} == LEARNERS.keys() == tiny.OTHERS.keys()
    )
    everything = {config.objective.kind: name for name, config in composed.items() if config.learner is None}
    targets = {"shared": {}, "ema": {"momentum": 0.9}, "pruned": {"ratio": 0.5}}
    for objective, recipe in everything.items():
        for target, fields in targets.items():
            try:
                compose(recipe, {"target": {"kind": target, **fields}})
            except InputError:
                assert (objective, target) not in covered
            else:
                assert (objective, target) in covered


def gather_at_one_over_w() -> None:
    """The mistake that six libraries shipped: the own shard live, but its gradient not scaled."""
    twinblock.core.distributed._scale_gradient = lambda x, factor: x


def no_gather() -> None:
    """Each process compares the images of its own part only."""
    for name, module in list(sys.modules.items()):
        if name.startswith("twinblock.methods.") and hasattr(module, "gather"):
            module.gather = lambda x: x


def views_by_place_in_the_part() -> None:
    """Each process draws the views of the first images of the global batch."""
    views = twinblock.views.Views.__call__
    twinblock.views.Views.__call__ = lambda self, *images, offset=0, **key: views(self, *images, **key)


def draws_by_place_in_the_part() -> None:
    """Each process draws for its samples what the first one does for its own."""
    draw = twinblock.core.seeding.uniform
    for module in [*sys.modules.values()]:  # asking a lazy one for a name may import another
        if getattr(module, "uniform", None) is draw:
            module.uniform = lambda key, offset, *shape: draw(key, 0, *shape)


def masks_by_place_in_the_part() -> None:
    """Each process hides what the first one does."""
    places = MAE.places
    MAE.places = lambda self, key, offset, *rest: places(self, key, 0, *rest)


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


# means over images: each part's own is right
SEPARABLE = ("byol", "simsiam", "supervised", "sdclr_byol", "mae", "forward_forward", "dbn", "vae")
AS_THEY_ARE = ("forward_forward", "dbn", "vae", "scff")  # views of these recipes draw nothing


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
    every = (*tiny.COMPOSITIONS, *tiny.OTHERS)
    some = ("simclr", "moco_v2", "vicreg", *SEPARABLE, "scff", "local_losses", "greedy_infomax", "clapp")
    methods = every if mistake is gather_at_one_over_w else some
    if mistake is statistics_without_gradient_of_others:  # these have no such statistics
        methods = tuple(method for method in methods if method not in tiny.OTHERS)
    of_some = {method: other.scopes for method, other in tiny.OTHERS.items()}
    cases = [(method, scope) for method in methods for scope in scopes if scope in of_some.get(method, tiny.SCOPES)]
    if scopes == tiny.SCOPES[:1]:  # in blocks alone
        cases += [(method, of_some[method][0]) for method in methods if scopes[0] not in of_some.get(method, scopes)]
    expected = alone(cases, norm)
    found = on_processes(2, free_port, tmp_path / "broken", cases, norm, mistake)
    right = {name.split("-")[0] for name in expected if largest_difference(found[name], expected[name]) < BOUND[norm]}
    harmless = {no_gather: SEPARABLE, views_by_place_in_the_part: AS_THEY_ARE}
    assert right == set(harmless.get(mistake, ()))


@pytest.mark.parametrize("method", ["forward_forward", "vae"])
def test_draws_that_are_the_same_on_every_process_are_found_out(alone, method, tmp_path, free_port):
    cases = [(method, tiny.OTHERS[method].scopes[0])]
    found = on_processes(2, free_port, tmp_path / "broken", cases, "none", draws_by_place_in_the_part)
    (name,) = found
    assert largest_difference(found[name], alone(cases, "none")[name]) > 1e-4


def test_masks_that_are_the_same_on_every_process_are_found_out(alone, tmp_path, free_port):
    cases = [("mae", "end_to_end")]
    found = on_processes(2, free_port, tmp_path / "broken", cases, "none", masks_by_place_in_the_part)
    assert largest_difference(found["mae-end_to_end"], alone(cases, "none")["mae-end_to_end"]) > 1e-4
