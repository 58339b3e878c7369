"""Patches and places against what is written out by hand; and where tokens begin to be a set."""

import math

import pytest
import torch
from torch import nn

from twinblock.nn.encoders import build_encoder
from twinblock.nn.tokens import first_step_of_tokens, patchify, sine_places, steps_of, unpatchify


def test_patches_by_hand():
    """Row by row; of each its pixels row by row, with the channels of a pixel side by side."""
    image = torch.arange(32.0).view(1, 2, 4, 4)  # the second channel is 16 more
    assert patchify(image, 2)[0].tolist() == [
        [0, 16, 1, 17, 4, 20, 5, 21],
        [2, 18, 3, 19, 6, 22, 7, 23],
        [8, 24, 9, 25, 12, 28, 13, 29],
        [10, 26, 11, 27, 14, 30, 15, 31],
    ]


@pytest.mark.parametrize("side", [1, 2, 4, 8])
def test_patches_put_together_are_the_image(side):
    images = torch.randn(3, 5, 8, 8)
    assert torch.equal(unpatchify(patchify(images, side), side), images)


def test_places_by_their_formula():
    width, grid = 12, 3
    places = sine_places(width, grid)
    for number in range(grid**2):
        row, column = divmod(number, grid)
        expected = []
        for x in (column, row):
            rates = [10_000 ** (-i / 3) for i in range(3)]
            expected += [math.sin(x * rate) for rate in rates] + [math.cos(x * rate) for rate in rates]
        assert places[number].tolist() == pytest.approx(expected, abs=1e-6)


def vit(kind: str, **fields):
    encoder = build_encoder(kind, "standard", "batch", None, 32, 0, **fields)
    return steps_of(nn.Sequential(*encoder.as_blocks())), encoder.prefix, math.isqrt(encoder.shapes[0][0])


@pytest.mark.parametrize("kind", ["test_vit", "torchvision/vit_b_16"])
def test_tokens_are_a_set_once_they_have_their_places(kind):
    steps, prefix, grid = vit(kind, **({"patch": 8} if kind == "test_vit" else {}))
    first = first_step_of_tokens(steps, (3, 32, 32), prefix, grid)
    assert 0 < first <= 2 < len(steps) - 2
    x = torch.randn(2, 3, 32, 32)
    for step in steps[:first]:
        x = step(x)
    assert x.shape[1] == prefix + grid**2  # nothing was mixed: attention is in the steps that follow


def test_steps_that_mix_patches_are_found():
    """A stem of convolutions, places that attention adds, a network that cannot be cut; and tokens, from the start."""
    steps, prefix, grid = vit("test_vit", patch=8)
    mixing = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), steps[0])
    assert first_step_of_tokens([mixing, *steps[1:]], (3, 32, 32), prefix, grid) == len(steps)
    whole = nn.Sequential()
    whole.add_module("all", _Whole(steps))
    assert first_step_of_tokens([whole], (3, 32, 32), prefix, grid) == 1
    assert first_step_of_tokens(steps[1:], (prefix + grid**2, 64), prefix, grid) == 0


class _Whole(nn.Module):
    def __init__(self, steps):
        super().__init__()
        self.steps = nn.Sequential(*steps)

    def forward(self, x):
        return self.steps(x)


def test_the_side_of_patches_is_a_field_of_timms_vits():
    encoder = build_encoder("vit_tiny_patch16_224", "standard", "batch", None, 32, 0, patch=4)
    assert encoder.shapes[-1] == (65, 192)
    with pytest.raises(ValueError, match=r"encoder.patch is for the ViTs of timm"):
        build_encoder("resnet18", "standard", "batch", None, 32, 0, patch=4)
    with pytest.raises(ValueError, match=r"patches of 5 px: set data.size to a multiple, not 32"):
        build_encoder("test_vit", "standard", "batch", None, 32, 0, patch=5)
