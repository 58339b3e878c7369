"""Encoders cut into blocks: the blocks in a row are the network, under the names it has elsewhere."""

import pytest
import timm
import tiny
import torch
import torchvision

from twinblock.assembly.resolve import resolve
from twinblock.config.recipes import compose
from twinblock.core.errors import InputError
from twinblock.nn.encoders import build_encoder

KINDS = (
    "resnet10",
    "resnet18",
    "resnet50",
    "convnext_atto",
    "regnety_002",
    "torchvision/resnet18",
    "torchvision/convnext_tiny",
)


def images(n: int, side: int) -> torch.Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stem", ["standard", "cifar"])
def test_the_blocks_in_a_row_are_the_encoder(kind, stem):
    encoder = build_encoder(kind, stem, "batch", None, 64, seed=0).eval()
    x = images(2, 64)
    with torch.no_grad():
        whole, widths, held = encoder(x), [], []
        for block in encoder.as_blocks():
            x = block(x)
            widths.append(x.shape[1])
            held += [id(p) for p in block.parameters()]
    assert torch.equal(whole, x.mean((2, 3)))
    assert whole.shape == (2, encoder.width)
    assert widths == encoder.widths
    assert len(widths) == 4
    assert held == [id(p) for p in encoder.parameters()]  # every parameter is in one block, none in two


def test_the_state_loads_into_torchvision_and_gives_the_same_features():
    encoder = build_encoder("resnet18", "standard", "batch", None, 64, seed=3).eval()
    theirs = torchvision.models.resnet18()
    missing = theirs.load_state_dict(encoder.state_dict(), strict=False)
    assert missing.missing_keys == ["fc.weight", "fc.bias"]
    assert missing.unexpected_keys == []
    theirs.fc = torch.nn.Identity()
    x = images(2, 64)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), theirs.eval()(x))


def test_the_state_loads_into_timm():
    encoder = build_encoder("convnext_atto", "standard", "batch", None, 64, seed=3)
    keys = timm.create_model("convnext_atto", num_classes=0).load_state_dict(encoder.state_dict(), strict=False)
    assert keys.unexpected_keys == []
    assert all(key.startswith("head.") for key in keys.missing_keys)


def test_a_resnet_has_four_blocks_with_the_stem_in_the_first():
    encoder = build_encoder("resnet50", "standard", "batch", None, 224, seed=0)
    assert encoder.cuts == [["conv1", "bn1", "act1", "maxpool", "layer1"], ["layer2"], ["layer3"], ["layer4"]]
    assert encoder.widths == [256, 512, 1024, 2048]


def test_stems_and_widths():
    resolutions = {"standard": 4, "cifar": 1, "cifar_stride2": 2}
    for stem, shrink in resolutions.items():
        encoder = build_encoder("resnet10", stem, "batch", 8, 64, seed=0)
        assert encoder.as_blocks()[0](images(2, 64)).shape == (2, 8, 64 // shrink, 64 // shrink)
    assert encoder.widths == [8, 16, 32, 64]


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(5)
    a = build_encoder("resnet10", "cifar", "batch", 8, 32, seed=1).state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))  # the caller's random numbers are not touched
    b = build_encoder("resnet10", "cifar", "batch", 8, 32, seed=1).state_dict()
    c = build_encoder("resnet10", "cifar", "batch", 8, 32, seed=2).state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["conv1.weight"], c["conv1.weight"])


@pytest.mark.parametrize("norm", ["sync", "group", "group+ws", "none"])
def test_norms_change_and_names_stay(norm):
    plain = build_encoder("resnet10", "cifar", "batch", 32, 32, seed=0)
    other = build_encoder("resnet10", "cifar", norm, 32, 32, seed=0)
    assert set(other.state_dict()) <= set(plain.state_dict())
    assert not any(type(m) is torch.nn.BatchNorm2d for m in other.modules())
    assert torch.isfinite(other(images(4, 32))).all()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("resnet81", "did you mean"),
        ("nonsense/resnet18", "no backbone named"),
        ("torchvision/resnte18", "did you mean torchvision/resnet18"),
        ("torchvision/fasterrcnn_resnet50_fpn", "no backbone named"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(kind, words):
    with pytest.raises(InputError, match=words) as caught:
        build_encoder(kind, "standard", "batch", None, 224, seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "size"), [("halonet26t", 32), ("ghostnetv3_050", 32), ("torchvision/vit_b_16", 40)])
def test_a_size_that_a_network_does_not_take_is_refused_in_one_line(kind, size):
    with pytest.raises(InputError, match=rf"encoder\.kind={kind} (fails|cannot be built) for .*{size}") as caught:
        build_encoder(kind, "standard", "batch", None, size, seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["swin_tiny_patch4_window7_224", "beit_base_patch16_224"])
def test_a_network_made_for_one_size_is_made_for_the_size_of_the_images(kind):
    with torch.device("meta"):
        theirs = timm.create_model(kind, num_classes=0, img_size=64)
    encoder = build_encoder(kind, "standard", "batch", None, 64, seed=0)
    shapes = {name: t.shape for name, t in theirs.state_dict().items()}
    assert {name: t.shape for name, t in encoder.state_dict().items()}.items() <= shapes.items()
    assert encoder.eval()(images(1, 64)).shape == (1, encoder.width)


@pytest.mark.parametrize("kind", ["deit_tiny_patch16_224", "timm/test_vit", "torchvision/vit_b_16"])
def test_vision_transformers_by_any_name_have_no_stem_to_choose(kind):
    config = compose("simclr", overrides=[f"encoder.kind={kind}", "data.size=32"])
    stem = resolve(config, tiny.images(4, 32), torch.device("cpu")).encoder.stem
    encoder = build_encoder(kind, stem, "batch", None, 32, seed=0).eval()
    assert encoder(images(2, 32)).shape == (2, encoder.width)


def test_nothing_in_an_encoder_is_left_to_chance():
    encoder = build_encoder("torchvision/efficientnet_b0", "standard", "batch", None, 32, seed=0).train()
    x, found = torch.randn(4, 3, 32, 32), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(encoder(x))
    assert torch.equal(*found)  # torchvision drops whole targets, by a generator that a process shares


@pytest.mark.parametrize("cuts", ["stages", "blocks"])
def test_a_vit_of_several_sizes_gives_what_timm_gives_for_each(cuts):
    """Its position embeddings are interpolated, not those of the size that it was made for."""
    name, size = "vit_tiny_patch16_224", 64
    encoder = build_encoder(name, "standard", "batch", None, size, 0, cuts, several_sizes=True).eval()
    model = timm.create_model(name, num_classes=0, img_size=size, dynamic_img_size=True).eval()
    model.load_state_dict(encoder.state_dict())
    for side in (32, 64, 96):
        x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(side))
        with torch.no_grad():
            torch.testing.assert_close(encoder.maps(x)[-1], model.forward_features(x), rtol=0, atol=0)
    fixed = build_encoder(name, "standard", "batch", None, size, 0, cuts).eval()
    with pytest.raises(Exception, match=r"size of tensor|doesn't match"):
        fixed(torch.randn(2, 3, 32, 32))
