"""A step that does not fit into memory is refused before it is taken, with what would fit."""

import re

import pytest
import tiny

import twinblock
from twinblock.core.errors import InputError
from twinblock.core.memory import Alive
from twinblock.training import room

GIB = 2**30
SMALL = ["encoder.kind=resnet10", "encoder.width=8", "train.precision=fp32", "train.length=1steps", "data.batch=32"]
SMALL += ["projector.dims=[16,8]", "encoder.norm=none"]


@pytest.fixture(autouse=True)
def every_size(monkeypatch):
    monkeypatch.setattr(room, "SMALL", 0)


def trained(tmp_path, *more: str):
    overrides = [*SMALL, *more]
    return twinblock.pretrain("simclr", data=tiny.images(48, 32), out=tmp_path / "run", overrides=overrides, quiet=True)


@pytest.mark.parametrize("scope", ["end_to_end", "simultaneous", "overlapping"])
def test_what_it_expects_is_what_a_step_takes(tmp_path, scope):
    trainer = tiny.trainer(
        tiny.config("simclr", scope, "none", "fp32", data={"batch": 32}),
        tmp_path / "other",
        tiny.images(48, 32),
    )
    few, more = (room._bytes_of_step(trainer, count) for count in (2, 4))
    (samples,) = trainer.loader.batches(0, 1)
    with Alive() as alive:
        trainer.train_step(0, samples)
    assert few + (more - few) // 2 * 30 == pytest.approx(alive.peak, rel=0.2)  # another moment may be the peak


def test_the_line_says_what_fits(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "GIB", 2**20)
    monkeypatch.setattr(room, "free_memory", lambda: 3 * 2**20)
    with pytest.raises(InputError) as error:
        trained(tmp_path)
    words = re.fullmatch(
        r"a step of 32 images at 32 px through resnet10 takes about ([\d.]+) GiB of memory, and 3.0 are free: "
        r"train.micro_batch=(\d+) takes ([\d.]+); or set data.size or data.batch lower, or take a smaller encoder",
        str(error.value),
    )
    assert words and float(words[3]) <= 0.8 * 3 < float(words[1])
    assert trained(tmp_path, f"train.micro_batch={words[2]}").finished  # a refused run is in nobody's way


def test_training_is_the_same_with_and_without_the_look(tmp_path, monkeypatch):
    looked = trained(tmp_path / "a").encoder().state_dict()
    monkeypatch.setattr(room, "free_memory", lambda: None)
    blind = trained(tmp_path / "b").encoder().state_dict()
    assert all((looked[name] == blind[name]).all() for name in looked)


def test_the_memory_of_this_machine():
    free = room.free_memory()
    assert free is None or 2**26 < free < 2**46
