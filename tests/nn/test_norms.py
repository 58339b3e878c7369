"""Norms by name, weight standardisation, and encoders with other norms."""

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

from twinblock.core.distributed import NormaliseBatch
from twinblock.core.errors import InputError
from twinblock.nn.norms import WSConv2d, WSLinear, convert_norms, make_norm, parse_norm


def assert_golden(actual, expected):
    np.testing.assert_allclose(actual.detach(), expected, rtol=0, atol=1e-9 * np.abs(expected).max())


def test_ws_linear_golden(golden):
    g = {name: golden[f"ws_linear/{name}"] for name in ("x", "W", "b", "upstream", "out", "g_x", "g_W")}
    layer, x = WSLinear(3, 4).double(), torch.tensor(g["x"], requires_grad=True)
    layer.load_state_dict({"weight": torch.tensor(g["W"]), "bias": torch.tensor(g["b"])})
    out = layer(x)
    out.backward(torch.tensor(g["upstream"]))
    assert_golden(out, g["out"])
    assert_golden(x.grad, g["g_x"])
    assert_golden(layer.weight.grad, g["g_W"])


def test_ws_conv_golden(golden):
    names = ("x", "W", "stride", "padding", "upstream", "out", "g_x", "g_W")
    g = {name: golden[f"ws_conv/{name}"] for name in names}
    d_out, d_in, size, _ = g["W"].shape
    layer = WSConv2d(d_in, d_out, size, int(g["stride"]), int(g["padding"]), bias=False).double()
    layer.load_state_dict({"weight": torch.tensor(g["W"])})
    x = torch.tensor(g["x"], requires_grad=True)
    out = layer(x)
    out.backward(torch.tensor(g["upstream"]))
    assert_golden(out, g["out"])
    assert_golden(x.grad, g["g_x"])
    assert_golden(layer.weight.grad, g["g_W"])


REDUCED = {"batch": (0, 2, 3), "sync": (0, 2, 3), "layer": (1, 2, 3)}


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("spatial", [True, False])
@pytest.mark.parametrize("kind", ["batch", "sync", "layer", "group"])
def test_a_norm_standardises_over_its_own_dimensions(kind, spatial, affine):
    x = 3 + 2 * torch.randn(5, 96, 4, 4, generator=torch.Generator().manual_seed(0))
    x = x if spatial else x[:, :, :1, :1]
    norm = make_norm(kind, 96, affine, spatial)
    assert len(list(norm.parameters())) == 2 * affine
    y = norm(x if spatial else x.flatten(1)).reshape(x.shape)
    if kind == "group":
        x, y, dims = x.unflatten(1, (32, 3)), y.unflatten(1, (32, 3)), (2, 3, 4)
    else:
        dims = REDUCED[kind]
    variance = x.var(dims, correction=0, keepdim=True)
    torch.testing.assert_close(y, (x - x.mean(dims, keepdim=True)) / (variance + 1e-5).sqrt())


def test_no_norm_is_the_identity():
    x = torch.randn(2, 3)
    assert make_norm("none", 3)(x) is x


@pytest.mark.parametrize(
    ("width", "spatial", "fits"),
    [
        (100, False, "group25"),
        (100, True, "group25"),
        (16, True, "group16"),
        (32, False, "group16"),
        (7, True, "group7"),
        (7, False, "layer"),
    ],
)
def test_a_width_that_32_groups_do_not_fit_is_refused_with_a_norm_that_does(width, spatial, fits):
    with pytest.raises(InputError, match=f"32 groups.*width of {width}; take a multiple of 32 .* such as {fits}$"):
        make_norm("group", width, spatial=spatial)
    make_norm(fits, width, spatial=spatial)


def test_one_channel_a_group_is_fine_on_maps():
    assert make_norm("group", 32, spatial=True)(torch.randn(2, 32, 4, 4)).std() > 0.9


@pytest.mark.parametrize(
    "text", ["instance", "", "group0", "group-1", "batch8", "ws", "group+wss", "group8 +ws", "Batch"]
)
def test_an_unknown_norm_is_refused_with_the_known_ones(text):
    with pytest.raises(
        InputError, match=r"should be 'batch', 'sync', 'layer', 'group', 'rms', 'standard', 'none'.* 'group8' for 8"
    ):
        make_norm(text, 8)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [("batch", ("batch", 32, False)), ("group8+ws", ("group", 8, True)), ("none+ws", ("none", 32, True))],
)
def test_a_norm_by_its_text(text, parsed):
    assert parse_norm(text) == parsed


def test_the_number_of_groups_can_be_chosen():
    assert make_norm("group8", 16, spatial=True).num_groups == 8
    with pytest.raises(InputError, match="norm 'group8' has 8 groups, which do not fit a width of 20"):
        make_norm("group8", 20)


def small_encoder():
    """Two convolutions and norms; the last norm starts at zero, as in residual blocks."""
    encoder = nn.Sequential(
        nn.Conv2d(3, 32, 3, bias=False),
        nn.BatchNorm2d(32, eps=1e-3),
        nn.Sequential(nn.Conv2d(32, 64, 3, bias=False), nn.BatchNorm2d(64)),
    )
    nn.init.zeros_(encoder[2][1].weight)
    nn.init.normal_(encoder[1].bias)
    return encoder


@pytest.mark.parametrize("kind", ["layer", "group", "group+ws", "sync"])
def test_conversion_keeps_names_and_values(kind):
    encoder = small_encoder()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    after = convert_norms(encoder, kind).state_dict()
    learned = {name for name in before if name.endswith(("weight", "bias"))}
    assert after.keys() == (before.keys() if kind == "sync" else learned)
    assert all(torch.equal(after[name], before[name]) for name in learned)
    assert encoder[1].eps == 1e-3


def test_conversion_to_batch_changes_nothing():
    encoder = small_encoder()
    assert convert_norms(encoder, "batch") is encoder
    assert type(encoder[1]) is nn.BatchNorm2d


def test_conversion_to_sync_gives_the_same_outputs_on_one_process():
    x = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    encoder = small_encoder()
    expected = encoder(x)
    convert_norms(encoder, "sync")
    assert {type(m).__name__ for m in encoder.modules() if "Norm" in type(m).__name__} == {"SyncBatchNorm"}
    torch.testing.assert_close(encoder(x), expected)


@pytest.mark.parametrize("kind", ["batch+ws", "none+ws", "layer+ws"])
def test_weights_are_standardised_beside_any_norm(kind):
    encoder = convert_norms(small_encoder(), kind)
    assert {type(m) for m in encoder.modules() if isinstance(m, nn.Conv2d)} == {WSConv2d}
    assert isinstance(encoder[1], nn.BatchNorm2d) == (kind == "batch+ws")


def test_conversion_to_none_removes_the_norms():
    encoder = convert_norms(small_encoder(), "none")
    assert encoder.state_dict().keys() == {"0.weight", "2.0.weight"}


@pytest.mark.parametrize("make", [torchvision.models.resnet18, lambda: timm.create_model("resnet18")])
def test_group_and_weight_standardisation_make_a_resnet_free_of_batches(make):
    model = convert_norms(make(), "group+ws").double()
    assert {type(m) for m in model.modules() if isinstance(m, nn.Conv2d)} == {WSConv2d}
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        alone = model(x[:1])
        torch.testing.assert_close(model(x)[:1], alone)
        for parameter in (p for p in model.parameters() if p.dim() == 4):
            parameter.add_(1)  # a common shift of the weights is standardised away
        torch.testing.assert_close(model(x[:1]), alone)


def test_a_norm_that_does_more_is_refused():
    with pytest.raises(InputError, match=r"layer stem\.bn is a BatchNormAct2d.*keep norm 'batch'"):
        convert_norms(timm.create_model("regnetx_002"), "group")


def test_an_encoder_without_batch_norm_is_refused_but_has_nothing_to_synchronise():
    encoder = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    with pytest.raises(InputError, match="no batch norm to replace"):
        convert_norms(encoder, "group")
    assert convert_norms(encoder, "sync") is encoder


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5, 5)])
@pytest.mark.parametrize("affine", [True, False])
def test_the_norm_of_a_global_batch_is_torchs_in_value_and_gradient(shape, affine):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, generator=generator).add(3).requires_grad_()
    weight, bias = (torch.randn(3, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2))
    given = (x, weight, bias) if affine else (x, None, None)
    out, mean, variance = NormaliseBatch.apply(*given, 1e-5)
    expected = torch.nn.functional.batch_norm(x, None, None, *given[1:], training=True, eps=1e-5)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    dims = [d for d in range(x.dim()) if d != 1]
    torch.testing.assert_close(mean, x.mean(dims))
    torch.testing.assert_close(variance, x.var(dims, correction=0))
    assert torch.autograd.gradcheck(lambda *given: NormaliseBatch.apply(*given, 1e-5)[0], given)


def test_the_norm_of_a_global_batch_keeps_its_input_alone():
    kept = []
    x = torch.randn(8, 4, 16, 16).bfloat16().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        NormaliseBatch.apply(x, torch.ones(4), torch.zeros(4), 1e-5)
    assert sum(t.numel() * t.element_size() for t in kept if t.numel() >= x.numel()) == 2 * x.numel()


def test_a_norm_of_each_sample_hides_its_length():
    """Root mean square 1, and a mean of 0 where it is taken away; zeros stay zeros, and have a gradient."""
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64) + 2
    for kind in ("rms", "standard"):
        norm = make_norm(kind, 3, spatial=True)
        y = norm(x)
        assert torch.allclose(y.square().mean((1, 2, 3)), torch.ones(4).double(), atol=1e-12)
        assert torch.allclose(norm(7 * x), y, atol=1e-12) and not list(norm.parameters())
        row = x[1] - x[1].mean() if kind == "standard" else x[1]
        assert torch.allclose(y[1], row / row.square().mean().sqrt(), atol=1e-12)
        zero = torch.zeros(2, 3, requires_grad=True)
        norm(zero).sum().backward()
        assert (norm(zero) == 0).all() and zero.grad is not None and zero.grad.isfinite().all()
