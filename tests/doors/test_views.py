"""Any number of views, each with a size and a count: which pairs are compared, and which passes run."""

import numpy as np
import pytest
import torch
from torch import nn

import twinblock
from twinblock.config.recipes import compose
from twinblock.core.errors import InputError
from twinblock.methods.learner import Passes, pairs_of
from twinblock.methods.objectives import InfoNCE, NTXent, Regression
from twinblock.methods.targets.ema import EMA
from twinblock.methods.targets.shared import Shared
from twinblock.views import View, Views

MULTI_CROP = (32, 32, 16, 16)


def test_small_crops_are_never_targets():
    ema, head = EMA(nn.Linear(1, 1), 0.9), nn.Linear(1, 1)
    pairs = pairs_of(Regression(), ema, head, MULTI_CROP)
    assert sorted(pairs) == [(0, 1), (1, 0), (2, 0), (2, 1), (3, 0), (3, 1)]
    assert Passes.of(pairs) == Passes(frozenset({0, 1, 2, 3}), frozenset({0, 1}))
    # of two mirror images one is enough where they are the same
    assert sorted(pairs_of(NTXent(0.1), Shared(), None, MULTI_CROP)) == [(0, 1), (2, 0), (2, 1), (3, 0), (3, 1)]
    assert sorted(pairs_of(InfoNCE(2, 4, 0.1), ema, None, (32, 32, 32))) == [(0, 1), (0, 2)]


def test_a_count_makes_views_of_other_draws_and_leaves_the_first_ones_as_they_are():
    images = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    where = {"seed": 0, "epoch": 0, "step": 0, "batch": 4}
    two = Views([View(), View()], 32, (0.5,) * 3, (0.2,) * 3)(images, **where)
    many = Views([View(), View(), View(crop=(0.05, 0.4), size=16, count=3)], 32, (0.5,) * 3, (0.2,) * 3)
    views = many(images, **where)
    assert [view.shape[-1] for view in views] == [32, 32, 16, 16, 16]
    assert torch.equal(views[0], two[0]) and torch.equal(views[1], two[1])
    assert not torch.equal(views[2], views[3])


@pytest.mark.parametrize(("recipe", "heads"), [("simclr", []), ("byol", ["predictor.dims=[16,8]"])])
@pytest.mark.parametrize("scope", ["end_to_end", "blockwise"])
def test_multi_crop_trains(tmp_path, recipe, heads, scope):
    pixels = np.random.Generator(np.random.PCG64(0)).integers(0, 255, (32, 16, 16, 3), dtype=np.uint8)
    crops = "views=[{crop: [0.4, 1.0]}, {like: 0}, {like: 0, crop: [0.05, 0.4], size: 8, count: 2}]"
    small = [
        "encoder.kind=resnet10",
        "encoder.width=8",
        "data.batch=16",
        "train.length=2steps",
        "projector.dims=[16,8]",
    ]
    overrides = [*small, crops, f"scope.kind={scope}", *heads]
    run = twinblock.pretrain(recipe, data=pixels, out=tmp_path / "run", overrides=overrides, quiet=True)
    assert run.config.view_sizes == [16, 16, 8, 8]
    assert all(np.isfinite(row["loss"]).all() for row in run.metrics() if "loss" in row)


def test_an_encoder_of_one_size_says_so(tmp_path):
    pixels = np.zeros((16, 32, 32, 3), dtype=np.uint8)
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 8))
    overrides = ["data.batch=8", "views=[{}, {}, {size: 16}]"]
    with pytest.raises(InputError, match=r"does not take images of 16 px beside those of 32"):
        twinblock.pretrain(
            "simclr", data=pixels, encoder=encoder, out=tmp_path / "run", overrides=overrides, quiet=True
        )


def test_one_view_is_too_few():
    with pytest.raises(InputError, match="compares two views or more, 1 given"):
        compose("simclr", overrides=["views=[{}]"])
