"""`twinblock diagnose`: runs, checkpoints, features; and one line for what cannot be diagnosed."""

import json
import math
import pickle
import sys
from dataclasses import asdict
from shutil import copytree

import numpy as np
import pytest
import torch
from PIL import Image

import twinblock
from twinblock import cli
from twinblock.core.errors import InputError
from twinblock.data import load
from twinblock.runs import checkpoint
from twinblock.runs.run import Run

SMALL = ["data.batch=64", "train.length=3steps", "projector.dims=[16,8]", "encoder.width=8", "train.precision=fp32"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "byol"
    blocks = ["scope.kind=blockwise", "predictor.dims=[16,8]"]
    return twinblock.pretrain("byol", out=out, quiet=True, overrides=[*SMALL, *blocks])


def test_every_output_of_every_block(run):
    found = twinblock.diagnose(run.path)
    assert len(found.outputs) == len(found.verdicts) == 4
    for block in found.outputs:
        for name in ("encoder", "projector", "predictor"):
            assert all(math.isfinite(value) for value in block[name].values())
            assert {"lidar", "positive_cosine", "uniformity", "dead_share"} <= block[name].keys()
    assert found.outputs[2]["encoder"]["dimensions"] == 32
    last = run.history(1)[-1]
    for name in ("encoder", "projector", "predictor"):  # the trained weights on the sample of the monitor
        seen = {key: value for key, value in found.outputs[1][name].items() if key != "lidar"}
        assert seen == pytest.approx(last[name], rel=1e-3)
    assert "block 3" in found.tables()[2][0]


def test_a_finished_run_has_one_judgement(run):
    """The same words in `result.json`, of the run, of its last checkpoint and of its encoder; three steps are few."""
    result = run.result
    for what in (run.path, run.path / "checkpoint" / "last.safetensors", run.path / "encoder.safetensors"):
        found = twinblock.diagnose(what)
        assert asdict(found.judgement) == {name: result[name] for name in asdict(found.judgement)}
        assert [asdict(v) for v in found.verdicts] == result["learners"]
        assert str(found).splitlines()[-1].startswith(f"{found.what}: {result['headline']}: ")
    assert result["headline"] == "too early to tell"
    assert result["evidence"].startswith("3 steps are too few")
    assert result["advice"]


def test_a_run_of_an_earlier_version_is_judged_by_its_history(run, tmp_path):
    copy = tmp_path / "run"
    copytree(run.path, copy)
    kept = {name: value for name, value in run.result.items() if name not in ("learners", "accuracy")}
    (copy / "result.json").write_text(json.dumps(kept))
    assert [v.headline for v in twinblock.diagnose(copy).verdicts] == ["too early to tell"] * 4
    for damaged in ([], [{}] * 4, [3] * 4, "abcd", None):
        (copy / "result.json").write_text(json.dumps({**kept, "learners": damaged}))
        with pytest.raises(InputError, match=r"result\.json is damaged"):
            twinblock.diagnose(copy)


def test_a_classifier_of_some_of_the_classes_on_data_that_has_all(tmp_path):
    rows = np.flatnonzero(load("photodigits").labels < 4)
    np.save(tmp_path / "rows.npy", rows)
    supervised = [*SMALL[:2], "encoder.width=8", f"data.indices={tmp_path / 'rows.npy'}"]
    few = twinblock.pretrain("supervised", out=tmp_path / "run", quiet=True, overrides=supervised)
    assert few.config.projector.dims == ("classes",)
    (found,) = twinblock.diagnose(few).outputs
    assert found["projector"]["dimensions"] == 4


def test_checkpoints_by_their_file(run):
    whole = twinblock.diagnose(run.path)
    last = twinblock.diagnose(run.path / "checkpoint" / "last.safetensors")
    assert last.outputs == whole.outputs
    encoder = twinblock.diagnose(run.path / "encoder.safetensors")
    assert encoder.outputs[3].keys() == {"encoder", "sample_knn"}
    assert encoder.outputs[3]["encoder"] == whole.outputs[3]["encoder"]


def test_the_command_prints_tables_and_words(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["twinblock", "diagnose", str(run.path)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code in (0, None)
    out = capsys.readouterr().out
    assert out.count("LiDAR") == 4
    assert out.strip().splitlines()[-1].startswith(f"{run.path}: too early to tell: 3 steps")


def features(seed=0, n=300, d=16):
    return np.random.Generator(np.random.PCG64(seed)).normal(size=(n, d)).astype(np.float32)


def test_features_from_a_file_and_from_memory(tmp_path):
    z = features()
    np.save(tmp_path / "z.npy", z)
    found = twinblock.diagnose(tmp_path / "z.npy")
    assert (found.verdicts[0].headline, found.verdicts[0].advice) == ("not collapsed", "")
    assert found.outputs == twinblock.diagnose(z).outputs == twinblock.diagnose(torch.from_numpy(z)).outputs
    assert twinblock.diagnose(np.stack([z, z])).outputs[0]["encoder"]["positive_cosine"] == pytest.approx(1)
    assert twinblock.diagnose(1 + 1e-4 * z).verdicts[0].state == "complete collapse"
    assert twinblock.diagnose(z[:, :2] @ features(1, 2)).verdicts[0].state == "dimensional collapse"
    many = twinblock.diagnose(features(n=20_000, d=4))
    assert many.outputs[0]["encoder"]["samples"] == 4096


def spoil(folder, name):
    z = features()
    path = folder / "z.npy"
    if name == "nan":
        z[[3, 7], 2] = math.nan
        np.save(path, z)
    elif name == "objects":
        np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    elif name == "pickle":
        path.write_bytes(pickle.dumps([1]))
    elif name == "text":
        np.save(path, np.array(["a", "b"]))
    elif name == "cut":
        np.save(path, z)
        path.write_bytes(path.read_bytes()[:-50])
    elif name == "line":
        np.save(path, z[0])
    elif name == "one":
        np.save(path, z[:1])
    elif name == "complex":
        np.save(path, z.astype(np.complex64))
    elif name == "other file":
        (path := folder / "weights.pt").write_bytes(pickle.dumps([1]))
    elif name == "folder":
        return folder
    return path


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nan", "2 of 300 rows hold NaN or infinity"),
        ("objects", "cannot read"),
        ("pickle", "cannot read"),
        ("text", "cannot read"),
        ("cut", "cannot read"),
        ("line", r"has shape \(16,\)"),
        ("one", "at least 2"),
        ("complex", "complex"),
        ("other file", "safetensors checkpoint or a .npy"),
        ("folder", "holds no config.yaml"),
        ("nothing", "no such file|cannot read"),
    ],
)
def test_what_cannot_be_diagnosed_is_one_line(tmp_path, name, words):
    with pytest.raises(InputError, match=words) as caught:
        twinblock.diagnose(spoil(tmp_path, name))
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_architecture_is_one_line(run, tmp_path):
    copy = tmp_path / "run"
    (copy / "checkpoint").mkdir(parents=True)
    for name in ("checkpoint/last.safetensors", "encoder.safetensors", "metrics.jsonl", "result.json"):
        (copy / name).write_bytes((run.path / name).read_bytes())
    config = (run.path / "config.yaml").read_text()
    for old, new, words in (
        ("  width: 8", "  width: 16", r"encoder\.bn1\.bias is \(8,\) there, \(16,\) by the config"),
        ("kind: resnet10", "kind: resnet18", "missing there"),
        ("- 16\n", "- 24\n", r"learners\.0\..* is \(16"),
    ):
        assert old in config
        (copy / "config.yaml").write_text(config.replace(old, new))
        with pytest.raises(InputError, match=words) as caught:
            twinblock.diagnose(copy)
        assert "\n" not in str(caught.value)
    (copy / "config.yaml").write_text(config.replace("  width: 8", "  width: 16"))
    with pytest.raises(InputError, match="another architecture"):
        twinblock.load_encoder(copy)


def test_a_run_that_was_not_finished_is_judged_as_it_stands(run, tmp_path):
    copy = tmp_path / "run"
    (copy / "checkpoint").mkdir(parents=True)
    for name in ("checkpoint/last.safetensors", "config.yaml"):
        (copy / name).write_bytes((run.path / name).read_bytes())
    rows = [row for row in run.metrics() if "diagnosis" in row]
    (copy / "metrics.jsonl").write_text(json.dumps(rows[0]) + "\n")
    assert {v.state for v in twinblock.diagnose(copy).verdicts} == {"not started"}


def test_on_other_data_the_verdict_is_of_what_was_looked_at(run):
    """Not of the run's history, which is of its own images."""
    rows = len(load("photodigits", split="test"))
    other = twinblock.diagnose(run, data="photodigits")
    assert rows > 64
    for outputs, found in zip(other.outputs, other.verdicts, strict=True):
        assert f"cosine {outputs['projector']['positive_cosine']:.4f} within" in found.evidence
        assert "at first" not in found.evidence


def test_the_config_in_an_encoder_may_be_damaged(run, tmp_path):
    tensors, _ = checkpoint.read(run.path / "encoder.safetensors")
    for config in ("a: [1", 3, None, "!!python/name:os.system"):
        file = tmp_path / "encoder.safetensors"
        checkpoint.write(file, tensors, {"config": config})
        with pytest.raises(InputError, match=r"its config is damaged|says nothing sensible"):
            twinblock.diagnose(file)


def test_phases_measured_in_epochs_are_those_of_the_images_trained_on(tmp_path, monkeypatch):
    budgets = "scope={kind: blockwise, plan: sequential, budgets: [1epochs, 1epochs, 1epochs, 2epochs]}"
    part = ["data.longtail={imbalance: 2, largest: 30}", "train.length=5epochs"]  # 3 steps of 64 images an epoch
    own = twinblock.pretrain("simclr", out=tmp_path / "run", quiet=True, overrides=[*SMALL, *part, budgets])
    photos = tmp_path / "photos"
    photos.mkdir()
    for i, pixels in enumerate(load("photodigits").batch(range(80))):
        Image.fromarray(pixels.numpy()).save(photos / f"{i}.png")
    assert len(twinblock.diagnose(own, data=photos).verdicts) == 4
    steps = own.result["steps"]
    (own.path / "result.json").unlink()  # a finished run is not judged again
    history, starts = Run.history, []
    monkeypatch.setattr(Run, "history", lambda run, i, start, rows: starts.append(start) or history(run, i, start))
    assert len(twinblock.diagnose(own).verdicts) == 4
    assert steps == 15
    assert starts == [0, 3, 6, 9]
