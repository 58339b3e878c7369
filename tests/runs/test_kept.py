"""Encoders that a run keeps on the way."""

import pytest
import tiny
import torch

import twinblock
from twinblock.core.errors import InputError
from twinblock.evaluation import evaluate as evaluation
from twinblock.evaluation import knn_scores
from twinblock.runs.run import Run


def config(**train):
    return tiny.config("simclr", precision="fp32", train={"length": "7steps", "checkpoint_every": "100%", **train})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    trainer = tiny.trainer(config(keep="3steps"), tmp_path_factory.mktemp("runs") / "run")
    seen = {}

    def train_step(number, samples):
        losses = step(number, samples)
        seen[number + 1] = {name: t.clone() for name, t in trainer.encoder.state_dict().items()}
        return losses

    step = tiny.take_steps_by(trainer, train_step)
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


@pytest.mark.parametrize("scope", ["end_to_end", "simultaneous"])
def test_a_run_may_give_the_average_of_its_network(scope, tmp_path):
    """In its last encoder, in those on the way and in that of a checkpoint; training does not notice."""
    target = {"kind": "ema", "momentum": 0.5, "kept": True}
    config = tiny.config("byol", scope, precision="fp32", target=target, train={"length": "4steps", "keep": "4steps"})
    trainer = tiny.trainer(config, tmp_path / "run")
    trainer.fit()
    trainer.run.release()
    expected = {}
    for learner in trainer.learners:
        blocks = [*learner.target.average.blocks.named_modules()]
        online = dict(learner.network.blocks.named_modules())
        expected |= {id(online[name]): module for name, module in blocks if not [*module.children()]}
    for found in (trainer.run.encoder(), trainer.run.encoder(step=4)):  # of the checkpoint, and of the file
        pairs = zip(trainer.encoder.modules(), found.modules(), strict=True)
        compared = [(expected[id(mine)], theirs) for mine, theirs in pairs if id(mine) in expected]
        assert len(compared) > 20
        for average, theirs in compared:
            assert all(torch.equal(t, theirs.state_dict()[name]) for name, t in average.state_dict().items())
    weight = trainer.encoder.state_dict()["conv1.weight"]
    assert not torch.equal(trainer.run.encoder().state_dict()["conv1.weight"], weight)


def test_a_kept_encoder_is_measured_as_it_was_and_says_nothing_of_the_run(run, monkeypatch):
    run, _ = run
    tiny.in_place_of_any_source(monkeypatch, 60)
    last = twinblock.evaluate(run, quiet=True)
    of_run = (run.path / "evaluation.json").stat().st_mtime_ns
    rows = twinblock.evaluate(run, step=3, quiet=True)
    assert [row["features"] for row in rows] == [row["features"] for row in last]
    assert rows[1:] == last[1:]  # the baselines
    assert (run.path / "evaluation.json").stat().st_mtime_ns == of_run  # the two may be equal
    source = run.config.data.source
    assert run.evaluation_of(source)["rows"] == last
    assert run.evaluation_of(source, 3)["rows"] == rows
    assert run.evaluation_of(source, 6) is None
    bank = twinblock.embed(run, data=tiny.images(60), step=3).features
    labels = torch.from_numpy(tiny.images(60).labels)
    right = (knn_scores(bank, labels, bank, 3).argmax(1) == labels).double().mean()
    assert rows[0]["kNN %"] == pytest.approx(100 * float(right))
    monkeypatch.setattr(evaluation, "knn_scores", lambda *_, **__: pytest.fail("measured again"))
    assert twinblock.evaluate(run, step=3, quiet=True) == rows
    with pytest.raises(InputError, match=r"step=4: .* there are: 3, 6"):
        twinblock.evaluate(run, step=4)
    with pytest.raises(InputError, match="measured alone"):
        twinblock.evaluate(run, step=3, beside=[run.path])
