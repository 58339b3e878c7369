"""The arms of the study are what their names say; two of them from start to table."""

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch

from twinblock.assembly.build import encoder_of, make_learners
from twinblock.assembly.resolve import resolve
from twinblock.config.recipes import compose
from twinblock.studies import byol_norms
from twinblock.studies.study import Options, carry_out


def configs(*overrides):
    options = Options(Path("x"), 1, overrides)
    return {arm.name: compose(arm.recipe, overrides=(*arm.overrides, *overrides)) for arm in byol_norms.arms(options)}


@pytest.mark.parametrize("source", ["photodigits", "cifar10", "stl10"])
def test_arms_are_what_their_names_say(source):
    found = configs(f"data={source}")
    assert len(found) == 20
    assert set(byol_norms.PUBLISHED) | set(byol_norms.OVERLAID) <= found.keys()
    for name, config in found.items():
        heads = {"batch": "BN" in name and "SimSiam, no" not in name, "layer": "layer norm" in name}
        assert config.projector.last_norm == "none", name
        norms = [config.projector.norm] + ([config.predictor.norm] if config.predictor else [])
        if name != "random weights":
            assert ("batch" in norms) == heads["batch"], name
        assert ("layer" in norms) == heads["layer"], name
        assert (config.optim.kind == "lars") == ("LARS" in name), name
        assert (config.encoder.norm != "batch") == name.startswith("GN"), name
        assert (config.target.kind == "shared") == any(m in name for m in ("SimSiam", "Barlow", "VICReg")), name
        regression = not any(m in name for m in ("cross entropy", "Barlow", "VICReg"))
        assert (config.objective.kind == "regression") == (config.predictor is not None) == regression, name
    both = [found[f"BN in the {head}"] for head in ("projector", "predictor")]
    assert [(c.projector.norm, c.predictor.norm) for c in both] == [("batch", "none"), ("none", "batch")]


def test_the_published_setting_on_stl10():
    bn = configs("data=stl10")["BN in both heads"]
    assert (bn.data.batch, str(bn.train.length), bn.optim.kind, bn.optim.lr) == (256, "10epochs", "sgd", 0.8)
    assert (bn.projector.dims, bn.predictor.dims, bn.target.momentum) == ((512, 128), (512, 128), 0.996)
    xent = configs("data=stl10")["cross entropy, no norm"]
    assert (xent.optim.lr, xent.objective.temperature, xent.objective.queue) == (0.02, 0.2, 65536)
    for config in (bn, xent):  # 10 of the 320 epochs of the schedules; SGD treats all weights alike
        assert (config.optim.end, config.optim.exclude_bias_and_norm, config.target.schedule) == (1, False, "constant")
        assert [(view.blur, view.solarize) for view in config.views] == [(0.5, 0.0)] * 2
    # two directions of 1 - cos are half of ours; two queries of one loss twice
    assert (bn.objective.scale, xent.objective.scale) == (0.5, 2.0)
    assert configs("data=stl10")["no norm, LARS"].optim.exclude_bias_and_norm


@pytest.mark.parametrize("gpu", [True, False])
def test_photographs_are_reduced_on_a_cpu_to_the_published_number_of_steps(monkeypatch, capsys, gpu):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    bn = configs("data=cifar10")["BN in both heads"]
    found = (bn.encoder.width, bn.encoder.stem, bn.data.batch, str(bn.train.length))
    assert found == ((None, "auto", 256, "10epochs") if gpu else (16, "cifar_stride2", 64, "5epochs"))
    published = 10 * 100_000 // 256  # of STL-10
    assert gpu or abs(5 * (50_000 // bn.data.batch) / published - 1) < 0.01
    assert ("no GPU" in capsys.readouterr().err) != gpu
    for other in ("data=stl10", "data=photodigits"):  # the published setting is left as it is
        assert configs(other)["BN in both heads"].encoder.width == compose("demo").encoder.width
    assert "no GPU" not in capsys.readouterr().err


@pytest.mark.parametrize("source", ["photodigits", "cifar10"])
def test_the_networks_of_every_arm_can_be_built(monkeypatch, source):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for config in configs(f"data={source}").values():
        config = resolve(config, tiny.images(4, 32), torch.device("cpu"))
        (learner,) = make_learners(config, encoder_of(config), 10, None)
        assert learner.network.pooling.width == 128


@pytest.mark.slow
def test_batch_norm_in_one_head_is_enough_and_none_collapses(tmp_path):
    """The claim of the study, on its own settings; without their long warm-up the first two end at 0.98."""
    one, none = ("BN in the projector", "BN in the predictor"), "no norm in the heads"
    options = Options(tmp_path, 1)
    arms = [arm for arm in byol_norms.arms(options) if arm.name in (*one, none)]
    between = {row["arm"]: row["between"] for row in carry_out(arms, byol_norms.measure, options)}
    assert between[none] > 0.99
    assert max(between[name] for name in one) < 0.9


@pytest.mark.slow
def test_two_arms_from_start_to_table(tmp_path, monkeypatch):
    arms = byol_norms.arms
    monkeypatch.setattr(byol_norms, "arms", lambda options: arms(options)[1:5:3])
    monkeypatch.setenv("TWINBLOCK_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    out.mkdir()
    byol_norms.reproduce(Options(out, 1, ("train.length=2steps", "encoder.width=8")))
    table = (out / "table.md").read_text()
    assert "| BN in both heads |" in table
    assert "57.7 · .88 · .27" in table
    assert {row["arm"] for row in json.loads((out / "rows.json").read_text())} == {
        "BN in both heads",
        "no norm in the heads",
    }
    assert (out / "cosines.png").is_file() and (out / "curves.png").is_file()
    shutil.rmtree(out)
