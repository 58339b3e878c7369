"""Local losses: prediction and similarity matching equal their equations; what a block's losses reach; whole runs."""

import math

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from formulas import draw
from torch import nn

import twinblock
from twinblock.config.recipes import compose
from twinblock.core.errors import InputError
from twinblock.methods.learner import Batch, Signal
from twinblock.methods.learners.local_losses import (
    LocalLosses,
    similarities,
    similarity_loss,
    spread_of,
    windows_of,
)

LABELS = torch.tensor([0, 2, 1, 1, -1, 0])


def learner(similarity: float = 0.99, inputs: int = 32, side: int = 8, projections: int | None = None):
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
    made = LocalLosses(block, (8, side, side), 3, None, similarity, inputs, projections).double()
    with torch.no_grad():  # at first it is zero, and so is what it teaches
        made.classifier.weight.normal_(std=0.3)
    return made


def signal(n: int = 6, side: int = 8) -> Signal:
    return Signal.from_views([draw(n, 3, side, side, seed=5)])


def by_hand(made: LocalLosses, x, labels, beta):
    """Both losses from their equations, entry by entry."""
    kept = [i for i in range(len(labels)) if labels[i] >= 0]
    h = made.blocks(x)
    n, c, side, _ = h.shape
    parts = side // 2  # 8 channels of 8 x 8 in 32 numbers: 2 x 2 windows
    pooled = torch.stack(
        [h[:, :, i : i + parts, j : j + parts].sum((2, 3)) / parts**2 for i in (0, parts) for j in (0, parts)], 2
    ).reshape(n, -1)
    scores = pooled @ made.classifier.weight.T + made.classifier.bias
    prediction = -sum(scores[i, labels[i]] - torch.log(scores[i].exp().sum()) for i in kept) / len(kept)
    g = F.conv2d(h, made.expansion.weight, padding=1).reshape(n, c, -1)
    s = ((g - g.mean(2, keepdim=True)) ** 2).sum(2).div(side * side - 1).sqrt()
    total = 0
    for i in kept:
        for j in kept:
            total = total + (cosine(s[i], s[j]) - cosine(one_hot(labels[i]), one_hot(labels[j]))) ** 2
    return (1 - beta) * prediction + beta * total / len(kept) ** 2


def one_hot(label):
    return torch.eye(3, dtype=torch.float64)[label]


def cosine(a, b):
    a, b = a - a.mean(), b - b.mean()
    return (a / (a.norm() + 1e-8) * (b / (b.norm() + 1e-8))).sum()


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_value_and_gradients_equal_the_equations(beta):
    found = []
    for compute in (
        lambda made, x: made(Signal.from_views([x]), Batch(LABELS, (0, 0)))[0],
        lambda made, x: by_hand(made, x, LABELS, beta),
    ):
        made, x = learner(beta), draw(6, 3, 8, 8, seed=5)
        loss = compute(made, x)
        loss.backward()
        found.append([loss.detach(), *(torch.zeros(1) if p.grad is None else p.grad for p in made.parameters())])
    assert sum(bool(g.any()) for g in found[0]) == {0.0: 5, 0.5: 6, 1.0: 4}[beta]
    for mine, expected in zip(*found, strict=True):
        if expected.any():
            torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_projected_labels_equal_the_equations(beta):
    """Binary cross entropy of the signs of Y P, and similarity of the windows with Y P, whose gradients are written
    out: at the windows the classifier's error comes through the fixed weights.
    """
    made, x = learner(beta, projections=5), draw(6, 3, 8, 8, seed=5)
    loss = made(Signal.from_views([x]), Batch(LABELS, (0, 0)))[0]
    loss.backward()
    kept = [i for i in range(6) if LABELS[i] >= 0]
    h = made.blocks(x)
    windows = F.avg_pool2d(h, 4)
    scores = windows.flatten(1) @ made.classifier.weight.T + made.classifier.bias
    taught = torch.stack([made.projection[LABELS[i]] for i in kept])
    p, signs = torch.sigmoid(scores[kept]), (taught > 0).double()
    prediction = -(signs * p.log() + (1 - signs) * (1 - p).log()).sum() / (5 * len(kept))
    s = windows.flatten(2).sub(windows.flatten(2).mean(2, keepdim=True)).square().sum(2).div(3).sqrt()[kept]
    pairs = [(i, j) for i in range(len(kept)) for j in range(len(kept))]
    alike = sum((cosine(s[i], s[j]) - cosine(taught[i], taught[j])) ** 2 for i, j in pairs) / len(pairs)
    torch.testing.assert_close(loss, (1 - beta) * prediction + beta * alike, rtol=1e-9, atol=1e-13)
    error = torch.zeros(6, 5, dtype=torch.float64)  # of the scores
    error[kept] = (1 - beta) * (p - signs).detach() / (5 * len(kept))
    flat = windows.detach().flatten(1)
    torch.testing.assert_close(made.classifier.weight.grad, error.T @ flat, rtol=1e-9, atol=1e-13)
    returned = (error @ made.feedback).view(6, 8, 2, 2)
    reached = torch.autograd.grad((windows * returned).sum() + beta * alike, made.blocks[0].weight, retain_graph=True)[
        0
    ]
    torch.testing.assert_close(made.blocks[0].weight.grad, reached, rtol=1e-9, atol=1e-13)
    assert {*made.state_dict()} - {*learner().state_dict()} == {"projection", "feedback"}
    assert made.expansion is None and not made.feedback.requires_grad


def test_projections_are_drawn_as_published_and_without_labels_nothing_is_learned():
    """A linear layer of torch without a bias draws within 1 / sqrt(its inputs)."""
    made = learner(projections=4000)
    for drawn, inputs in ((made.projection, 3), (made.feedback, 32)):
        assert 0.99 / math.sqrt(inputs) < drawn.abs().max() <= 1 / math.sqrt(inputs)
        assert float(drawn.std()) == pytest.approx(1 / math.sqrt(3 * inputs), rel=0.02)
    assert made.feedback.shape == made.classifier.weight.shape
    loss = made(signal(), Batch(torch.full((6,), -1), (0, 0)))[0]
    loss.backward()
    assert loss == 0 and all(p.grad is None or not p.grad.any() for p in made.parameters())


def test_similarities_by_hand():
    """Rows (1, 0, 0) less their mean are (2, -1, -1) / 3: two classes have a cosine of -1/2, one has 1."""
    labels = torch.tensor([0, 0, 1])
    expected = torch.tensor([[1, 1, -0.5], [1, 1, -0.5], [-0.5, -0.5, 1]], dtype=torch.float64)
    torch.testing.assert_close(similarities(F.one_hot(labels, 3).double()), expected, rtol=0, atol=1e-7)
    same = torch.tensor([[2.0, 1.0], [4.0, 3.0], [0.0, 5.0]], dtype=torch.float64)  # cosines 1, -1 and -1
    assert similarity_loss(same, F.one_hot(labels, 3).double()).item() == pytest.approx(4 * 0.5**2 / 9, abs=1e-6)


def test_similarities_know_no_length_and_no_common_shift():
    x, scale, shift = draw(5, 7, seed=1), 10 ** draw(5, 1, seed=2), draw(5, 1, seed=3)
    torch.testing.assert_close(similarities(x * scale + shift), similarities(x), rtol=1e-6, atol=1e-6)


def test_what_is_constant_has_finite_gradients():
    maps = torch.ones(4, 5, 3, 3, dtype=torch.float64, requires_grad=True)
    loss = similarity_loss(spread_of(maps), F.one_hot(torch.arange(4) % 2, 2).double())
    loss.backward()
    assert loss.isfinite() and maps.grad.isfinite().all()


def test_maps_of_one_place_or_few_channels_are_taken_as_they_are():
    few, point = draw(2, 3, 4, 4), draw(2, 8, 1, 1)
    assert torch.equal(spread_of(few), few.flatten(1)) and torch.equal(spread_of(point), point.flatten(1))
    assert spread_of(draw(2, 8, 4, 4)).shape == (2, 8)


@pytest.mark.parametrize(
    ("shape", "windows"),  # of the published VGG-8b at 32 px, and 2048 numbers
    [
        ((128, 32, 32), (4, 4)),
        ((256, 16, 16), (2, 4)),
        ((512, 8, 8), (2, 2)),
        ((512, 4, 4), (2, 2)),
        ((1024, 1, 1), (1, 1)),
    ],
)
def test_a_classifier_sees_as_many_windows_as_published(shape, windows):
    assert windows_of(shape, 2048) == windows


def test_without_any_label_there_is_nothing_to_learn():
    made = learner(0.5)
    loss = made(signal(), Batch(torch.full((6,), -1), (0, 0)))[0]
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or not p.grad.any() for p in made.parameters())


def test_the_classifier_begins_at_zero():
    fresh = LocalLosses(nn.Conv2d(3, 8, 3, padding=1), (8, 4, 4), 5)
    assert not fresh.classifier.weight.any()
    loss = LocalLosses(nn.Conv2d(3, 8, 3, padding=1), (8, 8, 8), 3, similarity=0.0)
    nn.init.zeros_(loss.classifier.bias)
    value = loss(Signal.from_views([torch.randn(6, 3, 8, 8)]), Batch(LABELS, (0, 0)))[0]
    assert value.item() == pytest.approx(math.log(3))


def test_no_loss_reaches_another_block():
    _, encoder, learners = tiny.learners("local_losses", of_scope={"cuts": "blocks"}, norm="batch")
    assert len(learners) == 7
    flow, batch = Signal.from_views([draw(6, 3, 16, 16)]), Batch(LABELS, (0, 0))
    for made in learners:
        with torch.no_grad():
            made.classifier.weight.normal_()
    for number, made in enumerate(learners, start=1):
        loss, flow = made(flow, batch)
        loss.backward()
        assert not flow.online[0].requires_grad
        touched = {name.split(".")[0] for name, p in encoder.named_parameters() if p.grad is not None and p.grad.any()}
        assert touched == {f"block{number}"}
        encoder.zero_grad()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["encoder.kind=test_vit", "encoder.width=null", "scope.cuts=stages"], "these blocks give tokens; take vgg8b"),
        (["scope.kind=overlapping"], "trains with end_to_end or blockwise"),
        (["learner.similarity=1.5"], "similarity"),
    ],
)
def test_what_does_not_fit_is_one_line(overrides, words, tmp_path):
    pixels, labels = np.zeros((32, 16, 16, 3), np.uint8), np.arange(32) % 2
    with pytest.raises(InputError, match=words) as caught:
        twinblock.pretrain(
            "local_losses", data=(pixels, labels), out=tmp_path, overrides=["data.batch=16", *overrides], quiet=True
        )
    assert "\n" not in str(caught.value)


def test_data_without_labels_is_refused(tmp_path):
    pixels = np.zeros((32, 16, 16, 3), np.uint8)
    with pytest.raises(InputError, match="labels"):
        twinblock.pretrain("local_losses", data=pixels, out=tmp_path, overrides=["data.batch=16"], quiet=True)


def test_a_run_learns_classes_in_every_block_and_is_measured_by_depth(tmp_path):
    rng = np.random.Generator(np.random.PCG64(0))
    labels = np.arange(96) % 2
    pixels = rng.integers(90, 160, (96, 16, 16, 3), dtype=np.uint8)
    stripes = (np.arange(16) % 4 < 2)[:, None, None] * 40
    pixels[labels == 1] += stripes.astype(np.uint8)
    pixels[labels == 0] += stripes.swapaxes(0, 1).astype(np.uint8)
    small = ["data.batch=32", "encoder.width=8", "learner.inputs=64", "train.length=40steps", "optim.lr=0.02"]
    small += ["train.checkpoint_every=100%", "views=[{crop: null, flip: 0}]"]
    run = twinblock.pretrain("local_losses", data=(pixels, labels), out=tmp_path / "run", overrides=small, quiet=True)
    losses = np.array([row["loss"] for row in run.metrics() if "loss" in row])
    assert losses.shape == (40, 7)
    assert (losses[-5:].mean(0) < 0.5 * losses[0]).all()
    assert len(twinblock.diagnose(run.path, (pixels, labels)).verdicts) == 7
    rows = twinblock.evaluate(run.path, data=(pixels, labels), blocks=True, quiet=True)
    assert {row["features"] for row in rows} >= {"block 1", "block 7"}


def test_the_published_settings():
    run = compose("local_losses_cifar10")
    assert (run.learner.similarity, run.learner.inputs, run.encoder.kind, run.data.batch) == (0.99, 2048, "vgg8b", 128)
    optim = run.optim
    assert (optim.kind, optim.lr * 128 / 256, optim.weight_decay, optim.factor) == ("adamw", 5e-4, 0.0, 0.25)
    assert [str(m) for m in optim.milestones] == ["200epochs", "300epochs", "350epochs", "375epochs"]
    assert str(run.train.length) == "400epochs"
