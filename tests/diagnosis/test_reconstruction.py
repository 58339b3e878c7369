"""A decoder that gives every image the same has learned the mean alone, and a verdict says so."""

import numpy as np
import pytest
import tiny
import torch
from looks import look

import twinblock
from twinblock.config.recipes import compose
from twinblock.diagnosis.measures import indicators
from twinblock.diagnosis.verdict import judge, verdict


def rows(*of_variance: float, encoder=(0.2, 0.5)):
    """Measurements whose reconstructions have this part of the pixels' variance between images."""
    pixels = torch.randn(2, 1, 64, 48, generator=torch.Generator().manual_seed(0)).expand(2, 2, 64, 48)[0]
    mean = torch.full((48,), 0.3)
    return [
        {
            "step": 100 * i,
            "encoder": look(encoder[min(i, 1)], 0.2 + 0.5 * min(i, 1)),
            "reconstruction": indicators(*(mean + share**0.5 * pixels)),
            "pixels": indicators(*pixels),
        }
        for i, share in enumerate(of_variance)
    ]


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("share", "headline"), [(0.0, "reconstructs the mean"), (0.005, "reconstructs the mean"), (0.02, None), (0.5, None)]
)
def test_the_variance_between_images_decides(share, headline, finished):
    found = verdict(rows(0.05, 0.01, share), finished)
    assert (found.headline == headline) if headline else found.headline in ("learned", "learning")
    assert found.state == ("not started" if headline else "healthy")
    if headline:
        assert "of the pixels' variance" in found.evidence


def test_features_that_are_alike_are_no_failure_of_what_reconstructs():
    """The loss does not ask that features of images differ in direction; it asks that pixels do."""
    assert verdict(rows(0.05, 0.2, 0.4, encoder=(0.05, 0.05)), True).state == "healthy"
    assert verdict(rows(0.05, 0.2, 0.001, encoder=(0.05, 0.05)), True).headline == "reconstructs the mean"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], "train for longer (train.length), or raise optim.lr"),
        (["learner.mask=0.97"], "learner.mask=0.97 leaves too little to tell the rest by: published 0.75"),
        (["optim.lr=3"], "optim.lr=3 is far above what adamw takes"),
        (["optim.lr=1e-9"], "optim.lr=1e-09 is far below what adamw needs"),
    ],
)
def test_the_advice_names_the_cause(overrides, words):
    config = compose("mae", overrides=overrides)
    assert words in verdict(rows(0.05, 0.0), True, config).advice


def test_a_run_on_noise_reconstructs_the_mean_and_one_on_stripes_does_not(tmp_path):
    rng = np.random.Generator(np.random.PCG64(0))
    across = rng.integers(0, 2, 64).astype(bool)
    stripes = np.where(np.arange(16) % 4 < 2, 40, 210).astype(np.uint8)
    striped = np.where(across[:, None, None], stripes[None, :, None], stripes[None, None, :])
    noise = rng.integers(0, 255, (64, 16, 16), dtype=np.uint8)
    small = [
        "data.batch=32",
        "encoder.kind=test_vit",
        "train.length=120steps",
        "train.checkpoint_every=100%",
        "optim.lr=0.02",
    ]
    small += ["views=[{crop: null, flip: 0}]", *(f"learner.{k}={v}" for k, v in tiny.OTHERS["mae"].learner.items())]
    headlines = {}
    for name, pixels in (("noise", noise), ("stripes", striped)):
        images = np.repeat(pixels[..., None], 3, 3)
        run = twinblock.pretrain("mae", data=images, out=tmp_path / name, overrides=small, quiet=True)
        headlines[name] = judge(run.metrics(), [0], run.config)[0].headline
        assert run.result["headline"] == headlines[name]
    assert headlines["noise"] == "reconstructs the mean"
    assert headlines["stripes"] != "reconstructs the mean"
