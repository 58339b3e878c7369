"""Runs and checkpoints in order of a score that needs no labels."""

import math

import pytest
import tiny
import torch

import twinblock
from twinblock.core.errors import InputError
from twinblock.data.training import split_of
from twinblock.diagnosis.labelfree import SCORES
from twinblock.evaluation import rank as ranking
from twinblock.evaluation.rank import SCORE, Seen

SMALL = ["encoder.width=8", "encoder.kind=resnet10", "projector.dims=[16,8]", "data.batch=16", "train.precision=fp32"]
IMAGES = tiny.images(80)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")

    def of(name, *more):
        overrides = [*SMALL, "train.length=6steps", *more]
        return twinblock.pretrain("simclr", data=IMAGES, out=folder / name, overrides=overrides, quiet=True)

    return of("a", "train.keep=2steps"), of("b", "train.seed=1", "encoder.width=16")


def test_the_order_is_that_of_the_score_over_kept_and_last_encoders(runs):
    rows = twinblock.rank(runs, data=IMAGES)
    assert [row["rank"] for row in rows] == [1, 2, 3, 4]
    assert {(row["run"], row["step"]) for row in rows} == {
        (str(runs[0].path), 2),
        (str(runs[0].path), 4),
        (str(runs[0].path), None),  # step 6 was kept, too, and is the last one
        (str(runs[1].path), None),
    }
    assert [row[SCORE] for row in rows] == sorted((row[SCORE] for row in rows), reverse=True)
    seen = Seen.of(runs, IMAGES)
    for row in rows:
        run = next(run for run in runs if str(run.path) == row["run"])
        assert row[SCORE] == SCORES[SCORE](seen.features(run, run.encoder(row["step"])))


def test_the_order_of_the_runs_and_their_company_do_not_matter(runs):
    both = twinblock.rank(runs, data=IMAGES)
    assert twinblock.rank(runs[::-1], data=IMAGES) == both
    alone = twinblock.rank(runs[0].path, data=IMAGES)
    assert [row[SCORE] for row in alone] == [row[SCORE] for row in both if row["run"] == str(runs[0].path)]


def test_encoders_see_the_same_views_each_by_its_own_mean(runs, monkeypatch):
    """Whatever their number at a time, and with labels or without."""
    inputs = []

    class Looks(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x):
            inputs.append(x)
            return x.flatten(1)

    whole = Seen.of(runs, IMAGES).features(runs[0], Looks())
    assert whole.shape == (4, 80, 3 * 16 * 16) and len(inputs) == 4
    assert not any(torch.equal(whole[i], whole[j]) for i in range(4) for j in range(i))
    monkeypatch.setattr(ranking, "at_once", lambda size: 7)
    bare = twinblock.Images(IMAGES.pixels)
    assert torch.equal(Seen.of(runs, bare).features(runs[1], Looks()), whole)


def test_an_encoder_that_has_diverged_comes_last(runs, monkeypatch):
    real = Seen.features

    def features(self, run, encoder, **how):
        found = real(self, run, encoder, **how)
        return found * math.nan if run.path == runs[0].path else found

    monkeypatch.setattr(Seen, "features", features)
    rows = twinblock.rank(runs, data=IMAGES)
    assert rows[0]["run"] == str(runs[1].path)
    assert all(math.isnan(row[SCORE]) for row in rows[1:])


def test_images_are_those_for_testing_where_there_are_some(tmp_path):
    overrides = [*SMALL, "train.length=1steps", "data.size=16"]
    run = twinblock.pretrain("simclr", out=tmp_path / "a", overrides=overrides, quiet=True)
    test = split_of(run.config.data, "test")
    assert test is not None
    seen = Seen.of([run])
    assert len(seen.images) == 1024
    assert seen.view.crop == (0.5, 1.0) and seen.view.flip == 0  # digits
    assert {row.tobytes() for row in seen.images.pixels} <= {row.tobytes() for row in test.pixels}


def test_what_cannot_be_compared_is_one_line(runs, tmp_path):
    other = twinblock.pretrain(
        "simclr", out=tmp_path / "c", overrides=[*SMALL, "train.length=1steps", "data.size=16"], quiet=True
    )
    with pytest.raises(InputError, match=r"the runs saw different images \(.*, photodigits\): say data="):
        twinblock.rank([runs[0], other])
    with pytest.raises(InputError, match="is given twice"):
        twinblock.rank([runs[0], runs[0].path], data=IMAGES)
    with pytest.raises(InputError, match="at least one run"):
        twinblock.rank([])
    with pytest.raises(InputError, match="has 20 images; give at least 32"):
        twinblock.rank(runs, data=tiny.images(20))
    with pytest.raises(InputError, match="no run at"):
        twinblock.rank([tmp_path / "none"])
