"""Values and gradients of formulas, and how they are compared with those of published code."""

import numpy as np
import torch


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def value_and_gradients(objective, *inputs):
    leaves = [torch.as_tensor(x).clone().requires_grad_() for x in inputs]
    loss = objective(*leaves)
    loss.backward()
    return [loss.detach(), *(x.grad for x in leaves)]


def assert_golden(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9 * np.abs(np.asarray(b)).max())
