"""A run goes on to a larger `train.length`."""

import json
import shutil

import pytest
import tiny
import torch

from twinblock.core.errors import InputError
from twinblock.runs import checkpoint
from twinblock.runs.run import Run
from twinblock.runs.state import restore_state
from twinblock.training.pretrain import pretrain

SMALL = ["encoder.width=8", "encoder.kind=resnet10", "data.batch=16", "optim.warmup=2steps"]
SMALL += ["projector.dims=[16,8]", "predictor.dims=[16,8]"]


def train(out, length: str, *more: str) -> Run:
    return pretrain(
        "byol", data=tiny.images(), out=out, quiet=True, overrides=[*SMALL, f"train.length={length}", *more]
    )


def weights(run: Run) -> dict[str, torch.Tensor]:
    return checkpoint.read(run.checkpoints / checkpoint.LAST)[0]


def test_the_rest_is_that_of_the_longer_run_from_this_step_on(tmp_path):
    """By hand: a training of eight steps that is given the state of the one of four."""
    run = train(tmp_path / "run", "4steps")
    tensors, file = weights(run), run.checkpoints / checkpoint.LAST
    by_hand = tiny.trainer(train(tmp_path / "long", "8steps").config, tmp_path / "by hand")
    restore_state(by_hand.encoder, by_hand.learners, by_hand.optimizers, tensors, file)
    by_hand.step = 4
    by_hand.fit()
    first, config = run.metrics(), run.config
    run = train(tmp_path / "run", "8steps")
    found, expected = weights(run), by_hand.state()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    assert any(not torch.equal(found[name], tensors[name]) for name in found)
    rates = {row["step"]: row["lr"] for row in run.metrics() if "lr" in row}
    assert sorted(rates) == list(range(8))
    assert [rates[step] for step in range(4, 8)] == [by_hand.train_step.rates(step) for step in range(4, 8)]
    assert [row for row in run.metrics() if row["step"] < 4] == [row for row in first if row["step"] < 4]
    assert run.config == config.model_copy(
        update={"train": config.train.model_copy(update={"length": run.config.train.length})}
    )
    assert str(run.config.train.length) == "8steps"
    assert run.result["steps"] == 8
    starts = json.loads((run.path / "environment.json").read_text())["starts"]
    assert [(start["from_step"], start["to_step"]) for start in starts] == [(0, 4), (4, 8)]


def test_it_goes_on_after_a_kill_before_its_first_step(tmp_path, monkeypatch):
    train(tmp_path / "run", "2steps")
    with monkeypatch.context() as patch:
        patch.setattr("twinblock.training.trainer.Trainer.fit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run", "4steps")
    killed = Run.open(tmp_path / "run")
    assert not killed.finished
    assert not (killed.path / "encoder.safetensors").exists()  # it would be taken for the last
    assert torch.equal(killed.encoder().state_dict()["conv1.weight"], weights(killed)["encoder.conv1.weight"])
    assert train(tmp_path / "run", "4steps").result["steps"] == 4


def test_what_it_says(tmp_path, capsys):
    train(tmp_path / "run", "1epochs")
    overrides = [*SMALL, "train.length=2epochs"]
    pretrain("byol", data=tiny.images(), out=tmp_path / "run", overrides=overrides)
    assert "train.length: 1epochs becomes 2epochs; from here on learning rate" in " ".join(
        capsys.readouterr().err.split()
    )


@pytest.mark.parametrize(
    ("before", "after", "more"),
    [
        ("4steps", "3steps", ()),
        ("2steps", "1epochs", ()),  # nobody says which is longer
        ("4steps", "8steps", ("scope.kind=blockwise", "scope.plan=sequential")),
    ],
)
def test_what_is_not_longer_is_another_run(tmp_path, before, after, more):
    train(tmp_path / "run", before, *more)
    with pytest.raises(InputError, match=f"train.length: {before} there, {after} here"):
        train(tmp_path / "run", after, *more)


def test_a_run_whose_checkpoint_is_gone_does_not_begin_anew(tmp_path):
    run = train(tmp_path / "run", "2steps")
    shutil.rmtree(run.checkpoints)
    with pytest.raises(InputError, match="its checkpoint is gone, so it cannot go on"):
        train(tmp_path / "run", "4steps")
    assert run.finished and run.encoder()
