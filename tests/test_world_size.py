"""The same weights on 1, 2 and 4 processes, for every method and scope; and a broken `gather` is found out."""

import os
import socket
from pathlib import Path

import pytest
import tiny
import torch
from torch import multiprocessing

import twinblock.learner

CASES = [(method, scope) for method in tiny.METHODS for scope in tiny.SCOPES]
CASES += [(method, scope) for method in tiny.PRUNED for scope in tiny.SCOPES[:2]]


def run_all(folder: Path, cases, norm: str) -> dict[str, dict[str, torch.Tensor]]:
    found = {}
    for method, scope in cases:
        trainer = tiny.trainer(tiny.config(method, scope, norm), folder / f"{method}-{scope}")
        trainer.fit()
        found[f"{method}-{scope}"] = tiny.state(trainer)
    return found


def worker(rank: int, world: int, port: int, folder: Path, cases, norm: str, broken: bool) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if broken:
        twinblock.learner.gather = gather_at_one_over_w
    found = run_all(folder, cases, norm)
    if rank == 0:
        torch.save(found, folder / "found.pt")
    torch.distributed.destroy_process_group()


def gather_at_one_over_w(x: torch.Tensor) -> torch.Tensor:
    """The mistake that six libraries shipped: the own shard live, but its gradient not scaled."""
    world = torch.distributed.get_world_size()
    shards = [torch.empty_like(x) for _ in range(world)]
    torch.distributed.all_gather(shards, x.detach().contiguous())
    shards[torch.distributed.get_rank()] = x
    return torch.cat(shards)


def on_processes(world: int, folder: Path, cases, norm: str, broken: bool = False):
    folder.mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(worker, (world, port, folder, cases, norm, broken), nprocs=world)
    return torch.load(folder / "found.pt", weights_only=True)


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a if a[name].numel())


@pytest.fixture(scope="module", params=["none", "sync"])
def alone(request, tmp_path_factory):
    return request.param, run_all(tmp_path_factory.mktemp("alone"), CASES, request.param)


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_weights_do_not_depend_on_the_number_of_processes(alone, world, tmp_path):
    norm, expected = alone
    found = on_processes(world, tmp_path / "many", CASES, norm)
    bound = 1e-10 if norm == "none" else 1e-6
    differences = {name: largest_difference(found[name], expected[name]) for name in expected}
    assert max(differences.values()) < bound, differences


def test_training_moves_the_weights(alone, tmp_path):
    """Equality would prove nothing for a run that stands still."""
    norm, expected = alone
    for method, scope in CASES:
        start = tiny.trainer(tiny.config(method, scope, norm), tmp_path / f"{method}-{scope}").encoder.state_dict()
        moved = {
            name: t for name, t in start.items() if not torch.equal(t, expected[f"{method}-{scope}"][f"encoder.{name}"])
        }
        assert "conv1.weight" in moved
        assert "layer4.0.conv2.weight" in moved


def test_a_broken_gather_is_found_out(tmp_path):
    cases = [(method, "end_to_end") for method in (*tiny.METHODS, *tiny.PRUNED)]
    alone = run_all(tmp_path / "alone", cases, "none")
    found = on_processes(2, tmp_path / "broken", cases, "none", broken=True)
    right = [name for name in alone if largest_difference(found[name], alone[name]) < 1e-10]
    assert right == [], f"these came out right all the same: {right}"
