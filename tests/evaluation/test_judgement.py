"""One judgement everywhere: what `evaluate` says of a run at its end is what `diagnose` and the report say."""

import re

import numpy as np
import pytest
import tiny

import twinblock
from twinblock import cli
from twinblock.diagnosis import Accuracy, judge

SMALL = [
    *("encoder.kind=resnet10", "encoder.width=8", "data.batch=32", "train.length=60steps", "projector.dims=[16,8]"),
    *("train.precision=fp32", "data.size=16", "optim.lr=1e-9"),
]


@pytest.fixture
def sets():
    """Noise whose mean colour is the class: with its labels, and without."""
    found = tiny.images(240)
    return found.pixels, found.labels


def evaluated(monkeypatch, capsys, run, *words) -> str:
    monkeypatch.setattr("sys.argv", ["twinblock", "evaluate", str(run.path), *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code in (0, None)
    return "".join(capsys.readouterr())


def test_labels_that_come_later_decide_as_those_of_the_training_would(sets, tmp_path):
    """At a learning rate of next to nothing, the encoder is no better than untrained."""
    pixels, labels = sets
    run = twinblock.pretrain("simclr", data=pixels, out=tmp_path / "run", overrides=SMALL, quiet=True)
    assert run.result["knn"] is None
    before = run.result["headline"]
    title = (run.path / "curves.png").read_bytes()
    twinblock.evaluate(run, data=(pixels, labels), quiet=True)
    result = run.result
    held = result["accuracy"]
    accuracy = Accuracy(**{**held, "gains": {name: tuple(gain) for name, gain in held["gains"].items()}})
    held = sum(-(-int(count) // 5) for count in np.bincount(labels))  # a fifth of each class
    assert (accuracy.test, accuracy.train) == (held, 240 - held)
    assert "untrained encoder whose batch norms have seen images" in accuracy.gains
    (by_hand,) = judge(run.metrics(), [0], run.config, accuracy=accuracy)
    assert result["headline"] == by_hand.headline != before
    assert result["learners"][0]["evidence"] == result["evidence"] == by_hand.evidence
    assert (run.path / "curves.png").read_bytes() != title
    judged = (run.path / "result.json").stat().st_mtime_ns
    twinblock.evaluate(run, data=(pixels, labels), quiet=True)
    assert (run.path / "result.json").stat().st_mtime_ns == judged  # nothing is measured twice
    twinblock.evaluate(run, data=(pixels[:120], labels[:120]), quiet=True)
    assert run.result["accuracy"]["test"] < held  # the last one decides
    twinblock.evaluate(run, data=(pixels, labels), quiet=True)
    assert run.result == result
    assert twinblock.diagnose(run).judgement.headline == by_hand.headline
    assert f"<strong>{by_hand.headline}</strong>" in twinblock.report(run).read_text()


def test_a_run_with_labels_of_its_own_keeps_its_verdict(sets, tmp_path):
    pixels, labels = sets
    run = twinblock.pretrain("simclr", data=(pixels, labels), out=tmp_path / "run", overrides=SMALL, quiet=True)
    before = (run.path / "result.json").read_bytes()
    twinblock.evaluate(run, data=(pixels[:120], labels[:120]), quiet=True)
    assert (run.path / "result.json").read_bytes() == before


def test_evaluate_ends_with_the_verdict(tmp_path, monkeypatch, capsys):
    tiny.in_place_of_any_source(monkeypatch, 100)
    run = twinblock.pretrain("simclr", out=tmp_path / "run", overrides=SMALL, quiet=True)
    said = evaluated(monkeypatch, capsys, run)
    assert re.search(rf"^{run.result['headline']}: kNN [\d.]+ % \(raw pixels", said, re.MULTILINE)
    assert run.result["evidence"] in said.replace("\n", " ")
