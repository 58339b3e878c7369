"""Taps: pooling and noise against golden vectors; where noise is not; what tokens give."""

import numpy as np
import pytest
import torch

from twinblock.distributed import world_size
from twinblock.taps import Noise, Tap, average


def tensor(golden, name: str) -> torch.Tensor:
    return torch.tensor(golden[name])


@pytest.mark.parametrize("grid", [1, 2, 4])
@pytest.mark.parametrize(("pool", "name"), [("local", "local_avg"), ("l2", "local_l2")])
def test_pooling_golden(golden, pool, name, grid):
    x = tensor(golden, "pool/x").requires_grad_()
    out = Tap(4, pool, grid)(x)
    (out * tensor(golden, f"pool/{name}_{grid}/upstream")).sum().backward()
    np.testing.assert_allclose(out.detach(), golden[f"pool/{name}_{grid}/out"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(x.grad, golden[f"pool/{name}_{grid}/g_x"], rtol=0, atol=1e-12)


def test_global_pooling_is_local_pooling_with_one_window(golden):
    x = tensor(golden, "pool/x")
    torch.testing.assert_close(Tap(4)(x), Tap(4, "local", 1)(x))


def test_an_empty_window_has_no_gradient_under_l2_pooling():
    x = torch.zeros(1, 1, 4, 4, requires_grad=True)
    Tap(1, "l2", 2)(x).sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("over", ["all", "hw", "c"])
def test_noise_golden(golden, over, monkeypatch):
    """The published `c` takes its std over the rows by a slip: the same numbers with rows and channels swapped."""
    swap = (lambda t: t.transpose(1, 2)) if over == "c" else (lambda t: t)
    draws = iter(swap(tensor(golden, "noise/eps")))
    monkeypatch.setattr(torch.Tensor, "normal_", lambda self, generator: self.copy_(next(draws)))
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


def test_tokens_are_averaged_without_those_that_show_no_place():
    tokens = torch.arange(12.0).view(1, 4, 3)
    assert average(tokens, 1).tolist() == [[6, 7, 8]]
    assert torch.equal(Tap(3, prefix=1)(tokens), average(tokens, 1))


def test_expansion_comes_before_pooling():
    tap = Tap(4, "gap", expand=32).eval()
    x = torch.randn(2, 4, 6, 6)
    assert tap.width == 32
    torch.testing.assert_close(tap(x), tap.expansion(x).mean((2, 3)))
    assert [type(m).__name__ for m in tap.expansion] == ["Conv2d", "BatchNorm2d", "ReLU"]
