"""The memory that tensors take, counted by hand."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from twinblock.core.memory import Alive

KIB = 256  # floats


def test_what_lives_at_a_time_is_counted_once():
    with Alive() as alive:
        a = torch.zeros(3 * KIB)
        b = a + 1
        assert alive.now == 6 * 1024
        view = b[:10]
        a.add_(1)
        assert alive.now == 6 * 1024  # neither is new
        del b
        assert alive.now == 6 * 1024  # the view holds it
        del view
        assert alive.now == 3 * 1024
    assert alive.peak == 6 * 1024


def test_what_was_there_before_is_not_counted():
    weight = torch.zeros(KIB)
    with Alive() as alive:
        weight.mul_(2)
        part = weight.view(16, 16)
        part.t()
    assert alive.peak == 0


def test_what_backward_makes_again_is_counted():
    layers = nn.Sequential(*[nn.Sequential(*[nn.Sigmoid() for _ in range(4)]) for _ in range(4)])
    x = torch.randn(64, KIB, requires_grad=True)

    def peak(again: bool) -> int:
        with Alive() as alive:
            y = x
            for layer in layers:
                y = checkpoint(layer, y, use_reentrant=False) if again else layer(y)
            y.sum().backward()
        x.grad = None
        return alive.peak

    # without: what each of 16 gives; again: what each of 4 is given and, of one, what 4 give
    assert peak(again=False) - peak(again=True) >= 16 * 64 * 1024 / 4
