"""A step that does not fit into memory is refused before it is taken, with what would fit."""

import json
import os
import re
from pathlib import Path

import pytest
import tiny
import torch
from processes import together

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


def says_free(monkeypatch, mib: float):
    monkeypatch.setattr(room, "free_memory", lambda: int(mib * 2**20))


def test_a_batch_that_fits_is_taken_and_kept(tmp_path, monkeypatch, capsys):
    """Of 48 images at most an eighth; the line says it, and the config has the number, with which the run goes on."""
    says_free(monkeypatch, 1000)
    trained(tmp_path, "data.batch=auto")
    run = twinblock.Run(tmp_path / "run")
    assert run.config.data.batch == 4
    monkeypatch.setattr(room, "LARGEST", 2)  # what would be chosen now does not matter
    capsys.readouterr()
    images = tiny.images(48, 32)
    more = [*SMALL, "data.batch=auto", "train.length=3steps"]
    longer = twinblock.pretrain("simclr", data=images, out=run.path, overrides=more).result
    assert longer is not None and longer["steps"] == 3
    assert run.config.data.batch == 4
    assert "auto" not in capsys.readouterr().err  # chosen once
    with pytest.raises(InputError, match=r"data.batch: 4 there, 8 here"):
        twinblock.pretrain("simclr", data=images, out=run.path, overrides=[*SMALL, "data.batch=8"], quiet=True)


@pytest.mark.parametrize("field", ["data.batch", "train.micro_batch"])
def test_the_number_is_the_largest_power_of_two_that_fits(tmp_path, monkeypatch, field):
    """What a step takes is a line in the number of images, here 10 MiB and 1 each, and 100 KiB for its views."""
    need = room.Need(few=10 * 2**20, each=2**20, view=100 * 2**10)
    monkeypatch.setattr(room.Need, "of", classmethod(lambda cls, trainer: need))
    images = tiny.images(1000, 32)
    says_free(monkeypatch, (10 + 30) / 0.8 + 0.01)  # 32 images just fit, 64 do not
    overrides = [*SMALL, f"{field}=auto", *(["data.batch=64"] if field != "data.batch" else [])]
    run = twinblock.pretrain("simclr", data=images, out=tmp_path / "a", overrides=overrides, quiet=True)
    assert (run.config.data.batch, run.config.train.micro_batch) == (
        (32, None) if field == "data.batch" else (64, 16)  # the views of the other 32 are 3 MiB more
    )
    says_free(monkeypatch, 1000)
    run = twinblock.pretrain("simclr", data=images, out=tmp_path / "b", overrides=overrides, quiet=True)
    assert (run.config.data.batch, run.config.train.micro_batch) == (64, None)  # of 1000 images an eighth, or all
    says_free(monkeypatch, 1)
    with pytest.raises(InputError, match=f"{field}=auto: not even"):
        twinblock.pretrain("simclr", data=images, out=tmp_path / "c", overrides=overrides, quiet=True)


def test_a_batch_in_parts_may_be_larger(monkeypatch, tmp_path):
    need = room.Need(few=10 * 2**20, each=2**20, view=2**10)
    monkeypatch.setattr(room.Need, "of", classmethod(lambda cls, trainer: need))
    says_free(monkeypatch, 16 / 0.8)
    more = [*SMALL, "data.batch=auto", "train.micro_batch=4"]
    run = twinblock.pretrain("simclr", data=tiny.images(1000, 32), out=tmp_path / "a", overrides=more, quiet=True)
    assert (run.config.data.batch, run.config.train.micro_batch) == (64, 4)


def process(rank: int, world: int, port: int, folder: Path, field: str, free: tuple[float, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    room.Need.of = classmethod(lambda cls, trainer: room.Need(few=10 * 2**20, each=2**20, view=100 * 2**10))
    room.free_memory = lambda: int(world * free[rank] * 2**20)  # of which a process has its share
    batch = "data.batch=auto" if field == "data.batch" else "data.batch=128"
    overrides = [*SMALL, "encoder.norm=sync", batch, f"{field}=auto"]
    run = twinblock.pretrain("simclr", data=tiny.images(1000, 32), out=folder / "run", overrides=overrides, quiet=True)
    said = [run.config.data.batch, run.config.train.micro_batch, run.finished]
    (folder / f"{rank}.json").write_text(json.dumps(said))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("field", "free", "batch", "micro"),
    [
        # a process with 40 MiB of its 80 % for 32 images, and one for 8: each takes what fits on both
        ("data.batch", ((10 + 30) / 0.8 + 0.01, (10 + 6) / 0.8 + 0.01), 16, None),
        ("data.batch", (1000, 1000), 64, None),  # of 1000 images an eighth, in all
        ("train.micro_batch", (1000, (10 + 62) / 0.8 + 0.01), 128, None),  # 64 on each process just fit
        ("train.micro_batch", (1000, (10 + 17) / 0.8), 128, 8),  # the views of the other 56 images are 5.5 MiB
    ],
)
def test_processes_choose_what_fits_on_all_of_them(tmp_path, free_port, field, free, batch, micro):
    arguments = (2, free_port, tmp_path, field, free)
    together(process, arguments, 2)
    said = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert said == [[batch, micro, True]] * 2


def test_the_line_says_the_number(tmp_path, monkeypatch, capsys):
    says_free(monkeypatch, 2**12)
    twinblock.pretrain(
        "simclr", data=tiny.images(48, 32), out=tmp_path / "a", overrides=[*SMALL, "train.micro_batch=auto"]
    )
    said = [line for line in capsys.readouterr().err.splitlines() if "auto" in line]
    assert len(said) == 1
    assert re.fullmatch(
        r"train.micro_batch=auto: null, all 32 images at once; a step takes about 0.0 GiB, and 4.0 are free", said[0]
    )


def test_what_cannot_be_chosen_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="give one as a number"):
        trained(tmp_path, "data.batch=auto", "train.micro_batch=auto")
    monkeypatch.setattr(room, "free_memory", lambda: None)
    with pytest.raises(InputError, match=r"data.batch=auto: this system does not say"):
        trained(tmp_path, "data.batch=auto")


def test_estimate_takes_what_fits(monkeypatch):
    says_free(monkeypatch, 1000)
    found = twinblock.estimate("simclr", data=tiny.images(48, 32), overrides=[*SMALL, "data.batch=auto"])
    assert found["batch"] == 4
