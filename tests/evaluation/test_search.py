"""`search` and `duplicates`: exact neighbours, planted duplicates found and none invented, and bad input."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from torch.nn.functional import normalize

import twinblock
from twinblock import cli
from twinblock.evaluation.search import nearest

SMALL = [
    *("encoder.kind=resnet10", "encoder.width=8", "data.batch=8", "train.length=1steps", "projector.dims=[16,8]"),
    *("train.precision=fp32", "data.size=32"),
]


def picture(seed: int, side: int = 64) -> Image.Image:
    """Smooth noise: no two of them are alike."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on 30 pictures, of which six are duplicates of two others."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    folder.mkdir()
    for i in range(24):
        picture(i).save(folder / f"{i:02d}.png")
    picture(3).save(folder / "a_encoded.jpg", quality=70)
    picture(3).resize((48, 48), Image.Resampling.LANCZOS).save(folder / "a_smaller.png")
    ImageEnhance.Brightness(picture(3)).enhance(0.8).save(folder / "a_darker.png")
    picture(7).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "b_mirrored.png")
    Image.new("RGB", (64, 64), (90, 90, 90)).save(folder / "flat_1.png")
    Image.new("RGB", (64, 64), (200, 90, 20)).save(folder / "flat_2.png")
    return twinblock.pretrain("simclr", data=str(folder), out=folder.parent / "run", overrides=SMALL, quiet=True)


def test_neighbours_are_those_of_a_full_sort(monkeypatch):
    monkeypatch.setattr("twinblock.evaluation.search.CHUNK", 64)
    generator = torch.Generator().manual_seed(0)
    queries, rows = (
        normalize(torch.randn(7, 5, generator=generator)),
        normalize(torch.randn(30, 5, generator=generator)),
    )
    similar, index = nearest(queries, rows, 4)
    full = (queries.double() @ rows.double().T).numpy()
    assert index.tolist() == np.argsort(-full, 1)[:, :4].tolist()
    assert np.allclose(similar, -np.sort(-full, 1)[:, :4], atol=1e-6)
    assert nearest(queries, rows, 100)[1].shape == (7, 30)


def test_a_picture_of_the_set_is_most_like_itself(run, capsys):
    photo = run.path.parent / "photos" / "05.png"
    rows = twinblock.search(run, photo, k=3)
    assert [row["rank"] for row in rows] == [1, 2, 3] and rows[0]["name"] == "05.png"
    assert 1.0001 > rows[0]["similarity"] > max(0.9, rows[1]["similarity"])  # the set is stored at another size
    with open(run.path / "similar.csv") as file:
        assert [row["name"] for row in csv.DictReader(file)] == [row["name"] for row in rows]
    with Image.open(run.path / "similar.png") as drawn:
        assert drawn.size[0] > 100


def test_planted_duplicates_are_found_and_none_is_invented(run):
    groups: dict[int, set[str]] = {}
    for row in twinblock.duplicates(run):
        groups.setdefault(row["group"], set()).add(row["name"])
    encoded = {"03.png", "a_encoded.jpg", "a_smaller.png", "a_darker.png"}
    assert sorted(map(sorted, groups.values())) == sorted([sorted(encoded), ["07.png", "b_mirrored.png"]])
    with Image.open(run.path / "duplicates.png") as drawn:
        assert drawn.size[0] > 100


def test_flat_images_are_compared_by_their_colour(run, tmp_path):
    """Of flat images correlation is noise: only those of one brightness are one."""
    folder = tmp_path / "flat"
    folder.mkdir()
    for name, level in (("a", 60), ("b", 60), ("c", 200)):
        noise = np.random.default_rng(ord(name)).integers(0, 2, (64, 64, 3))
        Image.fromarray((level + noise).astype(np.uint8)).save(folder / f"{name}.png")
    assert {row["name"] for row in twinblock.duplicates(run, data=str(folder))} <= {"a.png", "b.png"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["search", "{run}", "nosuch.jpg"], "nosuch.jpg"),
        (["search", "{run}", "{run}/config.yaml"], "images cannot be read"),
        (["search", "{run}", "{photo}", "k=0"], "k=0: should be at least 1"),
        (["search", "{run}", "{photo}", "k=many"], "k=many: give a whole number"),
        (["duplicates", "{run}", "same=2"], "same=2: should be more than 0"),
        (["duplicates", "{run}", "sme=1"], "did you mean same?"),
    ],
)
def test_bad_input_is_one_line(run, words, said, capsys, monkeypatch):
    photo = run.path.parent / "photos" / "05.png"
    monkeypatch.setattr("sys.argv", ["twinblock", *(word.format(run=run.path, photo=photo) for word in words)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and said in error and "\n" not in error
