"""Exemplars: the pruned network of the run, the scores, the files, and what cannot be asked."""

import csv
import errno
import json
import os
import tempfile

import numpy as np
import pytest
import tiny
import torch
from pyarrow import parquet

import twinblock
import twinblock.views
from twinblock import cli
from twinblock.core.errors import InputError
from twinblock.data import Images, Names
from twinblock.data import training as longtail
from twinblock.evaluation import exemplars
from twinblock.evaluation.exemplars import auroc, lift
from twinblock.evaluation.features import features
from twinblock.methods.stacks import Stack
from twinblock.nn.encoders import MEAN, STD
from twinblock.runs.run import Run

SMALL = ["encoder.width=8", "encoder.kind=resnet10", "train.length=3steps", "projector.dims=[16,8]", "data.batch=32"]
HOW = {"size": 16, "mean": MEAN, "std": STD}


@pytest.fixture
def source(monkeypatch):
    return tiny.in_place_of_any_source(monkeypatch, 300)


def test_scores_by_hand():
    positive = np.array([True, False, True, False])
    assert auroc(np.array([4.0, 3.0, 2.0, 1.0]), positive) == 0.75
    assert auroc(np.zeros(4), positive) == 0.5
    score = np.arange(40.0)
    assert lift(score, score >= 38, top=0.05) == 20
    assert lift(score, score < 38, top=0.05) == 0


@pytest.mark.parametrize("scope", ["end_to_end", "blockwise"])
def test_a_pruned_run_is_seen_by_its_own_pruned_network(tmp_path, source, scope):
    overrides = [*SMALL, f"scope.kind={scope}", "train.precision=fp32", "data.longtail={imbalance: 4}"]
    run = twinblock.pretrain("sdclr_demo", out=tmp_path / "a", quiet=True, overrides=overrides)
    pruned = exemplars._trained(run)
    assert pruned is not None
    trainer = tiny.trainer(run.config, tmp_path / "b", longtail.training(run.config.data))
    trainer.fit()  # the same run once more
    x = [view.float() for view in torch.randn(2, 5, 3, 16, 16)]
    maps = x[1]
    with torch.no_grad():
        for learner in trainer.learners:
            learner.eval()
            ((maps, _),) = learner.target(learner.network, [Stack(maps, [(0,)])])
        assert torch.allclose(pruned.eval()(x[1]), maps.mean((2, 3)), atol=1e-5)


def test_elsewhere_the_statistics_are_those_of_the_pruned_network(tmp_path, source):
    run = twinblock.pretrain("byol", out=tmp_path / "a", quiet=True, overrides=[*SMALL, "predictor.dims=[16,8]"])
    assert exemplars._trained(run) is None
    pruned = exemplars._made(run.encoder(), 0.5)
    exemplars._calibrate(pruned, source, HOW)
    x = twinblock.views.centre(source.batch(range(300)), 16, MEAN, STD)
    with torch.no_grad():
        as_measured = pruned(x)
        pruned.train()
        of_the_batch = pruned(x)
    assert torch.allclose(as_measured, of_the_batch, rtol=0.02, atol=0.02)
    assert not torch.allclose(as_measured, features(run.encoder(), source, **HOW), atol=0.02)


def test_files_and_judgement(tmp_path, source, monkeypatch, capsys):
    overrides = [*SMALL, "data.longtail={imbalance: 4, split: 0}"]
    run = twinblock.pretrain("sdclr_demo", out=tmp_path / "a", quiet=True, overrides=overrides)
    with monkeypatch.context() as patch:
        patch.setattr(exemplars, "_made", None)  # it has a pruned network of its own
        rows = exemplars.exemplars(run)
    assert [row["score"] for row in rows] == ["moved", "loss", "neighbours"]
    assert all(0 <= row["AUROC"] <= 1 and row["lift"] >= 0 for row in rows)
    with open(run.path / "exemplars.csv", newline="") as file:
        table = list(csv.DictReader(file))
    images = longtail.training(run.config.data)
    assert sorted(int(row["image"]) for row in table) == list(range(len(images)))
    assert all(images.labels[int(row["image"])] == int(row["label"]) for row in table)
    moved = [float(row["moved"]) for row in table]
    assert moved == sorted(moved, reverse=True)
    assert json.loads((run.path / "exemplars.json").read_text())["scores"] == rows
    assert (run.path / "exemplars.png").stat().st_size > 1000
    monkeypatch.setattr("sys.argv", ["twinblock", "exemplars", str(run.path), "ratio=0.5"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    assert "AUROC" in capsys.readouterr().out


def test_images_without_labels_are_ranked_all_the_same(tmp_path, source, monkeypatch):
    run = twinblock.pretrain("simclr", out=tmp_path / "a", quiet=True, overrides=SMALL)
    names = [f"{i}.png" for i in range(20)]
    monkeypatch.setattr(longtail, "split_of", lambda *_: Images(source.pixels[:20], names=Names.of(names)))
    assert exemplars.exemplars(run, data="photos") == []
    with open(run.path / "exemplars.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["image", "name", "moved", "loss", "neighbours"]
    assert all(row["name"] == f"{row['image']}.png" for row in rows)
    table = parquet.read_table(run.path / "exemplars.parquet")
    assert table["name"].to_pylist() == [row["name"] for row in rows]


def test_a_ratio_that_is_none(tmp_path, source, monkeypatch, capsys):
    run = twinblock.pretrain("simclr", out=tmp_path / "a", quiet=True, overrides=SMALL)
    for ratio in (1.0, -0.5, float("nan")):
        with pytest.raises(InputError, match="at least 0 and less than 1"):
            exemplars.exemplars(Run(run.path), ratio=ratio)
    for text, words in (("ratio=much", "give a number"), ("ration=0.5", "ration: unknown field; did you mean ratio?")):
        monkeypatch.setattr("sys.argv", ["twinblock", "exemplars", str(run.path), text])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 2
        assert words in capsys.readouterr().err


def test_the_distance_to_neighbours_is_that_of_others_whether_they_are_among_the_compared_or_not(monkeypatch):
    rows = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    monkeypatch.setattr(exemplars, "BANK", 20)
    found = exemplars._distance_to_neighbours(rows, seed=0)
    unit = rows / rows.norm(dim=1, keepdim=True)
    banked = exemplars.order(0, -4, 40)[:20].tolist()
    for i in range(40):
        near = sorted((float(unit[i] @ unit[j]) for j in banked if j != i), reverse=True)[: exemplars.NEIGHBOURS]
        assert float(found[i]) == pytest.approx(1 - sum(near) / len(near))


def test_another_part_of_the_images_has_another_mark():
    images = Images(np.zeros((6, 8, 8, 3), np.uint8))
    marks = [longtail.take(images, np.array(rows)).fingerprint() for rows in ([0, 1, 2], [3, 4, 5])]
    assert marks[0] != marks[1]


def test_the_size_alone_leaves_the_images_as_they_are(tmp_path, source):
    overrides = [*SMALL, "data.longtail={imbalance: 4}"]
    run = twinblock.pretrain("simclr", out=tmp_path / "a", quiet=True, overrides=overrides)
    for data, count in (({"size": 32}, len(longtail.training(run.config.data))), ({"source": "photos"}, len(source))):
        exemplars.exemplars(run, data=data)
        assert json.loads((run.path / "exemplars.json").read_text())["images"] == count


def test_the_earlier_name_of_the_command_names_the_new_one(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["twinblock", "forgotten", "runs/a", "ratio=0.5"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "twinblock exemplars" in error


def test_a_run_of_somebody_else_is_one_line_before_the_work(tmp_path, source, monkeypatch):
    run = twinblock.pretrain("simclr", out=tmp_path / "a", quiet=True, overrides=SMALL)

    def refuse(dir):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(exemplars, "measure", lambda *_: pytest.fail("worked"))
    with pytest.raises(
        InputError, match=r"cannot write to .*a: Permission denied; take a folder that you may write to"
    ):
        exemplars.exemplars(run.path)
