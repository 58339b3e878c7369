"""Cuts: stages, residual blocks, layers and named modules; in a row they are the network."""

import copy

import pytest
import timm
import torch

from twinblock.core.errors import InputError
from twinblock.nn.encoders import build_encoder

VIT = "vit_tiny_patch16_224"
EMBEDDING = ("patch_embed", "pos_drop", "patch_drop", "norm_pre")


def build(kind: str, cuts, size: int = 64):
    return build_encoder(kind, "standard", "batch", None, size, seed=0, cuts=cuts).eval()


def images(n: int, side: int) -> torch.Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("resnet18", 8),
        ("resnet50", 16),
        ("convnext_atto", 12),
        ("regnety_002", 13),
        ("torchvision/resnet18", 8),
        ("torchvision/convnext_tiny", 18),
        (VIT, 12),
    ],
)
def test_blocks_are_residual_blocks_and_layers_and_in_a_row_the_network(kind, count):
    encoder = build(kind, "blocks")
    x, held = images(2, 64), []
    with torch.no_grad():
        whole = encoder(x)
        for block, shape in zip(encoder.as_blocks(), encoder.shapes, strict=True):
            x = block(x)
            assert tuple(x.shape[1:]) == shape
            held += [id(p) for p in block.parameters()]
    assert len(encoder.cuts) == count
    assert torch.equal(whole, x.mean((2, 3)) if x.ndim == 4 else x[:, 1:].mean(1))
    assert sorted(held) == sorted(id(p) for p in encoder.parameters())  # every parameter is in one block, none in two


def test_cuts_do_not_change_the_weights_or_the_features():
    encoders = [build("resnet18", cuts) for cuts in ("stages", "blocks", ("layer2", "layer3.1"))]
    states = [encoder.state_dict() for encoder in encoders]
    assert all(torch.equal(states[0][name], state[name]) for state in states for name in states[0])
    x = images(2, 64)
    with torch.no_grad():
        assert all(torch.equal(encoders[0](x), encoder(x)) for encoder in encoders)


def test_stem_and_downsampling_go_with_the_block_that_follows():
    assert build("resnet18", "blocks").cuts[:2] == [["conv1", "bn1", "act1", "maxpool", "layer1.0"], ["layer1.1"]]
    convnext = build("convnext_atto", "blocks").cuts
    assert convnext[0] == ["stem.0", "stem.1", "stages.0.downsample", "stages.0.blocks.0"]
    assert convnext[2] == ["stages.1.downsample.0", "stages.1.downsample.1", "stages.1.blocks.0"]


def test_named_modules_begin_a_block():
    encoder = build("resnet18", ("layer2", "layer3.1"))
    assert [cut[0] for cut in encoder.cuts] == ["conv1", "layer2.0", "layer3.1"]
    assert encoder.widths == [64, 256, 512]
    assert [cut[0] for cut in build(VIT, ("blocks.4", "blocks.8")).cuts] == ["patch_embed", "blocks.4", "blocks.8"]


DISTILLED = "deit_tiny_distilled_patch16_224"


@pytest.mark.parametrize("kind", [VIT, DISTILLED, "vit_pwee_patch16_reg1_gap_256", "vit_base_patch16_siglip_224"])
def test_a_vit_by_layers_is_timms(kind):
    """Stages are layers, all of one resolution. The norm after the last belongs to it, the embedding to the first."""
    encoder = build(kind, "stages")
    model = timm.create_model(kind, num_classes=0, img_size=64).eval()
    found = model.load_state_dict(encoder.state_dict(), strict=False)
    assert found.unexpected_keys == []
    assert all(name.startswith(("fc_norm", "head", "attn_pool")) for name in found.missing_keys)
    assert encoder.cuts[0] == [*EMBEDDING, "blocks.0"]
    assert encoder.cuts[-1] == [f"blocks.{len(encoder.cuts) - 1}", "norm"]
    x = images(2, 64)
    with torch.no_grad():
        tokens = model.forward_features(x)
        torch.testing.assert_close(encoder.maps(x)[-1], tokens, rtol=0, atol=0)
        assert torch.equal(encoder(x), tokens[:, encoder.prefix :].mean(1))
    assert encoder.prefix == {VIT: 1, DISTILLED: 2, "vit_pwee_patch16_reg1_gap_256": 1}.get(kind, 0)


def test_a_copy_of_a_vit_has_an_embedding_of_its_own():
    block, x = build(VIT, "blocks").as_blocks()[0], images(2, 64)
    with torch.no_grad():
        before, target = block(x), copy.deepcopy(block)
        for parameter in target.parameters():
            parameter.zero_()
        assert torch.equal(block(x), before)
        assert not target(x).any()


def test_converting_a_vit_leaves_one_set_of_parameters():
    encoder = build(VIT, "blocks").double()
    held = {id(p) for block in encoder.as_blocks() for p in block.parameters()}
    assert held == {id(p) for p in encoder.parameters()}
    assert all(p.dtype == torch.float64 for p in encoder.parameters())


def test_a_block_without_a_shortcut_is_not_cut_inside():
    """EfficientNet's blocks where the resolution changes are plain rows, but its others are not."""
    encoder = build("torchvision/efficientnet_b0", "blocks").eval()
    assert encoder.widths == [16, 24, 24, 40, 40, 80, 80, 80, 112, 112, 112, 192, 192, 192, 192, 1280]
    assert encoder.cuts[1] == ["features.2.0"]
    theirs, x = build("torchvision/efficientnet_b0", "stages").eval(), images(2, 64)
    with torch.no_grad():
        assert torch.equal(encoder(x), theirs(x))


@pytest.mark.parametrize(
    ("kind", "cuts", "words"),
    [
        ("resnet18", ("layer5",), "no block can begin at 'layer5'; did you mean layer"),
        ("resnet18", ("layer1.0.conv2",), "no block can begin at 'layer1.0.conv2'"),
        (VIT, ("blocks.12",), "did you mean blocks"),
    ],
)
def test_cuts_that_cannot_be_made_are_one_line(kind, cuts, words):
    with pytest.raises(InputError, match=words) as caught:
        build(kind, cuts, 64)
    assert "\n" not in str(caught.value)


def test_a_vit_keeps_its_stem_and_its_norms():
    for stem, norm, words in (("cifar", "batch", "no stem to replace"), ("standard", "group", "no batch norm")):
        with pytest.raises(InputError, match=words):
            build_encoder(VIT, stem, norm, None, 64, seed=0)
    with pytest.raises(InputError, match="patches of 16 px"):
        build(VIT, "stages", size=60)


@pytest.mark.parametrize(("kind", "cut"), [("resnet18", "act1"), ("torchvision/vgg11_bn", "features.2")])
def test_a_block_that_begins_with_an_activation_leaves_what_it_is_given(kind, cut):
    encoder, x = build(kind, (cut,), size=32), images(2, 32)
    with torch.no_grad():
        first, last = encoder.maps(x)
        assert torch.equal(first, encoder.as_blocks()[0](x))
        assert (first < 0).any()
        assert torch.equal(last, encoder.as_blocks()[1](first))


def test_what_has_nothing_to_learn_is_no_block_of_its_own():
    encoder = build("torchvision/vgg11_bn", "stages")
    assert encoder.cuts[-1][-1] == "features.28"  # the last pooling
    assert all(any(True for _ in block.parameters()) for block in encoder.as_blocks())
