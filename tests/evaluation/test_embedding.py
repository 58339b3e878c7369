"""`twinblock embed`: the features of the encoder, each beside the name of its image, in a file of its own."""

import csv
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import twinblock
from twinblock import cli
from twinblock.core.errors import InputError
from twinblock.data import load
from twinblock.evaluation import embedding
from twinblock.nn.encoders import MEAN, STD
from twinblock.views import centre

SMALL = [
    *("encoder.kind=resnet10", "encoder.width=8", "data.batch=8", "train.length=1steps", "projector.dims=[16,8]"),
    *("train.precision=fp32", "data.size=16"),
]
NAMES = ["a b.png", "=1+1.png", "[red]é.png", *(f"{i}.png" for i in range(9))]


def colour(i: int) -> tuple[int, int, int]:
    return 20 * i, 255 - 20 * i, 7 * i


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "photos"
    folder.mkdir()
    for i, name in enumerate(NAMES):
        Image.new("RGB", (16, 16), colour(i)).save(folder / name)
    (folder / "test").mkdir()
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TWINBLOCK_CACHE", str(tmp_path_factory.getbasetemp() / "embedding-cache"))


@pytest.fixture
def run(photos, tmp_path):
    overrides = [*SMALL, "data.batch=12"]
    return twinblock.pretrain("simclr", data=str(photos), out=tmp_path / "run", quiet=True, overrides=overrides)


def call(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["twinblock", "embed", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code or 0, *capsys.readouterr()


def test_each_row_is_of_the_image_of_its_name(run, photos):
    found = twinblock.embed(run.path)
    assert sorted(found.images.names) == sorted(NAMES)
    encoder = twinblock.load_encoder(run.path)
    for row, name in zip(found.features, found.images.names, strict=True):
        pixels = torch.from_numpy(np.array(Image.open(photos / name)))[None]
        with torch.no_grad():
            alone = encoder(centre(pixels, 16, MEAN, STD, None))[0]
        assert torch.allclose(row, alone, atol=1e-4)
    assert not (run.path / "embeddings.npz").exists()


def test_an_earlier_block_a_short_name_and_a_diagnosis(run, monkeypatch, capsys):
    found = twinblock.embed(run, block=1)
    assert found.features.shape == (12, 8)
    assert repr(found) == "Embeddings(12 images, 8 features each, with names)"
    code, _, error = call(monkeypatch, capsys, run.path, "block=2")
    assert code == 0, error
    diagnosis = twinblock.diagnose(run.path / "embeddings.npz")
    assert diagnosis.outputs[0]["encoder"]["dimensions"] == 16
    one_view = twinblock.diagnose(torch.randn(200, 16, generator=torch.Generator().manual_seed(0)))
    assert "one view of each: none within images" in str(one_view)
    with pytest.raises(InputError, match="block=5: this encoder has blocks 1 to 4"):
        twinblock.embed(run, block=5)
    np.savez(run.path / "other.npz", a=np.zeros(3))
    with pytest.raises(InputError, match="holds no array named features"):
        twinblock.diagnose(run.path / "other.npz")


def test_images_are_seen_at_another_size(run, photos, monkeypatch, capsys):
    code, _, error = call(monkeypatch, capsys, run.path, "data.size=24")
    assert code == 0, error
    encoder, first = twinblock.load_encoder(run.path), load(str(photos), size=24).batch([0])
    with torch.no_grad():
        expected = encoder(centre(first, 24, MEAN, STD, None))[0]
        smaller = encoder(centre(first, 16, MEAN, STD, None))[0]
    with np.load(run.path / "embeddings.npz") as arrays:
        found = torch.from_numpy(arrays["features"][0])
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(found, smaller, atol=1e-3)
    assert run.config.data.size == 16  # the run is as it was


def test_a_vit_takes_one_size(photos, tmp_path, monkeypatch, capsys):
    vit = ["encoder.kind=vit_tiny_patch16_224", "encoder.stem=standard", "encoder.width=null"]
    vit = [*SMALL, "data.batch=12", *vit, "data.size=32", "projector.norm=none"]
    twinblock.pretrain("simclr", data=str(photos), out=tmp_path / "vit", quiet=True, overrides=vit)
    code, _, error = call(monkeypatch, capsys, tmp_path / "vit", "data.size=48")
    assert code == 2 and error.count("\n") == 1
    assert "data.size=48: vit_tiny_patch16_224 was built for 32 px and takes no others; leave data.size out" in error


def test_the_command_writes_into_the_run_and_again(run, monkeypatch, capsys):
    features = twinblock.embed(run).features.numpy()
    for _ in range(2):
        code, out, error = call(monkeypatch, capsys, run.path)
        assert (code, error) == (0, "")
        assert out.strip() == f"{run.path}/embeddings.npz: 64 features of each of 12 images"
        with np.load(run.path / "embeddings.npz", allow_pickle=False) as arrays:
            assert list(arrays) == ["image", "name", "features"]
            assert np.array_equal(arrays["features"], features)


def test_a_csv_of_other_data_with_labels(run, tmp_path, monkeypatch, capsys):
    code, _, error = call(monkeypatch, capsys, run.path, "data=photodigits", "split=test", f"out={tmp_path / 'a.csv'}")
    assert code == 0, error
    with open(tmp_path / "a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:4] == ["image", "label", "class", "features0"]  # photodigits' images have no names
    assert [int(row["label"]) for row in rows] == load("photodigits", split="test").labels.tolist()


def test_what_cannot_be_asked_is_one_line_before_the_work(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.csv").write_text("mine")
    monkeypatch.setattr(embedding, "stored_features", lambda *_, **__: pytest.fail("worked"))
    monkeypatch.chdir(tmp_path)
    for arguments, words in (
        (["out=mine.csv"], "mine.csv is there already"),
        (["out=nowhere/a.csv"], "there is no folder nowhere"),
        (["out=/proc/a.csv"], "cannot write to /proc: "),  # even root makes no file there
        (["out=a.pt"], "ends with .npz, .parquet or .csv"),
        (["split=tset"], "split=tset: should be train or test"),
        (["split=test"], "has no images for testing"),
        (["dta=photos"], "dta: unknown field; did you mean data?"),
        (["data=nowhere/"], "there is no such folder"),
        (["data.size=4"], "data.size: should be greater than or equal to 8 (got 4)"),
    ):
        code, out, error = call(monkeypatch, capsys, run.path, *arguments)
        assert (code, out) == (2, "")
        assert words in error and error.count("\n") == 1
    assert (tmp_path / "mine.csv").read_text() == "mine"
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"mine\.csv is there already"):
        twinblock.embed(run, out="~/mine.csv")
    code, _, error = call(monkeypatch, capsys, tmp_path / "none")
    assert code == 2 and "no run at" in error


def test_an_encoder_that_diverged_gives_no_file(run, monkeypatch):
    encoder = run.encoder()
    torch.nn.init.constant_(encoder.layer4[0].conv1.weight, float("nan"))
    monkeypatch.setattr(type(run), "encoder", lambda *_: encoder)
    with pytest.raises(InputError, match="NaN or infinity"):
        twinblock.embed(run, out=run.path / "embeddings.csv")
    assert not (run.path / "embeddings.csv").exists()
