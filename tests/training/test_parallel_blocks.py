"""Blocks on processes of their own: the weights, states and metrics of simultaneous training, to the bit."""

import json
import os
import shutil
import signal as signals
from pathlib import Path

import pytest
import tiny
import torch
from processes import together

from twinblock.config.recipes import compose
from twinblock.config.schema import check
from twinblock.core.errors import InputError, Interrupted
from twinblock.training.step import TrainStep

CASES = [
    ("simclr", "simultaneous", {}),
    ("byol", "expansion", {}),  # two streams, and noise
    ("sdclr_moco", "simultaneous", {}),  # a pruned copy and a queue
    ("pcl", "simultaneous", {}),  # looks at all images
    ("barlow_twins", "sequential", {}),
    ("mae", "simultaneous", {}),  # no siamese learner
]
SHORT = {"length": "5steps", "checkpoint_every": "2steps", "parallel": "blocks"}


def config(method: str, scope: str, of_run: dict):
    """`of_run`: the norm, and where the encoder is cut."""
    found = tiny.config(method, scope, of_run.get("norm", "batch"), train=SHORT)
    tree = found.model_dump(mode="json")
    tree["scope"] |= {"cuts": of_run.get("cuts", tree["scope"]["cuts"])}
    return check(tree)


def run_all(folder: Path, cases, interrupt: bool) -> dict[str, dict[str, torch.Tensor]]:
    found = {}
    for number, case in enumerate(cases):
        trainer = tiny.trainer(config(*case), folder / str(number))
        trainer.resume()
        if interrupt:
            with pytest.raises(Interrupted):
                trainer.fit()
            continue
        trainer.fit()
        found[str(number)] = tiny.state(trainer)
    return found


def in_the_fourth_step(self, step, samples, call=TrainStep.__call__):
    if step == 3:
        raise Interrupted(signals.SIGTERM, step)
    return call(self, step, samples)


def worker(rank: int, world: int, port: int, folder: Path, cases, interrupt: bool) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if interrupt:
        TrainStep.__call__ = in_the_fourth_step  # pyright: ignore[reportAttributeAccessIssue]
    found = run_all(folder, cases, interrupt)
    if rank == 0:
        torch.save(found, folder / "found.pt")
    torch.distributed.destroy_process_group()


def on_processes(world: int, port: int, folder: Path, cases, interrupt: bool = False):
    folder.mkdir(parents=True, exist_ok=True)
    arguments = (world, port, folder, cases, interrupt)
    together(worker, arguments, world, limit=60 * (1 + len(cases)))
    return torch.load(folder / "found.pt", weights_only=True)


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a if a[name].numel())


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("world", "cases"), [(2, CASES), pytest.param(4, CASES[:-1], marks=pytest.mark.slow)], ids=["2", "4"]
)
def test_they_are_those_of_one_process(world, cases, tmp_path, free_port):
    alone = run_all(tmp_path / "alone", cases, False)
    found = on_processes(world, free_port, tmp_path / "spread", cases)
    for number, case in enumerate(cases):
        expected, name = alone[str(number)], str(number)
        assert expected.keys() == found[name].keys(), case
        different = [key for key, t in expected.items() if not torch.equal(t, found[name][key])]
        assert not different, (case, different[:3])
        assert metrics(tmp_path / "spread" / name) == metrics(tmp_path / "alone" / name), case


@pytest.mark.parametrize("norm", ["none", "sync"])
def test_processes_of_a_stage_share_a_batch(norm, tmp_path, free_port):
    cases = [(method, "simultaneous", {"norm": norm, "cuts": ["layer3"]}) for method in ("simclr", "byol")]
    alone = run_all(tmp_path / "alone", cases, False)
    found = on_processes(4, free_port, tmp_path / "spread", cases)
    differences = {name: largest_difference(found[name], expected) for name, expected in alone.items()}
    assert max(differences.values()) < {"none": 1e-10, "sync": 1e-6}[norm], differences


def test_a_run_goes_on_spread_and_alone(tmp_path, free_port):
    cases = CASES[1:2]
    expected = run_all(tmp_path / "whole", cases, False)["0"]
    on_processes(2, free_port, tmp_path / "killed", cases, interrupt=True)
    for folder in ("alone", "spread"):
        shutil.copytree(tmp_path / "killed" / "0", tmp_path / folder / "0")
    alone = run_all(tmp_path / "alone", cases, False)["0"]
    spread = on_processes(2, free_port, tmp_path / "spread", cases)["0"]
    for found in (alone, spread):
        assert [key for key, t in expected.items() if not torch.equal(t, found[key])] == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "train.parallel=blocks: scope.kind=end_to_end trains blocks as one; use data"),
        ({"scope": {"kind": "overlapping"}}, "train.parallel=blocks: scope.kind=overlapping trains blocks as one"),
        ({"scope": {"kind": "blockwise"}, "data": {"batch": "auto"}}, "give a number for auto"),
    ],
)
def test_what_does_not_go_together_is_refused(fields, said):
    with pytest.raises(InputError, match=said):
        compose("simclr", {"train": {"parallel": "blocks"}, **fields})
