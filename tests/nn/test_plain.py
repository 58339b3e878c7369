"""Rows of layers: what they compute, where blocks begin, what is refused."""

import pytest
import torch
import torch.nn.functional as F

from twinblock.core.errors import InputError
from twinblock.nn.encoders import build_encoder


def built(kind, widths, size=16, norm="none", cuts="stages", **how):
    return build_encoder(kind, "standard", norm, widths, size, 0, cuts=cuts, **how)


def images(size: int = 16, channels: int = 3) -> torch.Tensor:
    return torch.randn(4, channels, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("kind", "activation"), [("mlp", F.relu), ("sigmoid_mlp", torch.sigmoid)])
def test_an_mlp_is_a_row_of_linear_layers(kind, activation):
    encoder = built(kind, (20, 8), norm="rms", channels=1)
    h = images(channels=1).flatten(1)
    for name in ("layer1", "layer2"):
        h = h / h.square().mean(1, keepdim=True).sqrt()
        weight, bias = (encoder.get_parameter(f"{name}.1.{part}") for part in ("weight", "bias"))
        h = activation(h @ weight.flatten(1).T + bias)
    assert torch.allclose(encoder(images(channels=1)), h, atol=1e-5)
    assert encoder.cuts == [["layer1"], ["layer2"]] and encoder.shapes == [(20, 1, 1), (8, 1, 1)]


def test_the_first_weights_of_an_rbm_are_small():
    encoder = built("sigmoid_mlp", (400,))
    assert encoder.get_parameter("layer1.1.weight").std().item() == pytest.approx(0.01, rel=0.02)
    assert (encoder.get_parameter("layer1.1.bias") == 0).all()


def test_convs_are_the_published_network():
    encoder = built("convs", (6, 8, 10), 32)
    x, state = images(32), encoder.state_dict()
    for i, side in ((1, 5), (2, 3), (3, 3)):
        padded = F.pad(x, [side // 2] * 4, "reflect")
        x = F.conv2d(padded, state[f"layer{i}.1.weight"], state[f"layer{i}.1.bias"])
        x = F.relu(x) if i == 3 else F.max_pool2d(F.relu(x - x.mean(1, keepdim=True)), 4, 2, 1)
    assert torch.allclose(encoder.maps(images(32))[-1], x, atol=1e-6)
    assert encoder.shapes == [(6, 16, 16), (8, 8, 8), (10, 8, 8)]
    assert [tuple(state[f"layer{i}.1.weight"].shape[2:]) for i in (1, 2, 3)] == [(5, 5), (3, 3), (3, 3)]


def test_blocks_may_begin_elsewhere():
    assert len(built("mlp", (8, 8, 8), cuts=("layer3",)).cuts) == 2
    assert len(built("mlp", (8,)).cuts) == 1
    with pytest.raises(InputError, match="no block can begin at 'layer9'"):
        built("mlp", (8, 8), cuts=("layer9",))


@pytest.mark.parametrize(
    ("kind", "widths", "message"),
    [
        ("mlp", None, "encoder.kind=mlp needs the width of each layer, as"),
        ("convs", 64, "encoder.kind=convs needs the width of each layer, as"),
        ("resnet18", (8, 8), "only mlp, sigmoid_mlp, convs have a width for each layer"),
        ("convs", (8, 8, 8, 8), "4 layers halve 16 px too often"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(kind, widths, message):
    with pytest.raises(InputError, match=message) as error:
        built(kind, widths)
    assert "\n" not in str(error.value)


def test_a_stem_is_refused():
    with pytest.raises(InputError, match="mlp has no stem to replace"):
        build_encoder("mlp", "cifar", "rms", (8, 8), 16, 0)


def test_the_stem_is_left_to_other_networks(tmp_path):
    import tiny

    config = tiny.config("vae", encoder={"stem": "auto"})
    assert tiny.trainer(config, tmp_path / "run").config.encoder.stem == "standard"
