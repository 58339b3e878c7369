"""Which weights the masks of pruned networks keep, and when they are drawn anew."""

import itertools

import pytest
import tiny
import torch
from torch import nn
from torch.nn import functional as F

from twinblock.core.durations import Duration
from twinblock.core.seeding import generator
from twinblock.methods.learner import Network
from twinblock.methods.stacks import Stack
from twinblock.methods.targets.pruned import Pruned, magnitude_masks
from twinblock.nn.encoders import build_encoder
from twinblock.nn.norms import WSConv2d, standardise
from twinblock.nn.pooling import Noise, Pooling


def test_masks_move_at_their_interval_only_and_by_the_dense_weights():
    network = tiny.network()
    target = Pruned(network, 0.5, Duration.parse("2epochs"), epoch_steps=3)
    moved = []
    for step in range(12):
        with torch.no_grad():
            network.blocks[0].weight.normal_(generator=torch.Generator().manual_seed(step))
        before = target.get_buffer("mask/blocks/0").clone()
        target.after_step(network, step, 12)
        if not torch.equal(before, target.get_buffer("mask/blocks/0")):
            moved.append(step)
            expected = magnitude_masks({"w": network.blocks[0].weight}, 0.5)["w"]  # of all weights, pruned ones too
            assert torch.equal(target.get_buffer("mask/blocks/0"), expected)
    assert moved == [5, 11]


def test_random_pruning_is_a_function_of_seed_and_step():
    network = tiny.network()
    masks = [Pruned(network, 0.3, random=0.5, seed=seed).get_buffer("mask/blocks/0") for seed in (1, 1, 2)]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    whole = magnitude_masks({"w": network.blocks[0].weight}, 0.3)["w"]
    assert not (masks[0] & ~whole).any()
    assert 0.3 < masks[0].sum() / whole.sum() < 0.7


def twin_layers() -> Network:
    """Two convolutions with the same weights."""
    blocks = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    blocks[1].load_state_dict(blocks[0].state_dict())
    return Network([blocks], Pooling(4), nn.Identity(), Noise(0.0))


def masks_of(target: Pruned) -> list[torch.Tensor]:
    return [target.get_buffer(f"mask/blocks/0/{layer}").clone() for layer in (0, 1)]


def test_random_pruning_draws_anew_for_each_layer_and_each_step():
    network = twin_layers()
    target = Pruned(network, 0.0, random=0.5, seed=3)
    drawn = masks_of(target)
    for step in (1, 2):
        target.draw(network, step)
        drawn += masks_of(target)
    for a, b in itertools.combinations(drawn, 2):
        assert 0.25 < (a != b).float().mean() < 0.75  # halves that know nothing of each other


def test_masks_after_a_step_are_those_of_the_step_that_follows():
    """Those that a run resumed there would draw; the first ones are of step 0."""
    network = twin_layers()
    target, other = (Pruned(network, 0.0, Duration.parse("1epochs"), 2, random=0.5) for _ in range(2))
    for mask, first in zip(masks_of(target), masks_of(other), strict=True):
        assert torch.equal(mask, first)
    target.after_step(network, 3, 8)
    for step, same in ((3, False), (4, True)):
        other.draw(network, step)
        assert all(torch.equal(a, b) == same for a, b in zip(masks_of(target), masks_of(other), strict=True))
    assert masks_of(target)[0].float().mean() == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("random", [0.1, 0.8])
def test_random_pruning_drops_its_share(random):
    target = Pruned(twin_layers(), 0.0, random=random)
    assert torch.cat(masks_of(target)).float().mean() == pytest.approx(1 - random, abs=0.1)


def test_masks_are_drawn_from_step_0_with_seed_0():
    network = twin_layers()
    for seed, step in ((0, 0), (2, 5)):
        target = Pruned(network, 0.0, random=0.5, **({"seed": seed} if seed else {}))
        if step:
            target.draw(network, step)
        for i, mask in enumerate(masks_of(target)):
            assert torch.equal(mask, torch.rand(4, 4, 3, 3, generator=generator("prune", seed, step, i)) >= 0.5)


def test_masks_may_be_drawn_by_a_share_of_the_run():
    network = tiny.network()
    target = Pruned(network, 0.5, Duration.parse("50%"), epoch_steps=3)
    drawn = []
    target.draw = lambda network, step: drawn.append(step)
    for step in range(8):
        target.after_step(network, step, 8)
    assert drawn == [4, 8]


def test_a_weight_is_dropped_with_the_probability_and_not_above():
    """A uniform number in [0, 1) is below p with probability p: the number p itself keeps the weight."""
    number = torch.rand(4, 3, 3, 3, generator=generator("prune", 0, 0, 0))
    mask = Pruned(tiny.network(), 0.0, random=float(number[0, 0, 0, 0])).get_buffer("mask/blocks/0")
    assert mask[0, 0, 0, 0] and torch.equal(mask, number >= number[0, 0, 0, 0])


def test_an_epoch_has_one_step_unless_it_is_said():
    network = tiny.network()
    target = Pruned(network, 0.5)
    before = target.get_buffer("mask/blocks/0").clone()
    with torch.no_grad():
        network.blocks[0].weight.normal_(generator=torch.Generator().manual_seed(1))
    target.after_step(network, 0, 1)
    assert not torch.equal(before, target.get_buffer("mask/blocks/0"))


def test_masks_stay_for_good_where_the_interval_is_longer_than_the_run():
    network = tiny.network()
    target = Pruned(network, 0.5, Duration.parse("0epochs"))
    before = target.get_buffer("mask/blocks/0").clone()
    with torch.no_grad():
        network.blocks[0].weight.mul_(torch.arange(network.blocks[0].weight.numel()).view_as(network.blocks[0].weight))
    target.after_step(network, 0, 1)
    assert torch.equal(before, target.get_buffer("mask/blocks/0"))


def test_stem_and_shortcuts_are_pruned_and_the_head_is_not():
    encoder = build_encoder("resnet18", "cifar", "batch", 8, 32, 0)
    network = Network(encoder.as_blocks(), Pooling(64, expand=16), nn.Linear(16, 4), Noise(0.0))
    target = Pruned(network, 0.9)
    assert len(target.weights) == 1 + 16 + 3
    assert any("downsample" in name for name in target.weights)
    assert all(name.startswith("blocks.") for name in target.weights)
    assert "pooling/expansion/1" in target.norms


def test_the_linear_layers_of_a_transformer_are_pruned_too():
    encoder = build_encoder("test_vit", "standard", "batch", None, 32, seed=0)
    network = Network(encoder.as_blocks(), Pooling(encoder.width, prefix=encoder.prefix), nn.Linear(64, 8), Noise(0.0))
    target = Pruned(network, 0.5)
    layers = sum(m.weight.numel() for m in network.blocks.modules() if isinstance(m, nn.Linear | nn.Conv2d))
    masked = [buffer for name, buffer in target.named_buffers() if name.startswith("mask/")]
    assert sum(mask.numel() for mask in masked) == layers > 10_000
    assert sum(int(mask.sum()) for mask in masked) == pytest.approx(layers / 2, abs=1)


def test_of_standardised_weights_those_are_pruned_that_the_convolution_uses():
    encoder = build_encoder("resnet10", "cifar", "group4+ws", 8, 16, seed=0)
    for conv in (m for m in encoder.modules() if isinstance(m, nn.Conv2d)):
        conv.weight.data += 3  # standardised away, but by size the smallest would be others
    network = Network(encoder.as_blocks(), Pooling(encoder.width), nn.Identity(), Noise(0.0))
    target, seen = Pruned(network, 0.9), {}
    for conv in (m for m in network.modules() if isinstance(m, WSConv2d)):
        conv.register_forward_hook(lambda m, inputs, output: seen.update({m: (inputs[0], output)}))
    x = torch.randn(2, 3, 16, 16)
    target(network, [Stack(x, [(0,)])])
    zero = total = 0
    dense = torch.cat([standardise(conv.weight).flatten().abs() for conv in seen])
    threshold = dense.sort().values[-(-len(dense) * 9 // 10)]
    for conv, (given, found) in seen.items():
        weight = standardise(conv.weight)
        weight = weight * (weight.abs() >= threshold)
        assert torch.allclose(found, F.conv2d(given, weight, None, conv.stride, conv.padding), atol=1e-5)
        assert conv.kept is None  # the online network is as it was
        zero, total = zero + int((weight == 0).sum()), total + weight.numel()
    assert zero == pytest.approx(0.9 * total, abs=2)


def test_nothing_is_drawn_at_random_unless_it_is_said_and_then_by_seed_0():
    network = tiny.network()
    assert torch.equal(
        Pruned(network, 0.3).get_buffer("mask/blocks/0"), magnitude_masks({"w": network.blocks[0].weight}, 0.3)["w"]
    )
    masks = [Pruned(network, 0.3, random=0.5, **more).get_buffer("mask/blocks/0") for more in ({}, {"seed": 0})]
    assert torch.equal(*masks)
