"""Plain networks of local learning: shapes as published, one block a convolution, no norms where papers have none."""

import pytest
import torch
from torch import nn

from twinblock.core.errors import InputError
from twinblock.nn.encoders import build_encoder

# at 32 px what each block gives, and the channels of its convolution, given and its own
PUBLISHED = {
    "vgg6": (
        [(128, 32), (256, 16), (256, 16), (512, 8), (1024, 4), (1024, 2)],
        [(3, 128), (128, 256), (256, 256), (256, 512), (512, 1024), (1024, 1024)],
    ),
    "vgg11_conv": (
        [(64, 16), (128, 8), (256, 8), (256, 4), (512, 4), (512, 2), (512, 2), (512, 1)],
        [(3, 64), (64, 128), (128, 256), (256, 256), (256, 512), (512, 512), (512, 512), (512, 512)],
    ),
    "vgg8b": (
        [(128, 32), (256, 32), (256, 16), (512, 16), (512, 8), (512, 4), (1024, 1)],
        [(3, 128), (128, 256), (256, 256), (256, 512), (512, 512), (512, 512)],
    ),
}


def build(kind, cuts="blocks", width=None, size=32, **how):
    return build_encoder(kind, "standard", how.pop("norm", "batch"), width, size, seed=0, cuts=cuts, **how)


@pytest.mark.parametrize("kind", PUBLISHED)
def test_shapes_and_parameters_are_as_published(kind):
    shapes, layers = PUBLISHED[kind]
    encoder = build(kind)
    assert encoder.shapes == [(c, side, side) for c, side in shapes]
    count = sum(9 * given * out + out for given, out in layers)
    if kind == "vgg8b":  # a full layer from 512 maps of 2 x 2, and batch norms
        count += 4 * 512 * 1024 + 1024 + 2 * (sum(out for _, out in layers) + 1024)
    assert sum(p.numel() for p in encoder.parameters()) == count
    norms = [module for module in encoder.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == (7 if kind == "vgg8b" else 0)
    assert all(sum(isinstance(m, nn.Conv2d) for m in block.modules()) == 1 for block in encoder.as_blocks())


def test_a_loss_of_vgg8b_sees_maps_before_they_are_pooled():
    encoder = build("vgg8b", width=8)
    assert [cut[0] for cut in encoder.cuts][2:4] == ["block3.pool", "block4.conv"]
    assert encoder.cuts[1] == ["block2.conv", "block2.norm", "block2.relu"]


@pytest.mark.parametrize("kind", PUBLISHED)
def test_the_blocks_in_a_row_are_the_network_at_any_width(kind):
    encoder = build(kind, width=16).eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = x
        for block in encoder.as_blocks():
            y = block(y)
        assert torch.equal(encoder(x), y.mean((2, 3)))
    assert encoder.widths[0] == 16
    assert encoder.width == 16 * PUBLISHED[kind][0][-1][0] // PUBLISHED[kind][0][0][0]


def test_vgg8b_goes_without_norms_if_told_to():
    assert not any("norm" in name for name, _ in build("vgg8b", width=8, norm="none").named_parameters())


@pytest.mark.parametrize(
    ("kind", "how", "words"),
    [
        ("vgg11_conv", {"size": 16}, "halves its maps 5 times, too often for 16 px"),
        ("vgg6", {"norm": "group"}, "no batch norm to replace"),
        ("vgg6", {"drop_path": 0.1}, "no residual paths to drop"),
        ("vgg7", {}, "did you mean vgg6|did you mean vgg"),
    ],
)
def test_what_cannot_be_is_one_line(kind, how, words):
    with pytest.raises(InputError, match=words) as caught:
        build(kind, **how)
    assert "\n" not in str(caught.value)


def test_a_plain_network_has_no_stem_to_choose():
    with pytest.raises(InputError, match="no stem to replace"):
        build_encoder("vgg6", "cifar", "batch", None, 32, seed=0)


def test_a_network_without_residual_blocks_is_cut_before_each_convolution():
    encoder = build("torchvision/vgg11_bn")
    assert [cut[0] for cut in encoder.cuts] == [f"features.{i}" for i in (0, 4, 8, 11, 15, 18, 22, 25)]
