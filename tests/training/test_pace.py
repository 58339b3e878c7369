"""`train.length=3min`: how many steps fit is measured, said and kept."""

import os
from pathlib import Path

import pytest
import tiny
import torch
from processes import together

import twinblock
from twinblock.core.errors import InputError
from twinblock.training import pace
from twinblock.training.pace import Counts, Pace

SMALL = ["encoder.kind=resnet10", "encoder.width=8", "data.batch=16", "train.precision=fp32", "projector.dims=[16,8]"]
PACE = Pace(step=0.5, first=0.2, look=0.02, save=0.1, bytes=9)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(pace, "SECONDS", 0.01)


def of_pace(monkeypatch, found: Pace = PACE):
    monkeypatch.setattr(Pace, "of", classmethod(lambda cls, trainer: found))


def train(out, *more: str):
    return twinblock.pretrain("simclr", data=tiny.images(), out=out, overrides=[*SMALL, *more])


def test_steps_fill_the_time(tmp_path, monkeypatch, capsys):
    """By hand: 6 s hold 10 steps of 0.5 s, a measurement before each and one at the end, the first of which takes more,
    and 4 checkpoints.
    """
    of_pace(monkeypatch)
    run = train(tmp_path / "run", "train.length=0.1min", "train.checkpoint_every=1epochs")
    trainer = tiny.trainer(tiny.config("simclr", train={"length": "10steps"}), tmp_path / "other")
    looks, saves = 1 + sum(map(trainer.monitor.due, range(10))), 4  # an epoch has three steps
    assert 6 - 0.5 < 10 * 0.5 + 0.2 + (looks - 1) * 0.02 + saves * 0.1 <= 6
    assert str(run.config.train.length) == "10steps"
    assert run.result["steps"] == 10
    said = " ".join(capsys.readouterr().err.split())
    assert "train.length=0.1min: 10 steps, 0:05 at 500 ms each" in said


def test_the_first_look_of_each_phase_is_counted_as_such():
    """By hand: 4 phases, 20 steps, 30 looks, 2 checkpoints."""
    found = Pace(step=1, first=10, look=2, save=3, bytes=0).seconds(Counts(4, 20, 30, 2))
    assert found == {"steps": 20, "measuring": 4 * 10 + 26 * 2, "saving": 6}


def test_a_first_look_is_one_at_untrained_weights_and_others_are_not(tmp_path, monkeypatch):
    trainer = tiny.trainer(tiny.config("simclr", precision="fp32"), tmp_path)
    measured, seconds = trainer.monitor.measure, []
    monkeypatch.setattr(trainer.monitor, "measure", lambda step: seconds.append("untrained" in str(measured(step))))
    Pace.of(trainer)
    assert seconds == [True, False]


def test_a_real_clock(tmp_path):
    """No more is asked for here than that the machine was measured: it may be busy."""
    run = train(tmp_path / "run", "train.length=0.02min")
    assert run.result["steps"] >= 1
    found = Pace.of(tiny.trainer(tiny.config("simclr", precision="fp32"), tmp_path / "other"))
    assert 0 < found.step < 1.2
    assert found.first > 0 and found.look > 0 and found.save > 0
    trainer = tiny.trainer(tiny.config("simclr", precision="fp32"), tmp_path / "trained")
    trainer.fit()
    assert found.bytes == pytest.approx((trainer.run.checkpoints / "last.safetensors").stat().st_size, rel=0.01)


def test_the_weights_are_put_back(tmp_path):
    trainer = tiny.trainer(tiny.config("byol", "simultaneous", precision="fp32"), tmp_path / "run")
    before = {f"{i}.{k}": t.clone() for i, one in enumerate(trainer.learners) for k, t in one.state_dict().items()}
    Pace.of(trainer)
    after = {f"{i}.{k}": t for i, one in enumerate(trainer.learners) for k, t in one.state_dict().items()}
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


@pytest.mark.parametrize("steps", [4, 10, 77])
@pytest.mark.parametrize("scope", ["end_to_end", "simultaneous", "sequential"])
def test_what_a_run_of_other_steps_consists_of(tmp_path, scope, steps):
    """Said by a trainer of another length: what the trainer of that length does."""
    first, then = (
        tiny.trainer(
            tiny.config("simclr", scope, train={"length": f"{n}steps", "checkpoint_every": "10%"}), tmp_path / str(n)
        )
        for n in (1000, steps)
    )
    done = {"looks": 0, "saves": 0}
    then.measure = lambda: done.update(looks=done["looks"] + 1) or {"step": then.step}
    then.save = then.save_meanwhile = lambda: done.update(saves=done["saves"] + 1)
    then.fit()
    assert Counts.of(first, steps) == Counts.of(then) == Counts(len(then.plan.phases), steps, **done)


def test_a_run_of_so_many_minutes_is_that_of_so_many_steps(tmp_path, monkeypatch):
    of_pace(monkeypatch)
    by_time, by_steps = (train(tmp_path / length, f"train.length={length}") for length in ("0.1min", "10steps"))
    states = [run.encoder().state_dict() for run in (by_time, by_steps)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_it_goes_on_with_the_steps_that_it_began_with(tmp_path, monkeypatch, capsys):
    of_pace(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr("twinblock.training.trainer.Trainer.fit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run", "train.length=0.1min")
    of_pace(monkeypatch, Pace(step=0.1, first=0, look=0, save=0, bytes=9))  # the machine is less busy now
    assert train(tmp_path / "run", "train.length=0.1min").result["steps"] == 10
    capsys.readouterr()
    assert train(tmp_path / "run", "train.length=1h").result["steps"] == 10
    said = " ".join(capsys.readouterr().err.split())
    assert "train.length=1h was 10steps when it began; give a larger number to go on" in said
    assert train(tmp_path / "run", "train.length=12steps").result["steps"] == 12


def test_estimate_says_what_fits(monkeypatch):
    of_pace(monkeypatch)
    found = twinblock.estimate("simclr", data=tiny.images(), overrides=[*SMALL, "train.length=0.1min"])
    assert found["steps"] == 10
    assert found["seconds"] == pytest.approx(6, abs=0.5)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("train.length=0.001min", r"train\.length=0\.001min: a step takes 0\.[5-9] s; set it higher"),
        ("train.length=0min", r"train\.length: not a duration: '0min'; write it as 80steps, 10epochs, 30min or 2h"),
        ("train.length=3 parsecs", r"train\.length: not a duration.* 30min or 2h"),
        ("train.parallel=blocks", r"train\.parallel=blocks: the pace of stages is not measured; .*length in steps"),
        ("optim.warmup=3min", r"optim\.warmup: not a duration: '3min'; write it as 80steps, 10epochs or 25%"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, monkeypatch, given, words):
    of_pace(monkeypatch)
    with pytest.raises(InputError, match=words):
        train(tmp_path / "run", "train.length=3min", "scope.kind=blockwise", given)


def test_budgets_are_shares_of_a_time(tmp_path, monkeypatch):
    of_pace(monkeypatch, Pace(step=0.5, first=0, look=0, save=0, bytes=9))
    scope = ["train.length=0.1min", "scope.kind=blockwise", "scope.plan=sequential"]
    shares, steps = "scope.budgets=[50%,25%,12.5%,12.5%]", "scope.budgets=[6steps,2steps,2steps,2steps]"
    assert train(tmp_path / "run", *scope, shares).result["steps"] == 12
    with pytest.raises(InputError, match=r"train\.length=0\.1min: give scope\.budgets in percent of it"):
        train(tmp_path / "other", *scope, steps)


def process(rank: int, world: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    pace._seconds = lambda work, *given: (work(*given), 0.1 * (rank + 1))[1]
    more = ["train.length=0.05min", "encoder.norm=none", "scope.kind=blockwise"]
    run = train(folder / "run", *more)
    (folder / str(rank)).write_text(f"{run.result['steps']} {run.config.train.length}")
    torch.distributed.destroy_process_group()


def test_processes_take_as_many_steps_each(tmp_path, free_port):
    together(process, (2, free_port, tmp_path), 2)
    first, second = ((tmp_path / str(rank)).read_text() for rank in range(2))
    assert first == second
    steps = int(first.split()[0])
    assert 3 - 0.6 < 0.2 * (steps + steps + 1 + steps / 3) <= 3 + 0.2  # as slow as the slower one
