"""When the loop writes what it has, when it stops, and what it keeps."""

from contextlib import contextmanager

import pytest
import tiny
import torch

from twinblock.core.errors import Collapsed, InputError, Interrupted
from twinblock.runs import checkpoint
from twinblock.training import trainer as module
from twinblock.training.launch import Stop


def trainer(folder, steps=7, **train):
    train = {"length": f"{steps}steps", "checkpoint_every": "100%", **train}
    return tiny.trainer(tiny.config("simclr", precision="fp32", train=train), folder)


def flushed(training, monkeypatch, patience: float) -> list[int]:
    """After how many steps metrics were written: at most three steps apart, or `patience` seconds."""
    monkeypatch.setattr(module, "FLUSH_EVERY", 3)
    monkeypatch.setattr(module, "PATIENCE", patience)
    seen, flush = [], training.flush
    monkeypatch.setattr(training, "flush", lambda *rows: (seen.append(training.step), flush(*rows)))
    training.fit()
    training.run.release()
    return seen


@pytest.mark.parametrize(("patience", "expected"), [(1e6, [1, 4, 7, 8]), (0.0, [*range(1, 9)])])
def test_metrics_are_written_every_few_steps_and_of_long_steps_at_each(tmp_path, monkeypatch, patience, expected):
    training = trainer(tmp_path / "run", steps=8)
    assert flushed(training, monkeypatch, patience) == expected
    rows = [row for row in training.run.metrics() if "loss" in row]
    assert [row["step"] for row in rows] == list(range(8))  # each once


@contextmanager
def asked_after(training, step):
    """Signals that ask for a stop once so many steps are done."""

    class Asked(Stop):
        def asked(self):
            return training.step >= step

    yield Asked([15])


def test_one_process_stops_after_the_step_in_which_it_is_asked(tmp_path, monkeypatch):
    training = trainer(tmp_path / "run")
    monkeypatch.setattr(module, "PATIENCE", 1e6)
    monkeypatch.setattr(module, "stop_signals", lambda: asked_after(training, 3))
    with pytest.raises(Interrupted):
        training.fit()
    training.run.release()
    assert training.step == 3
    assert checkpoint.read(training.run.checkpoints / checkpoint.LAST)[1]["step"] == 3


def test_asked_in_its_last_step_it_comes_to_its_end(tmp_path, monkeypatch):
    training = trainer(tmp_path / "run", steps=2)
    monkeypatch.setattr(module, "stop_signals", lambda: asked_after(training, 2))
    training.fit()
    training.run.release()
    assert training.step == 2


def test_a_collapse_is_noted_and_saved_before_the_run_stops(tmp_path, monkeypatch):
    training = trainer(tmp_path / "run", on_collapse="stop")
    monkeypatch.setattr(type(training.monitor), "collapsed", property(lambda _: training.step == 5))
    monkeypatch.setattr(training.monitor, "due", lambda step: step in (0, 5))
    with pytest.raises(Collapsed):
        training.fit()
    training.run.release()
    assert checkpoint.read(training.run.checkpoints / checkpoint.LAST)[1]["step"] == 5
    assert [row["step"] for row in training.run.metrics() if "diagnosis" in row] == [0, 5]
    assert [row["step"] for row in training.run.metrics() if "loss" in row] == list(range(5))


def test_without_train_keep_no_encoder_is_kept(tmp_path):
    training = trainer(tmp_path / "run")
    training.fit()
    training.run.release()
    assert training.run.kept == []


def test_what_is_kept_is_the_encoder_of_its_step_though_steps_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(module.TrainStep, "rate", lambda *_: 0.1)
    plain = trainer(tmp_path / "plain", steps=4)
    plain.fit()
    plain.run.release()
    training, kept = trainer(tmp_path / "run", steps=7, keep="4steps"), module.Run.keep

    def late(*given):
        while training.step < 6:  # two more steps are taken meanwhile
            pass
        kept(*given)

    monkeypatch.setattr(module.Run, "keep", late)
    training.fit()
    training.run.release()
    assert training.run.kept == [4]
    tensors = checkpoint.read(training.run.path / "encoders/00000004.safetensors")[0]
    expected = plain.encoder.state_dict()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert not torch.equal(training.encoder.state_dict()["conv1.weight"], expected["conv1.weight"])


def test_what_an_encoder_starts_from_is_given_to_it_and_its_learners(tmp_path):
    def start(encoder):
        for weight in encoder.parameters():
            weight.data.fill_(0.5)

    built = trainer(tmp_path / "run")
    encoder = built.config.encoder.model_copy(update={"weights": "mine.safetensors"})
    config = built.config.model_copy(update={"encoder": encoder})
    given = module.Trainer(config, built.loader.images, built.fabric, built.run, built.reporter, None, start)
    built.run.release()
    assert all((weight == 0.5).all() for weight in given.encoder.parameters())
    assert {id(p) for p in given.encoder.parameters()} <= {id(p) for p in given.learners[0].parameters()}


@pytest.mark.parametrize(("seconds", "told"), [((1000, 1), []), ((1000, 1000), ["5 h"]), ((1, 1000), ["5 h"])])
def test_hours_are_told_in_advance_and_once_by_another_step_than_the_first(tmp_path, monkeypatch, seconds, told):
    """A clock of its own: the first step takes so many seconds, each later one so many; 20 steps are 5.6 hours."""
    training, said, clock = trainer(tmp_path / "run", steps=20), [], [0.0]
    monkeypatch.setattr(training.reporter, "say", said.append)
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])

    def step(number, samples):
        clock[0] += seconds[number > 0]
        return take(number, samples)

    take = tiny.take_steps_by(training, step)
    training.fit()
    training.run.release()
    said = [line for line in said if "this will take" in line]
    assert [line[len("this will take about ") :].split(";")[0] for line in said] == told
    assert all("first_look" in line for line in said)


def test_a_checkpoint_that_could_not_be_written_ends_the_run_at_the_next(tmp_path, monkeypatch):
    config = tiny.config(
        "simclr", "end_to_end", precision="fp32", train={"length": "9steps", "checkpoint_every": "2steps"}
    )
    trainer, save = tiny.trainer(config, tmp_path / "run"), checkpoint.save

    def full(folder, tensors, meta):
        if meta["step"] == 4:
            raise InputError("cannot write it")
        save(folder, tensors, meta)

    monkeypatch.setattr(checkpoint, "save", full)
    trainer.resume()
    with pytest.raises(InputError, match="cannot write it"):
        trainer.fit()
    trainer.run.release()
    assert trainer.step == 6
    assert checkpoint.read(tmp_path / "run/checkpoint/last.safetensors")[1]["step"] == 2
