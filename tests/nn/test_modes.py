"""Statistics of batch norms for a while."""

import pytest
import torch
from torch import nn

from twinblock.core.distributed import SyncBatchNorm
from twinblock.nn.modes import calibrated
from twinblock.nn.pooling import Expansion


def network(norm=nn.BatchNorm2d):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm(4), nn.ReLU(), nn.Conv2d(4, 4, 3), norm(4)).eval()


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, SyncBatchNorm])
def test_the_statistics_are_those_that_training_with_a_momentum_of_a_mean_gives(norm):
    net, twin = network(norm), network(norm)
    batches = 3 + 2 * torch.randn(4, 6, 3, 8, 8)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    for module in twin:
        if isinstance(module, norm):
            module.momentum = None  # the mean of all batches
    twin.train()
    for x in batches:
        twin(x)
    with calibrated(net, lambda: [net(x) for x in batches]):
        for name, t in twin.state_dict().items():
            if "num_batches" not in name:
                torch.testing.assert_close(net.state_dict()[name], t)
        torch.testing.assert_close(net(batches[0]), twin.eval()(batches[0]))
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


def test_an_error_leaves_the_statistics_and_no_hooks():
    net = network()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    with pytest.raises(RuntimeError), calibrated(net, lambda: [net(torch.ones(2, 3, 8, 8)), net(torch.ones(1))]):
        pass
    net(torch.randn(2, 3, 8, 8))
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


@pytest.mark.parametrize("norm", ["batch", "sync"])
def test_the_norm_of_an_expansion_is_calibrated_in_all_its_channels(norm, monkeypatch):
    """An expansion makes 64 of its 160 channels at a time, the last 32 by themselves."""
    monkeypatch.setattr("twinblock.nn.pooling.PART", 1)
    torch.manual_seed(0)
    expansion = Expansion(3, 160, norm).double().eval()
    batches = 3 + 2 * torch.randn(4, 6, 3, 8, 8, dtype=torch.float64)
    conv, batch_norm = expansion.get_submodule("0"), expansion.get_submodule("1")
    maps = [conv(x).detach().transpose(0, 1).flatten(1) for x in batches]
    mean, variance = batch_norm.get_buffer("running_mean"), batch_norm.get_buffer("running_var")
    before = variance.clone()
    with calibrated(expansion, lambda: [expansion.pooled(x, lambda y: y.mean((2, 3))) for x in batches]):
        torch.testing.assert_close(mean, torch.stack([y.mean(1) for y in maps]).mean(0))
        torch.testing.assert_close(variance, torch.stack([y.var(1) for y in maps]).mean(0))
    assert torch.equal(variance, before)
