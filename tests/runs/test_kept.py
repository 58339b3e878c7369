"""Encoders that a run keeps on the way."""

import pytest
import tiny
import torch

import twinblock
from twinblock.core.errors import InputError
from twinblock.runs.run import Run


def config(**train):
    return tiny.config("simclr", precision="fp32", train={"length": "7steps", "checkpoint_every": "100%", **train})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    trainer = tiny.trainer(config(keep="3steps"), tmp_path_factory.mktemp("runs") / "run")
    seen, step = {}, trainer.train_step

    def train_step(number, samples):
        losses = step(number, samples)
        seen[number + 1] = {name: t.clone() for name, t in trainer.encoder.state_dict().items()}
        return losses

    trainer.train_step = train_step
    trainer.fit()
    trainer.run.release()
    return trainer.run, seen


def test_each_is_the_encoder_after_its_step(run):
    run, seen = run
    assert run.kept == [3, 6]
    for step in run.kept:
        found = twinblock.load_encoder(run, step=step).state_dict()
        assert [name for name in found if not torch.equal(found[name], seen[step][name])] == []
    assert not torch.equal(seen[3]["conv1.weight"], seen[6]["conv1.weight"])
    last = run.encoder().state_dict()
    assert torch.equal(last["conv1.weight"], seen[7]["conv1.weight"])


def test_its_features(run):
    run, _ = run
    images = tiny.images()
    rows = twinblock.embed(run, data=images, step=3).features
    assert not torch.equal(rows, twinblock.embed(run, data=images).features)
    assert torch.equal(rows, twinblock.embed(run, data=images, step=3, block=4).features)


def test_what_was_not_kept_is_said(run, tmp_path):
    with pytest.raises(InputError, match=r"step=4: .* kept no encoder after this step; there are: 3, 6"):
        twinblock.load_encoder(run[0], step=4)
    plain = tiny.trainer(config(), tmp_path / "plain")
    plain.fit()
    plain.run.release()
    assert not (plain.run.path / "encoders").exists()
    with pytest.raises(InputError, match=r"there are: none; train\.keep=10epochs keeps one"):
        Run(plain.run.path).encoder(7)


def test_keeping_changes_no_bit_of_the_run(run, tmp_path):
    plain = tiny.trainer(config(), tmp_path / "plain")
    plain.fit()
    found, expected = run[0].encoder().state_dict(), plain.encoder.state_dict()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def test_no_time_is_refused():
    with pytest.raises(InputError, match=r"train.*keep is the time from one encoder to the next"):
        config(keep="0steps")
