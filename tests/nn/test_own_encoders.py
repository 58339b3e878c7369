"""A network of one's own as an encoder: its features are its own before the head, block by block, under its names."""

import copy
import functools
from collections import OrderedDict

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.func import functional_call

from twinblock.core.errors import InputError
from twinblock.nn.encoders import Encoder, build_encoder, own_encoder


def images(n: int = 2, side: int = 32, channels: int = 3) -> torch.Tensor:
    return torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(0))


class Basic(nn.Module):
    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride > 1 or before != width:
            self.shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """Functions in the forward, a head without a pooling module, and parameters of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, 8, 1, 1))
        self.register_buffer("shift", torch.full((1, 8, 1, 1), 0.1))
        self.conv1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(Basic(8, 8, 1), Basic(8, 8, 1))
        self.layer2 = nn.Sequential(Basic(8, 16, 2), Basic(16, 16, 1))
        self.layer3 = nn.Sequential(Basic(16, 32, 2), Basic(32, 32, 1))
        self.linear = nn.Linear(32, 10)

    def features(self, x):
        out = F.relu(self.bn1(self.conv1(x)) * self.scale + self.shift, inplace=True)
        out = self.layer3(self.layer2(self.layer1(out)))
        return F.avg_pool2d(out, out.size()[3]).view(out.size(0), -1)

    def forward(self, x):
        return self.linear(self.features(x))


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torchvision.models.resnet18()

    def forward(self, x, mask=None):
        return self.net(x if mask is None else x * mask)


def sequential() -> nn.Sequential:
    def layer(before, width):
        return nn.Conv2d(before, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)

    return nn.Sequential(
        *layer(3, 8), *layer(8, 16), *layer(16, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)
    )


def torchvision_resnet(model):
    return lambda x: nn.Sequential(*list(model.children())[:-1])(x).flatten(1)


def swin(model):
    return lambda x: model.permute(model.norm(model.features(x))).mean((2, 3))


def torchvision_vit(model):
    return lambda x: model.encoder(torch.cat([model.class_token.expand(len(x), -1, -1), model._process_input(x)], 1))[
        :, 1:
    ].mean(1)


SMALL_VIT = {"image_size": 32, "patch_size": 8, "num_layers": 3, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
SMALL_SWIN = {"embed_dim": 8, "depths": [1, 1, 1], "num_heads": [1, 1, 1], "window_size": [4, 4]}
NETWORKS = {
    "Sequential": (sequential, lambda m: m[:11], 2),
    "CIFAR ResNet": (CifarResNet, lambda m: m.features, 3),
    "torchvision ResNet": (torchvision.models.resnet18, torchvision_resnet, 4),
    "in a wrapper": (Wrapped, lambda m: torchvision_resnet(m.net), 4),
    "timm ResNet": (lambda: timm.create_model("resnet18"), lambda m: lambda x: m.forward_features(x).mean((2, 3)), 4),
    "timm ViT": (
        lambda: timm.create_model("test_vit", img_size=32),
        lambda m: lambda x: m.forward_features(x)[:, 1:].mean(1),
        6,
    ),
    "torchvision ViT": (lambda: torchvision.models.VisionTransformer(**SMALL_VIT), torchvision_vit, 3),
    "timm Swin": (
        lambda: timm.models.swin_transformer.SwinTransformer(
            img_size=32, patch_size=2, window_size=4, embed_dim=8, depths=(1, 1, 1), num_heads=(1, 1, 1)
        ),
        lambda m: lambda x: m.forward_features(x).mean((1, 2)),
        3,
    ),
    "torchvision Swin": (
        lambda: torchvision.models.SwinTransformer([2, 2], **SMALL_SWIN, stochastic_depth_prob=0.2),
        swin,
        3,
    ),
    "mobilenet": (
        lambda: timm.create_model("mobilenetv3_small_050"),
        lambda m: lambda x: m.forward_features(x).mean((2, 3)),
        4,
    ),
}


def build(name: str, cuts="stages") -> tuple[nn.Module, Encoder]:
    torch.manual_seed(0)
    module = NETWORKS[name][0]().eval()
    for part in module.modules():  # scales that start at nought would hide what is wrong
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight)
    return module, own_encoder(module, 32, cuts).eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_features_are_the_modules_own_and_blocks_in_a_row_the_network(name):
    module, encoder = build(name)
    x, held = images(3), []
    with torch.no_grad():
        features = encoder(x)
        torch.testing.assert_close(features, NETWORKS[name][1](module)(x), rtol=1e-5, atol=1e-6)
        maps = encoder.maps(x)
        for block, shape, given in zip(encoder.as_blocks(), encoder.shapes, maps, strict=True):
            x = block(x)
            assert tuple(x.shape[1:]) == shape
            assert torch.equal(x, given)
            held += [id(p) for p in block.parameters()]
    assert encoder.uncut is None
    assert len(encoder.cuts) == NETWORKS[name][2], encoder.cuts
    assert sorted(held) == sorted(id(p) for p in encoder.parameters())
    own = module.state_dict()
    assert all(torch.equal(tensor, own[key]) for key, tensor in encoder.state_dict().items())
    assert features.shape == (3, encoder.width)


@pytest.mark.parametrize("name", NETWORKS)
def test_new_tensors_reach_the_blocks_however_they_come(name):
    # in float64: a sum in another order, as a processor's libraries choose by where tensors lie, is no difference
    _, encoder = build(name)
    wide = encoder.double()
    x, old = images().double(), wide.state_dict()
    new = {key: t + 0.1 * torch.rand_like(t) if t.is_floating_point() else t for key, t in old.items()}
    loaded, assigned = copy.deepcopy(wide), copy.deepcopy(wide)
    loaded.load_state_dict(new)
    assigned.load_state_dict(new, assign=True)
    with torch.no_grad():
        before, right = wide(x), loaded(x)
        assert (before - right).abs().max() > 1e-3
        same = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)
        same(assigned(x), right)
        same(functional_call(wide, new, (x,)), right)
        same(wide(x), before)
        same(assigned.pooled(nn.Sequential(*assigned.as_blocks())(x)), right)
    assert {p.dtype for block in wide.as_blocks() for p in block.parameters()} == {torch.float64}
    assert wide(x).dtype == torch.float64
    copied = copy.deepcopy(nn.ModuleList(wide.as_blocks()))
    assert {id(p) for p in copied.parameters()}.isdisjoint({id(p) for p in wide.parameters()})


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_has_a_gradient_and_the_given_module_is_untouched(name):
    module, encoder = build(name)
    before = copy.deepcopy(module.state_dict())
    encoder.train()(images(4)).square().sum().backward()
    assert [key for key, p in encoder.named_parameters() if p.grad is None] == []
    assert all(p.grad is None for p in module.parameters())
    assert all(torch.equal(before[key], t) for key, t in module.state_dict().items())


def test_what_is_left_out_and_switched_off_is_said():
    _, encoder = build("torchvision Swin")
    assert encoder.notes == (
        "StochasticDepth of SwinTransformer is off",
        "the features are those before the head, which is left out: head",
    )
    assert not any("linear" in key for key in build("CIFAR ResNet")[1].state_dict())
    assert "first 1 " in " ".join(build("torchvision ViT")[1].notes)


def test_named_modules_begin_a_block_of_ones_own():
    _, encoder = build("CIFAR ResNet", ("layer2", "layer3.1"))
    assert [cut[0] for cut in encoder.cuts] == ["conv1", "layer2.0", "layer3.1"]
    _, encoder = build("torchvision ViT", ("encoder.layers.encoder_layer_1",))
    assert len(encoder.cuts) == 2
    with pytest.raises(InputError, match="did you mean layer"):
        build("CIFAR ResNet", ("layer5",))


def test_maps_have_their_channels_first_between_blocks():
    _, encoder = build("timm Swin")
    assert encoder.channels_last == [True] * 3
    assert [tuple(y.shape[1:]) for y in encoder.maps(images())] == [(8, 16, 16), (16, 8, 8), (32, 4, 4)]


class Two(nn.Module):
    """Not a row: two branches side by side to the end."""

    def __init__(self, give: str = "vector"):
        super().__init__()
        self.a, self.b, self.give = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 6, 3), give

    def forward(self, x):
        for _ in range(x.shape[1] // 3):  # what tracing cannot follow
            y = self.a(x) + self.b(x)
        match self.give:
            case "map":
                return y
            case "tokens":
                return F.pad(y.flatten(2).transpose(1, 2), (0, 0, 1, 0))
            case "pair":
                return y, x
            case "NaN":
                return y * float("nan")
            case "chance":
                return F.dropout(y, 0.5, self.training)
            case "mode":
                return (y * 2 if self.training else y).mean((2, 3))
        return y.mean((2, 3))


@pytest.mark.parametrize("give", ["vector", "map", "tokens", "mode"])
def test_what_cannot_be_cut_is_one_block_with_a_reason(give):
    module = Two(give).eval()
    encoder = own_encoder(module, 8).eval()
    assert encoder.uncut
    assert encoder.uncut in " ".join(encoder.notes)
    assert len(encoder.as_blocks()) == 1 and encoder.width == 6
    assert set(encoder.state_dict()) == set(module.state_dict())
    x = images(3, 8)
    with torch.no_grad():
        expected = (module.a(x) + module.b(x)).mean((2, 3))
        torch.testing.assert_close(encoder(x), expected)
        torch.testing.assert_close(encoder.train()(x), expected * (2 if give == "mode" else 1))
        new = {key: t + 1 for key, t in module.state_dict().items()}
        assert not torch.equal(functional_call(encoder, new, (x,)), encoder(x))
    with pytest.raises(InputError, match="cannot be cut into blocks") as caught:
        own_encoder(module, 8, ("b",))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (Two("pair"), "encoder=Two gives a tuple"),
        (Two("NaN"), "NaN or infinity"),
        (Two("chance"), "draws random numbers in training mode"),
        (nn.Sequential(nn.Conv2d(1, 4, 3)), "encoder=Sequential fails for images of 3 x 8 x 8 .*channels"),
        (torchvision.models.VisionTransformer(**SMALL_VIT), "encoder=VisionTransformer fails .*32"),
        (nn.Sequential(nn.Flatten(0)), "no parameters"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(0)), "gives .* for 2 images"),
    ],
)
def test_what_is_no_encoder_is_refused_in_one_line(module, words):
    with pytest.raises(InputError, match=words) as caught:
        own_encoder(module, 8)
    assert "\n" not in str(caught.value)


def test_vectors_without_a_map_are_taken_as_they_are():
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 4))
    encoder, x = own_encoder(module, 8), images(2, 8)
    assert encoder.shapes == [(4,)]
    assert torch.equal(encoder(x), module(x))


def test_a_named_network_that_cannot_be_cut_is_one_block():
    encoder = build_encoder("hrnet_w18_small", "standard", "batch", None, 64, 0)
    assert encoder.uncut


@pytest.mark.filterwarnings("ignore")  # torch says that tracing is deprecated
@pytest.mark.parametrize("name", ["CIFAR ResNet", "timm ResNet", "timm ViT"])
def test_encoders_can_be_scripted_traced_and_exported(name):
    _, encoder = build(name)
    x = images()
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(encoder)(x), encoder(x))
        torch.testing.assert_close(torch.jit.trace(encoder, x)(x), encoder(x))
        torch.testing.assert_close(torch.export.export(encoder, (x,)).module()(x), encoder(x))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("resnet18", {}),
        ("convnext_atto", {}),
        ("vit_tiny_patch16_224", {"img_size": 64, "global_pool": "avg", "fc_norm": False}),
    ],
)
def test_timm_gives_the_same_features(kind, options):
    """As the documentation says it, in two or three lines."""
    encoder, x = build_encoder(kind, "standard", "batch", None, 64, seed=3).eval(), images(2, 64)
    model = timm.create_model(kind, num_classes=0, **options).eval()
    model.load_state_dict(encoder.state_dict(), strict="convnext" not in kind)  # its `head.norm` comes after the mean
    with torch.no_grad():
        features = model.forward_features(x).mean((2, 3)) if "convnext" in kind else model(x)
        torch.testing.assert_close(features, encoder(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["shapes", "channels_last", "uncut", "prefix", "notes", "depths", "layers"])
def test_a_network_may_have_a_module_of_any_name(name):
    module = nn.Sequential(OrderedDict({name: nn.Conv2d(3, 4, 3), "then": nn.Conv2d(4, 5, 3)}))
    encoder, x = own_encoder(module, 16), images(2, 16)
    torch.testing.assert_close(encoder(x), module(x).mean((2, 3)))
    assert encoder.state_dict().keys() == module.state_dict().keys()
