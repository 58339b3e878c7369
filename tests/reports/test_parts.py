"""The picture of what the encoder makes of the parts of images."""

import numpy as np
import pytest
import torch

from twinblock.core.errors import InputError
from twinblock.nn.encoders import build_encoder
from twinblock.reports.parts import components, finest


def test_parts_that_differ_have_other_colours():
    """Two kinds of parts, far apart in 16 channels: the first component tells them, whatever the rest does."""
    generator = torch.Generator().manual_seed(0)
    kind = torch.rand(3, 4, 4, generator=generator) > 0.5
    maps = 0.1 * torch.randn(3, 16, 4, 4, generator=generator) + 5 * kind[:, None]
    shown = components(maps)
    assert shown.shape == (3, 4, 4, 3) and shown.min() >= 0 and shown.max() <= 1
    first = shown[..., 0]
    low, high = sorted([first[kind.numpy()].mean(), first[~kind.numpy()].mean()])
    assert high - low > 0.9


def test_few_channels_and_a_map_of_one_value():
    assert not components(torch.ones(2, 2, 4, 4)).any()
    assert not components(torch.randn(2, 2, 4, 4))[..., 2].any()


@pytest.mark.parametrize(
    ("kind", "size", "block", "side"),
    [("resnet18", 64, 3, 4), ("resnet18", 224, 4, 7), ("vit_tiny_patch16_224", 64, 12, 4)],
)
def test_the_last_map_with_enough_places(kind, size, block, side):
    encoder = build_encoder(kind, "standard", "batch", None, size, 0).eval()
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    found, maps = finest(encoder, x)
    assert (found, maps.shape[2:]) == (block, (side, side))
    y = encoder.maps(x)[block - 1]
    if y.ndim == 3:  # the first place is the first patch: row by row
        np.testing.assert_array_equal(maps[:, :, 0, 1].detach(), y[:, encoder.prefix + 1].detach())


def test_no_map_with_enough_places():
    encoder = build_encoder("vit_tiny_patch16_224", "standard", "batch", None, 32, 0).eval()
    with pytest.raises(InputError, match="4 x 4 places"):
        finest(encoder, torch.randn(1, 3, 32, 32))
