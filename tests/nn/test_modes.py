"""Statistics of batch norms for a while."""

import pytest
import torch
from torch import nn

from twinblock.core.distributed import SyncBatchNorm
from twinblock.nn.modes import calibrated


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
