"""Images that a learner makes, drawn in a report."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

import twinblock
from twinblock.methods.learners.vae import VAE
from twinblock.reports import made
from twinblock.reports.seen import look

RNG = np.random.default_rng(0)
DATA = RNG.integers(0, 255, (40, 8, 8, 3), dtype=np.uint8)
SMALL = ["data.batch=10", "train.length=3steps", "train.checkpoint_every=100%"]


def rows_of(png: bytes) -> list[list[np.ndarray]]:
    sheet, step = np.array(Image.open(io.BytesIO(png))), made.TILE + made.GAP
    rows = [sheet[i * step : i * step + made.TILE] for i in range(3)]
    return [[row[:, j * step : j * step + made.TILE] for j in range(made.SHOWN)] for row in rows]


@pytest.mark.parametrize(
    "extra", [[], ["data.mean=[0.2,0.3,0.4]", "data.std=[0.5,0.5,0.5]", "learner.pixels=gaussian"]]
)
def test_images_reconstructions_and_samples_are_drawn(extra, tmp_path, monkeypatch):
    """Images as they are in the data, whatever they are normalised by; what is made, where the decoder says 0."""
    run = twinblock.pretrain("vae", data=DATA, out=tmp_path / "run", overrides=[*SMALL, *extra], quiet=True)
    monkeypatch.setattr(VAE, "drawn", lambda self, found: torch.zeros(len(found), 3, 8, 8))
    images, found, samples = rows_of(made.drawn(run, look(run, DATA)))
    shown = DATA[np.linspace(0, 39, made.SHOWN).astype(int)]
    for tile, image in zip(images, shown, strict=True):
        assert np.abs(tile[4::8, 4::8].astype(int) - image).max() <= 1
    zero = [51, 76, 102] if extra else [0, 0, 0]  # a normalised 0 is the mean
    for tile in (*found, *samples):
        assert np.abs(tile.reshape(-1, 3).astype(int) - zero).max() <= 1


@pytest.mark.parametrize("recipe", ["vae", "dbn"])
def test_a_report_shows_them(recipe, tmp_path):
    run = twinblock.pretrain(recipe, data=DATA, out=tmp_path / "run", overrides=SMALL, quiet=True)
    html = twinblock.report(run, DATA, out=tmp_path / "report.html").read_text()
    assert "<h2>Images that it makes</h2>" in html and "samples, in three rows" in html
    first, _, third = rows_of(made.drawn(run, look(run, DATA)))
    assert not np.array_equal(first[0], third[0])


def test_other_learners_make_none(tmp_path):
    small = [*SMALL, "encoder.width=[8,8]"]
    run = twinblock.pretrain("forward_forward", data=(DATA, np.arange(40) % 2), out=tmp_path / "run", overrides=small)
    assert not made.makes_images(run)
    assert "Images that it makes" not in twinblock.report(run, DATA, out=tmp_path / "report.html").read_text()
