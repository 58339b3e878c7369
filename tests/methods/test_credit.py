"""Credit rules by their equations, in double precision: accuracy cannot tell a wrong sign, or a wrong matrix."""

import math
from itertools import pairwise

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import nn

from twinblock.assembly.build import make_learners
from twinblock.config.recipes import compose
from twinblock.core.errors import InputError
from twinblock.data.photodigits import scanned
from twinblock.methods.credit import BROADCAST, Broadcast, FeedbackAlignment
from twinblock.methods.learner import Batch, Learner, Network, Signal
from twinblock.methods.objectives import Supervised
from twinblock.methods.stacks import Stack
from twinblock.methods.targets.shared import Shared

RULES = ("feedback_alignment", *BROADCAST, "none")
N = 8
LABELS = torch.tensor([0, 2, 1, -1, 2, 0, 1, 1])
PLAIN = {"kind": "vgg6", "width": 8, "stem": "standard"}


def views(count: int = 2) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return [torch.randn(N, 3, 16, 16, generator=g, dtype=torch.float64) for _ in range(count)]


def build(method: str, rule: str, **fields) -> Learner:
    norm = fields.pop("norm", "none")
    scope = {"cuts": fields.pop("cuts", "blocks"), "credit": rule}
    fields = {"encoder": {**PLAIN, "norm": "batch"}, **fields}
    _, _, (learner,) = tiny.learners(method, "end_to_end", scope, norm=norm, **fields)
    return learner


def loss_of(learner, method: str):
    dtype = next(learner.parameters()).dtype
    signal = Signal.from_views([x.to(dtype) for x in views(1 if method == "supervised" else 2)])
    return learner(signal, Batch(LABELS, (0, 0)))[0]


def gradients(learner) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}


# ---- broadcast


def by_hand(learner, method: str, rule: str):
    """The gradients of the blocks' parameters and of the heads', from the equations alone."""
    network, blocks = learner.network, [*learner.network.blocks]
    matrices = [b.clone() for b in network.matrices]
    maps_of, z_of = [], []
    for x in views(1 if method == "supervised" else 2):
        maps = []
        for block in blocks:
            x = block(x.detach())
            maps.append(x)
        maps_of.append(maps)
        z_of.append(network.projector(maps[-1].detach().mean((2, 3))))
    leaves = [z.detach().requires_grad_() for z in z_of]
    loss = learner.objective(*leaves, *([LABELS] if method == "supervised" else []))
    errors = torch.autograd.grad(loss, leaves)
    one_hot = F.one_hot(LABELS.clamp(min=0), 3).double() * (LABELS >= 0)[:, None]
    found = {}
    for maps, z, e in zip(maps_of, z_of, errors, strict=True):
        lesson = {"direct": e, "sign_direct": torch.sign(e) / N, "drtp": one_hot / N}[rule]
        taught = {
            f"blocks.{k}": (block, y, torch.einsum("nk,kchw->nchw", lesson, matrix))
            for k, (y, block, matrix) in enumerate(zip(maps, blocks, matrices, strict=True))
        }
        for name, (module, y, error) in {**taught, "projector": (network.projector, z, e)}.items():
            parameters = dict(module.named_parameters())
            for key, g in zip(parameters, torch.autograd.grad(y, [*parameters.values()], error), strict=True):
                found[f"network.{name}.{key}"] = found.get(f"network.{name}.{key}", 0) + g
    return found


@pytest.mark.parametrize("rule", BROADCAST)
@pytest.mark.parametrize("method", ["supervised", "simclr", "vicreg"])
def test_what_reaches_a_block_is_the_lesson_times_its_matrix(method, rule):
    learner = build(method, rule)
    assert len(learner.network.blocks) == 6
    expected = by_hand(learner, method, rule)
    loss_of(learner, method).backward()
    found = gradients(learner)
    assert found.keys() == expected.keys()
    assert all(g.any() for g in found.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-14, msg=name)


@pytest.mark.parametrize("rule", BROADCAST)
def test_the_loss_and_the_embeddings_are_those_of_backpropagation(rule):
    plain, learner = build("simclr", "backprop"), build("simclr", rule)
    assert torch.equal(loss_of(plain, "simclr"), loss_of(learner, "simclr"))


def test_for_a_linear_network_matrices_of_the_weights_behind_give_backpropagation():
    """One block is a matrix, and so is what is behind: B_1 := (P W_2)^T is what backpropagation feeds back."""
    torch.manual_seed(0)
    first, second = (nn.Conv2d(3, 4, 1, bias=False).double(), nn.Conv2d(4, 5, 1, bias=False).double())
    projector = nn.Linear(5, 2, bias=False).double()
    network = Broadcast(
        [first, second],
        tiny.pooling.Pooling(5),
        projector,
        tiny.pooling.Noise(0.0),
        rule="direct",
        rows=2,
        shapes=[(4, 1, 1), (5, 1, 1)],
        seed=0,
    ).double()
    behind = projector.weight @ second.weight[:, :, 0, 0]
    with torch.no_grad():
        for matrix, of in zip(network.matrices, (behind, projector.weight), strict=True):
            matrix.copy_(of[:, :, None, None])
    x = torch.randn(6, 3, 1, 1, dtype=torch.float64)
    ((_, z),) = network([Stack(x, [(0,)])])
    z.square().sum().backward()
    found = [first.weight.grad.clone(), second.weight.grad.clone()]
    first.zero_grad(), second.zero_grad()
    projector(second(first(x)).mean((2, 3))).square().sum().backward()
    for a, b in zip(found, (first.weight.grad, second.weight.grad), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


@pytest.mark.parametrize("rule", BROADCAST)
def test_matrices_have_the_published_spread_and_follow_from_the_seed(rule):
    rows = 3 if rule == "drtp" else 8
    learner = build("simclr", rule)
    for matrix, shape in zip(
        learner.network.matrices, [(8, 16), (16, 8), (16, 8), (32, 4), (64, 2), (64, 1)], strict=True
    ):
        shape = (shape[0], shape[1], shape[1])
        assert tuple(matrix.shape) == (rows, *shape)
        bound = math.sqrt(6 / math.prod(shape))
        assert 0.9 * bound < matrix.abs().max() < bound
        assert matrix.std() == pytest.approx(bound / 3**0.5, rel=0.1)
    again, other = build("simclr", rule), build("simclr", rule, train={"seed": 1})
    for a, b, c in zip(learner.network.matrices, again.network.matrices, other.network.matrices, strict=True):
        assert torch.equal(a, b) and not torch.equal(a, c)


def test_matrices_are_saved_and_not_trained():
    for rule in ("direct", "feedback_alignment"):
        learner = build("byol", rule)
        fixed = learner.feedback if rule == "feedback_alignment" else learner.network.matrices
        saved = {id(t) for t in learner.state_dict(keep_vars=True).values()}
        assert [*fixed] and all(id(b) in saved and not b.requires_grad for b in fixed)


# ---- feedback alignment


@pytest.mark.parametrize(
    ("method", "encoder", "precision"),
    [
        ("supervised", PLAIN, "double"),
        ("byol", {"kind": "resnet10", "width": 8, "stem": "cifar"}, "double"),
        ("simclr", tiny.SMALL_VIT, "double"),
        ("byol", PLAIN, "bf16"),
    ],
)
def test_feedback_through_the_own_weights_is_backpropagation_bit_for_bit(method, encoder, precision):
    encoder = {"width": None, **encoder, "norm": "batch"}
    found = []
    for rule in ("backprop", "feedback_alignment"):
        learner = build(method, rule, encoder=encoder, cuts="stages")
        if precision == "bf16":
            learner.float().autocast = torch.bfloat16
        if rule == "feedback_alignment":
            with torch.no_grad():
                for w, b in zip(learner.weights, learner.feedback, strict=True):
                    b.copy_(w)
        signal = Signal.from_views(
            [x.to(next(learner.parameters()).dtype) for x in views(1 if method == "supervised" else 2)]
        )
        loss = learner(signal, Batch(LABELS, (0, 0)))[0]
        loss.backward()
        found.append((loss.detach(), gradients(learner)))
    (loss, expected), (same, mine) = found
    assert torch.equal(loss, same)
    assert mine.keys() == expected.keys()
    assert [name for name in mine if not torch.equal(mine[name], expected[name])] == []


def test_errors_go_back_through_the_fixed_weights_and_no_others():
    """A chain by hand: at each layer the error behind it times B, then the derivative of what is between."""
    learner = build("supervised", "feedback_alignment", projector={"dims": ["classes"]})
    conv = [m for m in learner.network.blocks.modules() if isinstance(m, nn.Conv2d)]
    *feedback, last = [b.clone() for b in learner.feedback]
    assert len(conv) == len(feedback) == 6
    (x,) = views(1)
    inputs, outputs = [], []
    for block in learner.network.blocks[0]:
        inputs.append(x.detach().requires_grad_())
        x = block(inputs[-1])
        outputs.append(x)
    z = learner.network.projector(x.mean((2, 3))).detach().requires_grad_()
    (error,) = torch.autograd.grad(learner.objective(z, LABELS), z)
    back = (error @ last)[:, :, None, None] / x[0, 0].numel()
    back = back.expand_as(x)
    expected = []
    for k in reversed(range(6)):
        with torch.no_grad():
            y = conv[k](inputs[k])
        y.requires_grad_()
        rest = nn.Sequential(*[m for m in [*learner.network.blocks[0][k]][1:]])
        (dy,) = torch.autograd.grad(rest(y), y, back)
        expected.append(torch.nn.grad.conv2d_weight(inputs[k], conv[k].weight.shape, dy, padding=1))
        back = F.conv_transpose2d(dy, feedback[k], padding=1)
    loss_of(learner, "supervised").backward()
    for layer, gradient in zip(conv, expected[::-1], strict=True):
        assert gradient.any()
        torch.testing.assert_close(layer.weight.grad, gradient, rtol=1e-10, atol=1e-14)


def test_layers_that_are_not_known_are_refused():
    for encoder, words in (
        ({"kind": "resnet10", "width": 8, "stem": "cifar", "norm": "group8+ws"}, "is a WSConv2d"),
        ({"kind": "torchvision/vit_b_16", "width": None, "stem": "standard", "norm": "batch"}, "MultiheadAttention"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            build("simclr", "feedback_alignment", encoder=encoder, cuts="stages")
        assert "\n" not in str(caught.value)


# ---- none


def test_without_credit_the_heads_alone_learn():
    learner = build("byol", "none")
    plain = build("byol", "backprop")
    for one in (learner, plain):
        loss_of(one, "byol").backward()
    mine, theirs = gradients(learner), gradients(plain)
    assert mine.keys() == {name for name in theirs if not name.startswith("network.blocks")} != theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


# ---- learning, and what does not go together


def mlp(rule: str, width: int = 64) -> Learner:
    """Three hidden layers, as maps of one place, on the embedded scans of digits."""
    torch.manual_seed(0)
    widths = [64, width, width, width]
    blocks = [nn.Sequential(nn.Conv2d(a, b, 1), nn.Tanh()) for a, b in pairwise(widths)]
    rest = (tiny.pooling.Pooling(width), nn.Linear(width, 10), tiny.pooling.Noise(0.0))
    facts = (None, Shared(), Supervised(), [1])
    if rule in BROADCAST:
        taught = {"rows": 10, "shapes": [(width, 1, 1)] * 3, "seed": 0}
        return Learner(Broadcast(blocks, *rest, rule=rule, **taught), *facts).double()
    network = Network([nn.Sequential(*blocks)], *rest)
    return (
        FeedbackAlignment(network, *facts, seed=0) if rule == "feedback_alignment" else Learner(network, *facts)
    ).double()


@pytest.mark.parametrize("rule", ["direct", "feedback_alignment"])
def test_true_gradients_come_to_lie_within_90_degrees_of_what_is_fed_back(rule):
    """Alignment: the weights behind a layer come to agree with its matrix. At first the angle is a random one."""
    pixels, labels = scanned()
    x, labels = torch.tensor(pixels / 16 - 0.5)[:, :, None, None], torch.tensor(labels)
    learner, backprop = mlp(rule), mlp("backprop")
    optimizer = torch.optim.Adam(learner.parameters(), 1e-3)
    before = angles(learner, backprop, x, labels)
    for step in range(200):
        some = torch.arange(64 * step, 64 * step + 64) % len(x)
        loss = learner(Signal.from_views([x[some]]), Batch(labels[some], (0, 0)))[0]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = angles(learner, backprop, x, labels)
    assert loss < 0.7
    assert max(after) < 80 and max(after) < min(before) - 10, (before, after)


def angles(learner, backprop, x, labels) -> list[float]:
    """Between the gradient of each hidden layer's weights and backpropagation's at the same weights, in degrees."""
    found, trained = [], [p for p in learner.parameters() if p.requires_grad]
    with torch.no_grad():
        for mine, theirs in zip(trained, backprop.parameters(), strict=True):
            theirs.copy_(mine)
    for one in (learner, backprop):
        one.zero_grad()
        one(Signal.from_views([x]), Batch(labels, (0, 0)))[0].backward()
        found.append([p.grad.flatten().clone() for p in one.network.blocks.parameters() if p.ndim > 1])
        one.zero_grad()
    return [math.degrees(math.acos(float(F.cosine_similarity(a, b, dim=0)))) for a, b in zip(*found, strict=True)]


REFUSED = [
    (["scope.kind=blockwise", "scope.credit=direct"], "credit is for scope.kind=end_to_end"),
    (["scope.kind=overlapping", "scope.credit=none"], "credit is for scope.kind=end_to_end"),
    (["scope.credit=direct", "train.compile=true"], "leave train.compile out"),
    (["scope.credit=direct", "train.micro_batch=8"], "leave train.micro_batch out"),
    (["scope.credit=direct", "target={kind: pruned, ratio: 0.5}"], "another target than pruned"),
    (["scope.credit=direct", "views=[{}, {like: 0}, {like: 0, size: 16}]"], "leave views.size out"),
    (["scope.credit=feedback"], "scope.credit"),
]


@pytest.mark.parametrize(("overrides", "words"), REFUSED)
def test_what_does_not_go_together_is_one_line(overrides, words):
    with pytest.raises(InputError, match=words) as caught:
        compose("simclr", overrides=overrides)
    assert "\n" not in str(caught.value)


def test_other_learners_have_gradients_of_their_own():
    with pytest.raises(InputError, match="leave learner out"):
        compose("mae", overrides=["scope.credit=direct"])


def test_what_a_run_lacks_is_one_line():
    config, encoder, _ = tiny.learners("simclr", "end_to_end", {"credit": "drtp"}, encoder=PLAIN)
    with pytest.raises(InputError, match="broadcasts labels, and this data has none"):
        make_learners(config, encoder, None, None)
    with pytest.raises(InputError, match="trains the heads alone, and there are none"):
        build("vicreg", "none", projector={"dims": []})


def test_every_rule_is_tested():
    from typing import get_args

    from twinblock.config.scopes import Credit

    assert {"backprop", *RULES} == {*get_args(Credit)}
    assert isinstance(build("simclr", "feedback_alignment"), FeedbackAlignment)
