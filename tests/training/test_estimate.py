"""What a run will take: counts by hand, memory that follows the batch, and nothing that stays."""

import os
import resource
import sys

import pytest
import tiny
import torch

import twinblock
from twinblock.training import pace
from twinblock.training.estimate import in_words

SMALL = ["encoder.kind=resnet10", "encoder.width=8", "encoder.stem=standard", "data.batch=16", "train.precision=fp32"]
BYOL = [*SMALL, "projector.dims=[24,8]", "predictor.dims=[24,8]", "train.length=6steps"]


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(pace, "SECONDS", 0.01)


def estimated(*more: str, images: int = 48):
    return twinblock.estimate("byol", data=tiny.images(images), overrides=[*BYOL, *more])


def test_what_is_counted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = estimated()
    assert os.listdir() == []  # no run has begun
    assert (found["images"], found["batch"], found["steps"]) == (48, 16, 6)
    run = twinblock.pretrain("byol", data=tiny.images(), out="run", overrides=BYOL, quiet=True)
    encoder = sum(p.numel() for p in run.encoder().parameters())
    heads = [width * 24 + 24 + 2 * 24 + 24 * 8 for width in (64, 8)]  # bias and norm of the hidden layer
    assert found["parameters"] == {"encoder": encoder, "heads": sum(heads), "target": encoder + heads[0]}
    memory = found["memory"]
    assert memory["weights"] == 4 * (encoder + sum(heads))
    assert memory["target"] == 4 * (encoder + heads[0])
    assert memory["optimizer"] == 4 * (encoder + sum(heads))  # a momentum each
    assert memory["step"] > memory["weights"]  # gradients, and what they are computed from
    assert memory["peak"] <= 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = sum(file.stat().st_size for file in run.path.rglob("*.safetensors"))
    assert found["disk"] == pytest.approx(size, rel=0.15)
    assert found["seconds"] == pytest.approx(6 * 16 / found["images_per_second"] + found["measuring"] + found["saving"])


def test_a_step_takes_as_much_more_as_it_has_images_and_micro_batches_less():
    small, large = (estimated(f"data.batch={batch}", images=128)["memory"]["step"] for batch in (16, 64))
    parts = estimated("data.batch=64", "train.micro_batch=16", images=128)["memory"]["step"]
    assert 2.5 < large / small < 4  # the gradients of the weights do not grow
    assert parts < 0.7 * large  # the views are there as a whole


def test_blocks_in_sequence_are_each_measured():
    found = estimated("scope.kind=blockwise", "scope.plan=sequential", "train.length=8steps")
    assert found["steps"] == 8
    together = estimated("scope.kind=blockwise", "train.length=8steps")
    assert found["memory"]["step"] < 1.5 * together["memory"]["step"]


def test_the_run_that_follows_is_the_same(tmp_path):
    """Nothing of the estimate is left in the process."""
    before = twinblock.pretrain("byol", data=tiny.images(), out=tmp_path / "a", overrides=BYOL, quiet=True)
    estimated()
    after = twinblock.pretrain("byol", data=tiny.images(), out=tmp_path / "b", overrides=BYOL, quiet=True)
    states = before.encoder().state_dict(), after.encoder().state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("labelled", [True, False])
def test_the_measurement_at_the_end_of_a_run_is_held_too(monkeypatch, labelled):
    """It looks at many images at once; without labels there is none."""
    module, seen = sys.modules["twinblock.training.estimate"], []
    monkeypatch.setattr(module, "features", lambda encoder, images, **how: seen.append(len(images)))
    monkeypatch.setattr(module, "at_once", lambda size: 1000 // size)
    estimated(*([] if labelled else ["data.labels=none"]), images=80)
    assert seen == ([62] if labelled else [])  # images of 16 px


def test_the_words():
    memory = {"weights": 3 * 2**20, "target": 0, "optimizer": 3 * 2**20, "step": 5 * 2**29, "peak": 3 * 2**30}
    found = {"encoder": "resnet18 at 64 px", "images": 2400, "batch": 256, "steps": 900, "images_per_second": 42.4}
    found |= {"parameters": {"encoder": 11_200_000, "heads": 300_000, "target": 0}, "memory": memory}
    assert in_words({**found, "seconds": 9000, "disk": 2**20}) == [
        "run: 2,400 images, 900 steps of 256",
        "parameters: resnet18 at 64 px: encoder 11.2 M, heads 0.3 M",
        "time: 2.5 h, at 42 images/s",
        "memory: 3.0 GiB at the most; weights 3.0 MiB, optimizer 3.0 MiB, step 2.5 GiB",
        "disk: 1.0 MiB in the folder of the run",
    ]
