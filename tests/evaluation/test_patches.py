"""`embed features=patches`: the encoder's own map in a file, part by part, and the same after a kill."""

import csv
import json

import numpy as np
import pytest
import timm
import tiny
import torch

import twinblock
from twinblock.core.errors import InputError
from twinblock.data import Images
from twinblock.evaluation import patches
from twinblock.nn.encoders import MEAN, STD
from twinblock.views import centre

SMALL = ["data.batch=16", "train.length=1steps", "projector.dims=[16,8]", "train.precision=fp32"]
RESNET = ["encoder.kind=resnet10", "encoder.width=8", "encoder.stem=cifar"]
VIT = ["encoder.kind=test_vit", "encoder.patch=4"]


def trained(path, *overrides: str) -> twinblock.Run:
    return twinblock.pretrain("simclr", data=tiny.images(20), out=path, overrides=[*SMALL, *overrides], quiet=True)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(patches, "PART", 7 * 4 * 2 * 2 * 64)  # seven images of 2 x 2 places
    return trained(tmp_path / "run", *RESNET)


@pytest.fixture
def looked(monkeypatch):
    """How many images are held at a time."""
    return tiny.features_asked_of(patches, monkeypatch)


def shown() -> torch.Tensor:
    return centre(tiny.images(20).batch(range(20)), 16, MEAN, STD)


def test_they_are_the_map_of_a_resnet_part_by_part_and_their_mean_is_the_pooled_feature(run, looked):
    found = twinblock.embed(run, features="patches")
    assert looked == [7, 7, 6] and found.features.shape == (20, 2, 2, 64)
    x, blocks = shown(), run.encoder().as_blocks()
    with torch.no_grad():
        for block in blocks:
            x = block(x)
    torch.testing.assert_close(found.features, x.permute(0, 2, 3, 1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.features.mean((1, 2)), twinblock.embed(run).features, atol=1e-5, rtol=1e-4)
    assert np.array_equal(np.load(run.path / "patches.npy"), found.features.numpy())
    assert repr(found) == "Embeddings(20 images, 2 x 2 patches of 64 features each, with labels)"
    with open(run.path / "patches.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["label"]) for row in rows] == tiny.images(20).labels.tolist()
    found.features[0] = 0  # stays in memory
    assert np.load(run.path / "patches.npy")[0].any()


def test_they_are_the_tokens_of_a_vit_by_timms_own_forward(tmp_path):
    """Without the class token; of 16 tokens four rows of four."""
    run = trained(tmp_path / "run", *VIT)
    found = twinblock.embed(run, features="patches").features
    model = timm.create_model("test_vit", img_size=16, patch_size=4, num_classes=0, fc_norm=False, global_pool="avg")
    model.load_state_dict(run.encoder().state_dict())
    with torch.no_grad():
        tokens = model.eval().forward_features(shown())[:, 1:]
    assert found.shape == (20, 4, 4, 64)
    torch.testing.assert_close(found, tokens.unflatten(1, (4, 4)), atol=1e-5, rtol=1e-4)


def test_a_block_gives_its_own_map(run):
    found = twinblock.embed(run, features="patches", block=1).features
    with torch.no_grad():
        expected = run.encoder().as_blocks()[0](shown())
    torch.testing.assert_close(found, expected.permute(0, 2, 3, 1), atol=1e-5, rtol=1e-4)


def test_interrupted_work_goes_on_to_the_same_bytes(run, looked, monkeypatch, tmp_path):
    twinblock.embed(run, features="patches")
    whole = (run.path / "patches.npy").read_bytes()
    looked.clear()
    counted = patches.features

    def killed(encoder, images, **how):
        if len(looked) == 2:
            raise KeyboardInterrupt
        return counted(encoder, images, **how)

    out = tmp_path / "there.npy"
    with monkeypatch.context() as patch:
        patch.setattr(patches, "features", killed)
        with pytest.raises(KeyboardInterrupt):
            twinblock.embed(run, features="patches", out=out)
    assert not out.exists() and json.loads((tmp_path / "there.npy.json").read_text())["done"] == [0, 7]
    with open(tmp_path / "there.npy.partial", "r+b") as file:
        file.seek(-10, 2)
        file.write(b"half a row")  # that a kill has left
    looked.clear()
    twinblock.embed(run, features="patches", out=out)
    assert looked == [6] and out.read_bytes() == whole
    assert sorted(path.name for path in tmp_path.glob("there*")) == ["there.csv", "there.npy", "there.npy.json"]
    twinblock.embed(run, features="patches", out=out)
    assert looked == [6]  # nothing is computed twice


def test_what_is_half_done_of_other_images_is_not_taken(run, looked, monkeypatch):
    """A whole file of some images, then a killed command for others: each goes on with its own, or begins anew."""
    twinblock.embed(run, features="patches")
    whole, other = (run.path / "patches.npy").read_bytes(), tiny.images(24)
    counted, before = patches.features, len(looked)

    def killed(encoder, images, **how):
        if len(looked) == before + 3:
            raise KeyboardInterrupt
        return counted(encoder, images, **how)

    with monkeypatch.context() as patch:
        patch.setattr(patches, "features", killed)
        with pytest.raises(KeyboardInterrupt):
            twinblock.embed(run, other, features="patches")
    assert (run.path / "patches.npy").read_bytes() == whole
    looked.clear()
    assert twinblock.embed(run, other, features="patches").features.shape[0] == 24 and looked == [3]
    looked.clear()
    twinblock.embed(run, features="patches")
    assert looked == [7, 7, 6] and (run.path / "patches.npy").read_bytes() == whole


def test_a_kill_at_the_very_end_leaves_the_file_to_be_named(run, looked, monkeypatch):
    """All rows are on the disk, and the file of other images has its name still."""
    twinblock.embed(run, features="patches")
    other = tiny.images(24)
    with monkeypatch.context() as patch:
        patch.setattr(patches.Path, "replace", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            twinblock.embed(run, other, features="patches")
    looked.clear()
    found = twinblock.embed(run, other, features="patches").features
    assert found.shape[0] == 24 and looked == []
    torch.testing.assert_close(found.mean((1, 2)), twinblock.embed(run, other).features, atol=1e-5, rtol=1e-4)


def test_rows_that_are_not_noted_yet_are_never_those_of_other_images(run, monkeypatch):
    """A file of seven images is whole; a command for others is killed when as many rows of its own are written."""
    few, many = tiny.images(7), tiny.images(24)
    expected = twinblock.embed(run, few, features="patches").features.clone()
    calls, sync = [], patches.os.fsync

    def killed(*given):
        calls.append(sync(*given))
        if len(calls) == 2:  # the first is of the note that it begins
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(patches.os, "fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            twinblock.embed(run, Images(many.pixels[::-1].copy()), features="patches")
    assert (run.path / "patches.npy.partial").is_file()
    assert torch.equal(twinblock.embed(run, few, features="patches").features, expected)


def test_rows_that_are_lost_are_computed_again(run, looked, monkeypatch):
    twinblock.embed(run, features="patches")
    whole = (run.path / "patches.npy").read_bytes()
    (run.path / "patches.npy").unlink()
    (run.path / "patches.npy.partial").write_bytes(whole[:1000])
    looked.clear()
    twinblock.embed(run, features="patches")
    assert looked == [7, 7, 6] and (run.path / "patches.npy").read_bytes() == whole


def test_what_cannot_be_is_one_line(run, tmp_path, monkeypatch):
    for given, said in (
        ({"features": "tokens"}, "features=tokens: should be pooled or patches"),
        ({"features": "patches", "out": tmp_path / "a.csv"}, "ends with .npy"),
        ({"features": "patches", "processes": 2}, "other processes see no Python objects"),
        ({"processes": 0}, "processes=0: give a whole number"),
    ):
        with pytest.raises(InputError, match=said) as error:
            twinblock.embed(run, **given)
        assert "\n" not in str(error.value)
    (tmp_path / "mine.npy").write_bytes(b"thesis")
    with pytest.raises(InputError, match="is there already"):
        twinblock.embed(run, features="patches", out=tmp_path / "mine.npy")
    monkeypatch.setattr(patches.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(InputError, match="GB are free; name a file on a larger disk"):
        twinblock.embed(run, features="patches")


def test_an_encoder_of_vectors_has_none(tmp_path):
    class Flat(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(16 * 16 * 3, 8)

        def forward(self, images):
            return self.layer(images.flatten(1))

    run = twinblock.pretrain(
        "simclr", data=tiny.images(20), encoder=Flat(), out=tmp_path / "run", overrides=SMALL, quiet=True
    )
    with pytest.raises(InputError, match="gives one vector an image"):
        twinblock.embed(run, features="patches")
