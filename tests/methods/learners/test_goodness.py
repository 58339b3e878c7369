"""Forward-Forward and SCFF: losses by hand and by plain equations, what is drawn, what is refused."""

import math

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F

import twinblock
from twinblock.config.recipes import compose
from twinblock.core.errors import InputError
from twinblock.diagnosis.chance import chance_loss, loss_at_chance
from twinblock.methods.goodness import overlaid
from twinblock.methods.learner import Batch, Signal
from twinblock.methods.learners.forward_forward import goodness_of_labels, predicted

LABELS = torch.arange(6) % 3
KEY = Batch(LABELS, (0, 3), 0)


def made(method: str, scope: str = "simultaneous", **fields):
    _, encoder, learners = tiny.learners(method, scope, **fields)
    return encoder, learners


def images(n: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normalised(x: torch.Tensor, centred: bool) -> torch.Tensor:
    """Sample by sample, in plain words."""
    rows = [row - row.mean() if centred else row for row in x]
    return torch.stack([row / row.square().mean().sqrt() for row in rows])


def test_a_label_lies_in_the_first_pixels():
    image = torch.tensor([[[[0.25, 0.5], [0.75, -1.0]], [[3.0, 0.125], [0.0, 0.5]]]])
    shown = overlaid(image, torch.tensor([1]), 3)
    assert shown.tolist() == [[[[-1.0, 3.0], [-1.0, -1.0]], [[-1.0, 3.0], [-1.0, 0.5]]]]
    assert image[0, 0, 0, 0] == 0.25  # the image itself is left alone


def test_the_loss_of_a_constant_layer_by_hand():
    """All units give 3 whatever they see: a goodness of 9 for every label."""
    _, (first, _) = made("forward_forward", learner={"threshold": 4.0})
    torch.nn.init.zeros_(first.blocks[0][0][1].weight)
    torch.nn.init.constant_(first.blocks[0][0][1].bias, 3.0)
    loss, _ = first(Signal.from_views([images()]), KEY)
    expected = (math.log(1 + math.exp(4 - 9)) + math.log(1 + math.exp(9 - 4))) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_peers_are_made_alike_by_the_formula_and_remembered():
    """Moving averages by hand over two steps, and the gradient of the term by autograd from its equation alone."""
    fields = {"threshold": 4.0, "peer": 0.3}
    (_, (first, _)), (_, (plain, _)) = (made("forward_forward", learner=fields | {"peer": p}) for p in (0.3, 0.0))
    flow = Signal.from_views([images()])
    batch = Batch(torch.tensor([0, 1, -1, 2, 0, 1]), (0, 3), 0)
    kept, r = [0, 1, 3, 4, 5], torch.full_like(first.activity, 0.5)
    for _ in range(2):
        own, _ = first.inputs(flow, batch)
        y = first.activities(first._norm(own))[0].flatten(2).mean(2)
        assert y.shape == (6, len(r))
        r = 0.9 * r + 0.1 * sum(y[i] for i in kept) / len(kept)
        term = 0.3 * sum((sum(r) / len(r) - one) ** 2 for one in r) / len(r)
        (loss, _), (without, _) = first(flow, batch), plain(flow, batch)
        torch.testing.assert_close(loss - without, term, rtol=1e-9, atol=1e-13)
        weight, other = first.blocks[0][0][1].weight, plain.blocks[0][0][1].weight
        gradient = torch.autograd.grad(loss, weight)[0] - torch.autograd.grad(without, other)[0]
        torch.testing.assert_close(gradient, torch.autograd.grad(term, weight)[0], rtol=1e-7, atol=1e-13)
        r = r.detach()
        torch.testing.assert_close(first.activity, r)
    assert {*first.state_dict()} - {*plain.state_dict()} == {"activity"}


def plain_forward_forward(encoder, x, labels, wrong, threshold):
    """The losses of all layers by loops over images and units."""
    state, losses = encoder.state_dict(keep_vars=True), []
    inputs = [[], []]
    for which, shown in enumerate((labels, wrong)):
        for image, label in zip(x, shown.tolist(), strict=True):
            image = image.clone()
            low, high = image.min(), image.max()
            for place in range(3):
                image[:, place // 16, place % 16] = high if place == label else low
            inputs[which].append(image.flatten())
    for layer in ("layer1", "layer2"):
        weight, bias = state[f"{layer}.1.weight"].flatten(1), state[f"{layer}.1.bias"]
        terms = []
        for which in (0, 1):
            following = []
            for v in inputs[which]:
                y = (weight @ (v / v.square().mean().sqrt()) + bias).clamp(min=0)
                goodness = sum(unit**2 for unit in y) / len(y)
                terms.append(torch.log(1 + torch.exp((threshold - goodness) * (1 if which == 0 else -1))))
                following.append(y.detach())
            inputs[which] = following
        losses.append(sum(terms) / len(terms))
    return losses


def test_forward_forward_as_its_equations_give_it():
    encoder, learners = made("forward_forward", learner={"threshold": 0.3})
    x = images()
    _, wrong = learners[0].inputs(Signal.from_views([x]), KEY)
    shown = wrong[:, 0, 0, :3].argmax(1)
    theirs = plain_forward_forward(encoder, x, LABELS, shown, 0.3)
    signal, parameters = Signal.from_views([x]), list(encoder.parameters())
    for learner, other in zip(learners, theirs, strict=True):
        loss, signal = learner(signal, KEY)
        assert loss.item() == pytest.approx(other.item(), rel=1e-10)
        mine = torch.autograd.grad(loss, parameters, allow_unused=True)
        plain = torch.autograd.grad(other, parameters, allow_unused=True)
        assert [g is None for g in mine] == [g is None for g in plain]  # no loss reaches another layer
        for a, b in zip(mine, plain, strict=True):
            assert a is None or torch.allclose(a, b, rtol=1e-9, atol=1e-12)
        assert not signal.online[0].requires_grad and not signal.online[1].requires_grad


def test_wrong_labels_are_never_the_own_one_and_follow_from_seed_step_and_place():
    _, (first, _) = made("forward_forward")
    x, labels = images(1).expand(300, -1, -1, -1), torch.arange(300) % 3

    def drawn(key, offset=0, count=300):
        part = slice(offset, offset + count)
        batch = Batch(labels[part], key, offset)
        return first.inputs(Signal.from_views([x[part]]), batch)[1][:, 0, 0, :3].argmax(1)

    wrong = drawn((0, 1))
    assert not (wrong == labels).any()
    assert torch.equal(drawn((0, 1), 100, 50), wrong[100:150])  # as a process that holds a part
    assert not torch.equal(drawn((0, 2)), wrong) and not torch.equal(drawn((1, 1)), wrong)
    counts = torch.stack([((wrong - labels) % 3 == k).sum() for k in (1, 2)])
    assert (counts - 150).abs().max() < 6 * (300 * 0.25) ** 0.5


def test_an_image_without_a_label_is_left_out():
    _, (first, _) = made("forward_forward")
    x, batch = images(), Batch(torch.tensor([0, 1, 2, 0, -1, -1]), (0, 3))
    part = Batch(batch.labels[:4], (0, 3))
    whole, alone = first(Signal.from_views([x]), batch)[0], first(Signal.from_views([x[:4]]), part)[0]
    assert whole.item() == pytest.approx(alone.item(), rel=1e-12)
    nothing = first(Signal.from_views([x]), Batch(torch.full((6,), -1), (0, 3)))[0]
    assert nothing.item() == 0


def test_the_next_block_cannot_tell_the_goodness():
    """Activities ten times as large, of a hundred times the goodness, are the same to it."""
    for method in ("forward_forward", "scff"):
        _, (first, second) = made(method)
        x = torch.rand(6, *made(method)[0].shapes[0], dtype=torch.float64)
        both = [second(Signal({0: s * x, 1: s * x.flip(0)}, {}), KEY)[0].item() for s in (1, 10)]
        assert both[0] == pytest.approx(both[1], rel=1e-6)
        inputs = [images() * s for s in (1, 10)]
        outs = [first.activities(x)[0].square().mean().item() for x in inputs]
        assert outs[1] > 10 * outs[0]  # without the norm it would be seen


def test_scff_as_its_equations_give_it():
    """The layer on both images of a pair, with its bias in each, and the sum of the two; channels by loops."""
    encoder, learners = made("scff")
    x = images()
    signal = Signal.from_views([x])
    for learner, (name, side, same, penalty) in zip(
        learners, (("layer1", 5, 1.0, 1e-3), ("layer2", 3, 2.0, 1e-3)), strict=True
    ):
        weight, bias = (encoder.get_parameter(f"{name}.1.{part}") for part in ("weight", "bias"))
        given = normalised(signal.online[0], centred=True)
        others = learner.others(given, KEY)
        shift = next(s for s in range(1, 6) if torch.equal(others, given.roll(-s, 0)))
        assert 0 < shift < 6

        def layer(v, weight=weight, bias=bias, side=side):
            return F.conv2d(F.pad(v, [side // 2] * 4, "reflect"), weight, bias)

        goods = sum((layer(given) + layer(given))[:, c].clamp(min=0) ** 2 for c in range(len(bias))) / len(bias)
        bads = sum((layer(given) + layer(others))[:, c].clamp(min=0) ** 2 for c in range(len(bias))) / len(bias)
        theirs = torch.log(1 + torch.exp(same - goods)).mean() + torch.log(1 + torch.exp(bads - 2.0)).mean()
        theirs = theirs + penalty * goods.square().sum((1, 2)).sqrt().mean()
        loss, signal = learner(signal, KEY)
        assert loss.item() == pytest.approx(theirs.item(), rel=1e-9)
        for p in (weight, bias):
            mine, plain = (
                torch.autograd.grad(loss, p, retain_graph=True),
                torch.autograd.grad(theirs, p, retain_graph=True),
            )
            assert torch.allclose(mine[0], plain[0], rtol=1e-8, atol=1e-12)
        y = layer(given)
        y = F.max_pool2d(F.relu(y - y.mean(1, keepdim=True)), 4, 2, 1) if name == "layer1" else F.relu(y)
        assert torch.allclose(signal.online[0], y) and not signal.online[0].requires_grad


def test_what_is_passed_on_and_kept_is_what_the_encoder_gives():
    for method in ("forward_forward", "scff"):
        encoder, learners = made(method)
        x = given = images()
        signal = Signal.from_views([x])
        for k, (learner, expected) in enumerate(zip(learners, encoder.maps(x), strict=True)):
            outputs, given = learner.outputs(given)
            assert torch.allclose(outputs["encoder"].double(), expected.mean((2, 3)), atol=1e-6)
            assert torch.allclose(given, expected) and outputs["goodness"].shape == (6,)
            after, passed = learner(signal, KEY)[1], learner.pass_on(signal, KEY)
            assert all(torch.equal(after.online[i], passed.online[i]) for i in after.online)
            if method == "scff":
                assert torch.allclose(passed.online[0], encoder.maps(x)[k])
            signal = after


def test_chance_is_the_loss_of_equal_goodness():
    config = compose("forward_forward")
    assert chance_loss(config) == pytest.approx(math.log(2))
    g = torch.linspace(0, 5, 101)
    least = ((F.softplus(2 - g) + F.softplus(g - 2)) / 2).min().item()
    assert least == pytest.approx(math.log(2))
    assert "no better than chance" in loss_at_chance([0.72, 0.70, 0.71, 0.70], config)
    assert loss_at_chance([0.7, 0.5, 0.4, 0.4], config) == ""


def test_it_learns_to_tell_the_own_label(tmp_path):
    """Images whose class is their brighter half: the goodness of all layers names it, on images never seen."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 320)
    pixels = rng.integers(0, 80, (320, 8, 8, 3)).astype(np.uint8)
    pixels[labels == 0, 1:, :4] += 90
    pixels[labels == 1, 1:, 4:] += 90
    overrides = ["encoder.width=[32,32]", "train.length=15epochs", "train.checkpoint_every=100%", "optim.lr=0.01"]
    run = twinblock.pretrain(
        "forward_forward", data=(pixels[:256], labels[:256]), out=tmp_path / "run", overrides=overrides, quiet=True
    )
    learners = twinblock.Run.open(run.path).learners()
    x = (torch.from_numpy(pixels[256:]).permute(0, 3, 1, 2) / 255 - 0.45) / 0.22
    scores = goodness_of_labels(learners, x)
    assert scores.shape == (64, 2) and torch.equal(predicted(learners, x), scores.argmax(1))
    assert (predicted(learners, x).numpy() == labels[256:]).mean() > 0.95


@pytest.mark.parametrize(
    ("method", "fields", "message"),
    [
        (
            "forward_forward",
            {"encoder": {"norm": "batch"}},
            "a block has to begin with a norm of each sample; take encoder.kind=mlp",
        ),
        (
            "scff",
            {"encoder": {"norm": "none"}},
            "a block has to begin with a norm of each sample; take encoder.kind=mlp",
        ),
        ("scff", {"encoder": {"kind": "resnet10", "width": None}}, "a block has to begin with a norm of each sample"),
        ("scff", {"encoder": {"width": 8}}, "needs the width of each layer"),
        ("scff", {"encoder": {"width": [8, 8, 8, 8]}}, "4 layers halve 16 px too often"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(method, fields, message, tmp_path):
    with pytest.raises(InputError, match=message) as error:
        tiny.trainer(tiny.config(method, "simultaneous", **fields), tmp_path / "run")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("method", "override", "message"),
    [
        ("forward_forward", "scope=end_to_end", "learner.kind=forward_forward trains with blockwise"),
        ("scff", "scope=overlapping", "learner.kind=scff trains with blockwise"),
        ("scff", "learner.same=[]", "learner.same"),
        ("forward_forward", "learner.threshold=-1", "learner.threshold"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(method, override, message):
    with pytest.raises(InputError, match=message) as error:
        compose(method, overrides=[override])
    assert "\n" not in str(error.value)


def test_data_without_labels_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"labels of 2 to 256 classes.*the data has none"):
        twinblock.pretrain("forward_forward", data=tiny.images(64).pixels, out=tmp_path / "run", quiet=True)


def test_the_published_rates_of_scff():
    """For batches of 100: 0.01, 0.002 and 0.0002; x 0.7 every 1000 batches, x 0.8 every 100, and constant."""
    run = compose("scff_cifar10")
    optims = [run.of_block(k).optim for k in (1, 2, 3)]
    assert [round(optim.lr * run.data.batch / 256, 9) for optim in optims] == [0.01, 0.002, 0.0002]
    assert [optim.weight_decay for optim in optims] == [1e-4, 1e-4, 3e-4]
    ends = [int(str(budget).removesuffix("steps")) for budget in run.scope.budgets]
    for optim, factor, every, end in zip(optims[:2], (0.7, 0.8), (1000, 100), ends, strict=False):
        assert optim.factor == factor and [*map(str, optim.milestones)] == [
            f"{k}steps" for k in range(every, end, every)
        ]
    assert not optims[2].milestones and optims[2].end == 1
