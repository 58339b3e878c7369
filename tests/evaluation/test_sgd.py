"""The published SGD probe, step by step beside a loop by hand, and how its images move."""

from dataclasses import replace

import numpy as np
import torch
from tiny import images
from torch import nn
from torch.nn.functional import cross_entropy

import twinblock.views
from twinblock.config.data import Data
from twinblock.core.seeding import generator
from twinblock.evaluation.sgd import FEW_SHOT, FULL_SHOT, augmented, sgd_probe
from twinblock.nn.encoders import MEAN, STD


def by_hand(x, y, test, classes, epochs, drops, lr, batch, seed):
    """SGD with momentum from zero weights: mu <- 0.9 mu + g, w <- w - rate mu."""
    w, b = torch.zeros(x.shape[1], classes), torch.zeros(classes)
    mu = [torch.zeros_like(w), torch.zeros_like(b)]
    for epoch in range(epochs):
        rate = lr
        for drop in drops:
            rate = rate / 10 if epoch >= drop else rate
        for rows in torch.randperm(len(x), generator=generator("probe", seed, epoch)).split(batch):
            error = (x[rows] @ w + b).softmax(1) - nn.functional.one_hot(y[rows], classes)
            gradients = x[rows].T @ error / len(rows), error.mean(0)
            for parameter, m, g in zip((w, b), mu, gradients, strict=True):
                m.mul_(0.9).add_(g)
                parameter.sub_(rate * m)
    return test @ w + b


def test_the_probe_is_plain_sgd_with_tenfold_drops():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(10, 4, generator=g), torch.arange(10) % 3
    settings = {"epochs": 4, "drops": (1, 3), "lr": 2.0, "batch": 4, "seed": 5}
    test = torch.randn(3, 4, generator=g)
    found = sgd_probe(lambda _: x, y, test, 3, **settings)
    torch.testing.assert_close(found, by_hand(x, y, test, 3, **settings), atol=1e-5, rtol=1e-4)
    assert not found.requires_grad


def test_the_published_settings_are_the_defaults():
    """Rate 30, batches of 128, 30 epochs with drops at 10 and 20."""
    g = torch.Generator().manual_seed(0)
    x, y = 0.01 * torch.randn(140, 3, generator=g), torch.arange(140) % 2
    found = sgd_probe(lambda _: x, y, x[:5], 2)
    torch.testing.assert_close(found, by_hand(x, y, x[:5], 2, 30, (10, 20), 30.0, 128, 0), atol=1e-4, rtol=1e-3)


class Pixels(nn.Module):
    def forward(self, x):
        return x.flatten(1)


def test_images_move_by_the_numbers_of_the_seed_and_black_comes_in():
    """Each is a window of the padded image: by hand for every image."""
    some, size, pad = images(12), 16, 2
    found = augmented(Pixels(), some, Data(size=size), 3, 7, True, torch.device("cpu")).view(12, 3, size, size)
    plain = twinblock.views.centre(some.batch(range(12)), size, MEAN, STD)
    g = generator("augment", 7, 3)
    top, left = (torch.randint(2 * pad + 1, (12, 1, 1), generator=g).flatten().tolist() for _ in range(2))
    turned = (torch.rand(12, generator=g) < 0.5).tolist()
    assert len({*turned}) == 2 and len({*top}) > 2
    for i in range(12):
        unit = plain[i] * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
        padded = torch.zeros(3, size + 2 * pad, size + 2 * pad)
        padded[:, pad:-pad, pad:-pad] = unit
        window = padded[:, top[i] : top[i] + size, left[i] : left[i] + size]
        window = window.flip(2) if turned[i] else window
        expected = (window - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        torch.testing.assert_close(found[i], expected, atol=1e-5, rtol=0)
    still = augmented(Pixels(), some, Data(size=size), 3, 7, False, torch.device("cpu")).view(12, 3, size, size)
    assert torch.equal(still[0], found[0].flip(2) if turned[0] else found[0])


def test_the_encoder_is_evaluated_without_a_graph():
    class Half(nn.Dropout):
        def forward(self, x):
            assert not self.training
            return (x.flatten(1) * torch.ones(1, requires_grad=True)).double()

    found = augmented(Half(), images(4), Data(size=16), 0, 0, False, torch.device("cpu"))
    assert (found.dtype, found.requires_grad, found.device.type) == (torch.float32, False, "cpu")


def test_cross_entropy_is_what_it_minimises():
    x, y = torch.eye(3), torch.arange(3)
    early, late = (sgd_probe(lambda _: x, y, x, 3, epochs=n, drops=(), lr=0.1) for n in (1, 20))
    assert cross_entropy(late, y) < cross_entropy(early, y)


def test_the_published_lengths():
    """Jiang et al. 2021: 30 epochs with all images, 100 with few; the rate drops tenfold at a third, and two thirds."""
    assert (FULL_SHOT, FEW_SHOT) == ((30, (10, 20)), (100, (40, 60)))


def test_squashed_images_are_seen_in_their_own_aspect():
    some = images(4)
    wide = replace(some, aspect=np.full(4, 2.0, np.float32))
    found, expected = (
        [augmented(Pixels(), x, Data(size=16), 0, 0, False, torch.device("cpu")) for x in (some, wide)],
        [twinblock.views.centre(x.batch(range(4)), 16, MEAN, STD, x.aspects(range(4))) for x in (some, wide)],
    )
    assert not torch.equal(*expected) and not torch.equal(*found)
