"""The study's arms compose on every kind of data, its gaps are between runs of one seed, expansions are probed."""

import numpy as np
import pytest
import tiny
import torch

from twinblock.assembly.build import encoder_of
from twinblock.assembly.resolve import resolve
from twinblock.config.recipes import compose
from twinblock.data import take
from twinblock.evaluation import evaluate as evaluation
from twinblock.studies.blockwise import METHODS, WHOLE, _of_blocks, arms, measure, with_gaps
from twinblock.studies.study import Options
from twinblock.training.pretrain import pretrain


@pytest.mark.parametrize("data", [(), ("data=cifar10",)])
def test_every_arm_is_a_run(tmp_path, data):
    found = arms(Options(tmp_path, 1, data))
    for arm in found:
        compose(arm.recipe, overrides=(*arm.overrides, *data))
    names = [arm.name for arm in found]
    assert len(set(names)) == len(names)
    for method in METHODS:
        assert {f"{method}, {WHOLE}", f"{method}, blockwise"} <= set(names)


def test_arms_of_a_method_take_equally_long_and_a_given_length_goes_before(tmp_path):
    def lengths(*given):
        return {
            arm.name: str(compose(arm.recipe, overrides=(*arm.overrides, *given)).train.length)
            for arm in arms(Options(tmp_path, 1, given))
        }

    found = lengths()
    assert found["SimCLR, sequential"] == f"{2 * METHODS['SimCLR'].epochs}epochs"
    del found["SimCLR, sequential"]
    assert all(length == f"{METHODS[name.partition(',')[0]].epochs}epochs" for name, length in found.items())
    assert set(lengths("train.length=3steps").values()) == {"3steps"}
    assert set(lengths("data=cifar10", "train.length=100epochs").values()) == {"100epochs"}


@pytest.mark.parametrize("gpu", [True, False])
def test_photographs_are_reduced_on_a_cpu_alone(tmp_path, monkeypatch, capsys, gpu):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    given = ("data=cifar10",)
    composed = {
        arm.name: compose(arm.recipe, overrides=(*arm.overrides, *given)) for arm in arms(Options(tmp_path, 1, given))
    }
    whole, sequential, expanded = (composed[f"SimCLR, {name}"] for name in (WHOLE, "sequential", "expansion"))
    lengths = ("100epochs", "100epochs") if gpu else ("1epochs", "2epochs")
    assert (str(whole.train.length), str(sequential.train.length)) == lengths
    assert (whole.encoder.width, expanded.scope.expand) == ((None, 512) if gpu else (16, 128))
    assert (composed["VICReg, blockwise"].optim.lr == 1.0) != gpu
    assert ("no GPU" in capsys.readouterr().err) != gpu


@pytest.mark.parametrize("data", [(), ("data=cifar10",)])
def test_an_expansion_is_as_wide_as_the_last_block(tmp_path, data):
    arm = next(arm for arm in arms(Options(tmp_path, 1, data)) if arm.name == "SimCLR, expansion")
    config = resolve(compose(arm.recipe, overrides=(*arm.overrides, *data)), tiny.images(), torch.device("cpu"))
    assert config.scope.expand == encoder_of(config).shapes[-1][0]


def test_views_are_solarised_where_that_helps(tmp_path):
    for arm in arms(Options(tmp_path, 1)):
        chances = [view.solarize for view in compose(arm.recipe, overrides=arm.overrides).views]
        expected = {"SimCLR": [0.5] * 2, "supervised": [0.0]}
        assert chances == expected.get(arm.name.partition(",")[0], [0.0] * 2)


def test_the_gap_is_to_the_same_method_and_seed_end_to_end():
    def row(arm: str, seed: int, *linear: float):
        return {"arm": arm, "seed": seed, "expanded 2": 99.0, **{f"linear {k}": v for k, v in enumerate(linear, 1)}}

    rows = [
        row("A, end to end", 0, 10.0, 60.0),
        row("A, end to end", 1, 10.0, 64.0),
        row("A, blockwise", 0, 12.0, 59.0),
        row("A, blockwise", 1, 12.0, 60.0),
        {"arm": "A, noise", "seed": 0, "failed": "diverged"},
    ]
    assert [found.get("gap") for found in with_gaps(rows)] == [0.0, 0.0, 1.0, 4.0, None]


def test_the_figure_is_drawn_from_what_was_measured():
    row = {
        "arm": "A",
        "seed": 0,
        "linear 1": 1.0,
        "linear 2": 2.0,
        "kNN 1": 3.0,
        "kNN 2": 4.0,
        "rank 1": 5.0,
        "rank 2": 6.0,
    }
    assert _of_blocks({**row, "expanded 2": 9.0}) == [
        {"features": "block 1", "linear %": 1.0, "kNN %": 3.0, "rank %": 5.0},
        {"features": "block 2", "linear %": 2.0, "kNN %": 4.0, "rank %": 6.0},
    ]
    assert _of_blocks({"arm": "A", "seed": 0, "failed": "diverged"}) == []


@pytest.mark.slow
def test_an_expansion_is_probed_too(tmp_path, monkeypatch):
    monkeypatch.setenv("TWINBLOCK_CACHE", str(tmp_path / "cache"))
    labelled = evaluation.labelled
    monkeypatch.setattr(evaluation, "labelled", lambda *a: [take(images, np.arange(300)) for images in labelled(*a)])
    small = ("encoder.width=8", "data.batch=64", "train.length=1steps", "projector.dims=[16,8]", "scope.kind=blockwise")
    found = {}
    for name, expand in (("plain", ()), ("expanded", ("scope.expand=12",))):
        run = pretrain("demo", out=tmp_path / name, overrides=[*small, *expand], quiet=True)
        found[name] = measure(run)
        assert [row["width"] for row in run.evaluation["rows"] if row["features"] != "encoder"] == [8, 16, 32, 64]
    assert set(found["plain"]) == {f"{what} {k}" for what in ("linear", "kNN", "rank") for k in (1, 2, 3, 4)}
    assert set(found["expanded"]) - set(found["plain"]) == {f"expanded {k}" for k in (1, 2, 3, 4)}
