"""A batch that goes through the network in parts: the gradient of the whole, in the memory of a part."""

import copy
from contextvars import ContextVar

import pytest
import tiny
import torch
from torch import Tensor, nn

import twinblock
from twinblock.config.recipes import compose
from twinblock.core.errors import InputError
from twinblock.core.memory import Alive
from twinblock.methods.learner import Batch, Signal
from twinblock.methods.stacks import Stack
from twinblock.nn.modes import computed_again

PART = 6  # of batches of 16: two whole parts and one of 4


def views(count: int = 2, n: int = 16) -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    return [torch.randn(n, 3, 16, 16, generator=g, dtype=torch.float64) for _ in range(count)]


def gradients(method: str, scope: str, micro_batch: int | None, norm: str = "none", of_scope: dict | None = None):
    """Losses and gradients of one pass through all Learners, and what they hold after it, by name."""
    _, encoder, learners = tiny.learners(method, scope, of_scope, norm=norm, train={"micro_batch": micro_batch})
    signal = Signal.from_views(views(1 if method == "supervised" else 2))
    batch = Batch(torch.arange(16) % 3, (0, 0))
    losses, found = [], {}
    for k, learner in enumerate(learners):
        loss, signal, *_ = learner(signal, batch)
        loss.backward()
        losses.append(loss.detach())
        found |= {f"{k}.{name}": p.grad for name, p in learner.named_parameters() if p.grad is not None}
    return torch.stack(losses), found, encoder


METHODS = ("simclr", "byol", "moco_v2", "barlow_twins", "vicreg", "supervised", "sdclr")


@pytest.mark.parametrize(
    ("method", "scope"),
    [*((method, "end_to_end") for method in METHODS), ("byol", "simultaneous"), ("sdclr", "overlapping")],
)
def test_the_gradient_is_that_of_the_whole_batch(method, scope):
    whole, expected, _ = gradients(method, scope, None)
    parts, found, _ = gradients(method, scope, PART)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0)
    assert found.keys() == expected.keys()
    assert any(name.endswith("conv1.weight") and gradient.any() for name, gradient in expected.items())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("over", ["hw", "c"])
def test_noise_and_expansion_are_those_of_the_whole_batch(over):
    fields = {"noise": 0.25, "noise_over": over, "expand": 160}
    _, expected, _ = gradients("barlow_twins", "simultaneous", None, of_scope=fields)
    _, found, _ = gradients("barlow_twins", "simultaneous", PART, of_scope=fields)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


class ByHand(nn.Module):
    """Batch norms that see each part alone, as a loop over the parts would have them."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.network.maps(Stack(part, [(0, 0, 0)]))[-1] for part in x.split(PART)]
        return torch.cat([self.network.pooling(part) for part in parts])


@pytest.mark.parametrize("method", ["simclr", "sdclr"])
def test_a_batch_norm_sees_each_part_and_moves_its_statistics_once_for_each(method):
    _, _, (learner,) = tiny.learners(method, "end_to_end", norm="batch", train={"micro_batch": PART})
    reference = copy.deepcopy(learner)
    x = views()[0]
    ((_, z),) = learner.network([Stack(x, [(0, 0, 0)])])
    expected = reference.network.projector(ByHand(reference.network)(x))
    torch.testing.assert_close(z, expected, rtol=1e-12, atol=1e-12)
    for one in (z, expected):
        one.square().sum().backward()
    for (name, p), q in zip(learner.network.named_parameters(), reference.network.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12, msg=name)
    buffers = dict(reference.network.named_buffers())
    for name, buffer in learner.network.named_buffers():
        torch.testing.assert_close(buffer, buffers[name], rtol=1e-12, atol=1e-12, msg=name)
    counts = {name: int(b) for name, b in buffers.items() if name.endswith("num_batches_tracked")}
    assert {name: 1 if name.startswith("projector") else 3 for name in counts} == counts


def test_the_pruned_network_is_the_one_that_backward_computes_again():
    """Its weights lie in the modules in forward alone: with others the gradient would be that of the dense network."""
    _, _, (learner,) = tiny.learners("sdclr", "end_to_end", norm="none", train={"micro_batch": PART})
    ((_, z),) = learner.target(learner.network, [Stack(views()[0], [(0, 0, 0)])])
    z.square().sum().backward()
    for name in learner.target.weights:
        mask = learner.target.get_buffer(f"mask/{name.removesuffix('.weight').replace('.', '/')}")
        gradient = learner.network.get_parameter(name).grad
        assert not gradient[~mask].any()
        assert gradient[mask].any()


def most_held(micro_batch: int | None) -> int:
    """Bytes at the peak of a step: what backward makes again is counted."""
    fields = {"train": {"micro_batch": micro_batch}, "projector": {"dims": [8]}}
    _, _, (learner,) = tiny.learners("simclr", "end_to_end", norm="none", **fields)
    signal = Signal.from_views(views(2, 32))
    with Alive() as alive:
        learner(signal, Batch(None, (0, 0)))[0].backward()
    return alive.peak


def test_a_part_is_held_at_a_time():
    whole, part = most_held(None), most_held(4)
    assert part < whole / 3  # 4 of 64 images, the gradients of the weights, and the embeddings


@pytest.mark.parametrize("scope", ["end_to_end", "sequential"])
def test_a_whole_run_equals_that_of_whole_batches(scope, tmp_path):
    states = []
    for micro_batch in (None, PART):
        config = tiny.config("byol", scope, "none", train={"micro_batch": micro_batch})
        trainer = tiny.trainer(config, tmp_path / f"{micro_batch}")
        trainer.fit()
        states.append(tiny.state(trainer))
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-8, atol=1e-10, msg=name)


def test_a_learner_of_ones_own_divides_its_batch_itself():
    with pytest.raises(InputError, match=r"train\.micro_batch: learner\.kind=torch\.nn:ReLU takes its batch"):
        compose("simclr", {"learner": {"kind": "torch.nn:ReLU"}}, ["train.micro_batch=4"])


def test_that_a_batch_norm_sees_less_is_said(tmp_path, capsys):
    small = ["encoder.kind=resnet10", "encoder.width=8", "data.batch=16", "train.length=1steps", "projector.dims=[8]"]
    for norm, said in (("batch", True), ("none", False)):
        overrides = [*small, f"encoder.norm={norm}", "train.micro_batch=4"]
        twinblock.pretrain("simclr", data=tiny.images(), out=tmp_path / norm, overrides=overrides)
        text = " ".join(capsys.readouterr().err.split())
        assert ("a batch norm of the encoder takes its statistics from 4 images at a time" in text) == said


class Seen(nn.Module):
    """Notes in which context it runs, at first and again."""

    def __init__(self, variable: ContextVar[str]):
        super().__init__()
        self.variable, self.seen, self.factor = variable, [], nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(self.variable.get())
        return (x * self.factor).exp()


def test_what_is_computed_again_is_in_the_context_of_the_first_time():
    """Such as that of a target network, which drops no paths."""
    variable = ContextVar("variable", default="outside")
    module = Seen(variable)
    token = variable.set("inside")
    y = computed_again(module, torch.ones(2, requires_grad=True))
    variable.reset(token)
    y.sum().backward()
    assert module.seen == ["inside", "inside"]
