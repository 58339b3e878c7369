"""Taps: pooling and noise against golden vectors; what an expansion holds; where noise is not; what tokens give."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from twinblock.core.distributed import world_size
from twinblock.core.seeding import generator
from twinblock.methods.learner import Network
from twinblock.methods.stacks import Stack
from twinblock.methods.targets.pruned import Pruned
from twinblock.nn import pooling as pooling
from twinblock.nn.pooling import SLICE, Noise, Pooling, average

WIDE = 2 * SLICE + 32  # an expansion in three parts


@pytest.fixture(autouse=True)
def small_maps_in_parts_too(monkeypatch):
    monkeypatch.setattr(pooling, "PART", 1)


def tensor(golden, name: str) -> torch.Tensor:
    return torch.tensor(golden[name])


@pytest.mark.parametrize("grid", [1, 2, 4])
@pytest.mark.parametrize(("pool", "name"), [("local", "local_avg"), ("l2", "local_l2")])
def test_pooling_golden(golden, pool, name, grid):
    x = tensor(golden, "pool/x").requires_grad_()
    out = Pooling(4, pool, grid)(x)
    (out * tensor(golden, f"pool/{name}_{grid}/upstream")).sum().backward()
    np.testing.assert_allclose(out.detach(), golden[f"pool/{name}_{grid}/out"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(x.grad, golden[f"pool/{name}_{grid}/g_x"], rtol=0, atol=1e-12)


def test_global_pooling_is_local_pooling_with_one_window(golden):
    x = tensor(golden, "pool/x")
    torch.testing.assert_close(Pooling(4)(x), Pooling(4, "local", 1)(x))


def test_an_empty_window_has_no_gradient_under_l2_pooling():
    x = torch.zeros(1, 1, 4, 4, requires_grad=True)
    Pooling(1, "l2", 2)(x).sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("over", ["all", "hw", "c"])
def test_noise_golden(golden, over, monkeypatch):
    """The published `c` takes its std over the rows by a slip: the same numbers with rows and channels swapped."""
    swap = (lambda t: t.transpose(1, 2)) if over == "c" else (lambda t: t)
    monkeypatch.setattr(Noise, "draws", lambda self, x, key, offset: swap(tensor(golden, "noise/eps")))
    x = tensor(golden, "noise/x").requires_grad_()
    out = swap(Noise(float(golden["noise/sigma"]), over)(swap(x), (0,)))
    (out * tensor(golden, "noise/upstream")).sum().backward()
    np.testing.assert_allclose(out.detach(), golden[f"noise/{over}/out"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(x.grad, golden[f"noise/{over}/g_x"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("over", ["all", "hw", "c"])
def test_noise_has_the_size_it_is_told_and_none_in_evaluation(over):
    assert world_size() == 1
    for shape in ((64, 16, 8, 8), (64, 65, 16)):  # maps, tokens
        x = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
        noise = Noise(0.25, over)
        added = noise(x, (0, 1)) - x
        assert float(added.std()) == pytest.approx(0.25 * 3, rel=0.05)
        assert torch.equal(noise(x, (0, 1)) - x, added)  # the key decides
        assert not torch.equal(noise(x, (0, 2)), noise(x, (0, 1)))
        torch.testing.assert_close(noise(x[10:], (0, 1), 10) - x[10:], added[10:], rtol=0.1, atol=0.1)
        assert torch.equal(noise.eval()(x, (0, 1)), x)


@pytest.mark.parametrize("offset", [0, 5, 16, 30])
def test_noise_of_a_sample_depends_on_its_position_in_the_global_batch_alone(offset):
    """However the batch is split; and no two samples share theirs."""
    for x in (torch.ones(40, 3, 4, 4), torch.ones(40, 3, 4, 4).to(memory_format=torch.channels_last)):
        whole = Noise(1.0).draws(x, (0, 1), 0)
        assert whole.shape == x.shape
        assert torch.equal(Noise(1.0).draws(x[: 40 - offset], (0, 1), offset), whole[offset:])
        assert len(whole.flatten(1).unique(dim=0)) == len(x)


def test_noise_of_a_constant_map_is_none_and_has_no_gradient():
    for value in (0.0, 0.1, 1e4):
        x = torch.full((3, 2, 4, 4), value, requires_grad=True)
        out = Noise(0.25)(x, (0,))
        out.sum().backward()
        torch.testing.assert_close(out.detach(), x.detach(), rtol=1e-3, atol=1e-6)
        assert x.grad.isfinite().all()


def test_noise_holds_no_more_than_its_map():
    """Neither its draws nor, in bfloat16, a float32 copy for the standard deviation."""
    x = torch.randn(32, 4, 8, 8).to(torch.bfloat16).requires_grad_()
    held = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: held.update({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()}) or t, lambda t: t
    ):
        Noise(0.25)(x, (0,))
    assert sum(held.values()) <= x.nbytes


def test_tokens_are_averaged_without_those_that_show_no_place():
    tokens = torch.arange(12.0).view(1, 4, 3)
    assert average(tokens, 1).tolist() == [[6, 7, 8]]
    assert torch.equal(Pooling(3, prefix=1)(tokens), average(tokens, 1))


def test_expansion_comes_before_pooling():
    pooling = Pooling(4, "gap", expand=32).eval()
    x = torch.randn(2, 4, 6, 6)
    assert pooling.width == 32
    torch.testing.assert_close(pooling(x), pooling.expansion(x).mean((2, 3)))
    assert [type(m).__name__ for m in pooling.expansion] == ["Conv2d", "BatchNorm2d", "ReLU"]


def in_one_piece(pooling: Pooling):
    """The same pooling, which makes all channels at once and keeps them."""
    pooling = copy.deepcopy(pooling)
    pooling.forward = lambda x: pooling.pooled(pooling.expansion(x))
    return pooling


def gradients_of(network: nn.Module, x: torch.Tensor, *inputs, through=None) -> list[torch.Tensor]:
    """Of a loss over two passes, as two views make them; the output, and all gradients."""
    x, run = x.clone().requires_grad_(), through or network
    outputs = torch.cat([run(x[::2], *inputs), run(x[1::2], *inputs)])
    outputs.square().sum().backward()
    found = [p.grad for p in network.parameters() if p.grad is not None]
    assert x.grad is not None
    return [outputs.detach(), x.grad, *found]


@pytest.mark.parametrize(("pool", "grid"), [("gap", 1), ("local", 2), ("l2", 2)])
@pytest.mark.parametrize("norm", ["batch", "sync", "layer", "group", "none"])
def test_an_expansion_in_parts_is_the_whole_one(norm, pool, grid):
    """In value, gradients and running statistics, which take a step a pass, not another in backward."""
    pooling = Pooling(8, pool, grid, WIDE, norm).double()
    whole, x = in_one_piece(pooling), torch.randn(8, 8, 6, 6, dtype=torch.double)
    torch.testing.assert_close(gradients_of(pooling, x), gradients_of(whole, x), rtol=1e-9, atol=1e-11)
    for mine, theirs in zip(pooling.buffers(), whole.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=0)
    torch.testing.assert_close(pooling.eval()(x), whole.eval()(x))


def test_an_expansion_is_made_again_in_the_precision_it_was_made_in():
    pooling, x = Pooling(8, expand=WIDE), torch.randn(8, 8, 6, 6)
    whole = in_one_piece(pooling)

    def mixed(network):
        def run(x):
            with torch.autocast("cpu", torch.bfloat16):
                return network(x).float()

        return run

    found = gradients_of(pooling, x, through=mixed(pooling))
    torch.testing.assert_close(found[2:], gradients_of(whole, x, through=mixed(whole))[2:], rtol=1e-6, atol=1e-6)


def test_the_expansion_of_a_pruned_network_is_made_again_with_its_own_norm():
    network = Network([nn.Conv2d(3, 8, 3), nn.ReLU()], Pooling(8, expand=WIDE), nn.Linear(WIDE, 4), Noise(0.0)).double()
    target = Pruned(network, 0.5)
    for norm in target.norms.values():
        norm.weight.data += torch.rand_like(norm.weight)
    pair = nn.ModuleList([network, target])
    whole = copy.deepcopy(pair)
    whole[0].pooling = in_one_piece(whole[0].pooling)
    x = torch.randn(8, 3, 8, 8, dtype=torch.double)

    def embedding(pair):
        return lambda x: pair[1](pair[0], [Stack(x, [(0,)])])[0][1]

    found, expected = (gradients_of(two, x, through=embedding(two)) for two in (pair, whole))
    assert len(found) == len(expected) > 6
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    for mine, theirs in zip(pair.buffers(), whole.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)


class Largest(TorchDispatchMode):
    """The most values of a tensor that an operation gives."""

    values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else [found]:
            self.values = max(self.values, tensor.numel() if isinstance(tensor, torch.Tensor) else 0)
        return found


def test_an_expansion_never_has_all_its_channels_at_once():
    x = torch.randn(4, 8, 12, 12)
    pooling, part = Pooling(8, expand=WIDE), 4 * SLICE * 12 * 12
    for network, most in ((pooling, part), (in_one_piece(pooling), part * WIDE // SLICE)):
        with Largest() as largest:
            network(x).sum().backward()
        assert largest.values == most


def test_small_maps_of_an_expansion_are_made_at_once(monkeypatch):
    monkeypatch.setattr(pooling, "PART", 4 * WIDE * 12 * 12)
    for side, most in ((12, WIDE), (24, SLICE)):
        with Largest() as largest:
            Pooling(8, expand=WIDE)(torch.randn(4, 8, side, side))
        assert largest.values == 4 * most * side**2


@pytest.mark.parametrize("side", [7, 8])
def test_windows_are_those_of_adaptive_pooling(side):
    x = torch.randn(2, 3, side, side, dtype=torch.float64)
    for grid in (2, 3):
        mean = torch.nn.functional.adaptive_avg_pool2d(x, grid)
        torch.testing.assert_close(Pooling(3, "local", grid)(x), mean.flatten(1))
    corner = x[:, :, :4, -4:].square().sum((2, 3)).sqrt()
    torch.testing.assert_close(Pooling(3, "l2", 2)(x).view(2, 3, 4)[:, :, 1], corner)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_part_of_the_batch_has_its_part_of_the_noise_and_no_more_memory(layout):
    x = torch.zeros(40, 3, 4, 4).contiguous(memory_format=layout)
    draws = Noise(0.25).draws(x, (0, 1), 0)
    for first, last in ((0, 40), (5, 9), (5, 17), (5, 21), (16, 32), (30, 40)):  # 17: one sample of a chunk
        part = Noise(0.25).draws(x[first:last].contiguous(memory_format=layout), (0, 1), first)
        assert torch.equal(part, draws[first:last])
        assert part.untyped_storage().nbytes() == part.nbytes


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_draws_fill_memory_in_its_order_sixteen_samples_a_generator(layout):
    x = torch.empty(20, 3, 4, 5).contiguous(memory_format=layout)
    last = layout == torch.channels_last
    shape = (16, 4, 5, 3) if last else (16, 3, 4, 5)
    chunks = [torch.empty(shape).normal_(generator=generator(7, 1, number)) for number in (0, 1)]
    expected = torch.cat(chunks)[:20]
    assert torch.equal(Noise(1.0).draws(x, (7, 1), 0), expected.permute(0, 3, 1, 2) if last else expected)


def test_the_deviation_of_tokens_is_over_places_or_over_channels():
    tokens = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Noise(1.0, "hw").std(tokens), tokens.std(1, keepdim=True))
    assert torch.equal(Noise(1.0, "c").std(tokens), tokens.std(2, keepdim=True))
    torch.testing.assert_close(Noise(1.0, "all").std(tokens), tokens.std())
