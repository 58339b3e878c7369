"""LARS against the published optimizer, parameter groups, schedules."""

import copy

import jaxtyping
import numpy as np
import pytest
import torch
from torch import nn

from twinblock.core.errors import InputError
from twinblock.methods.targets.ema import ema_momentum
from twinblock.optim import LARS, constant, make_optimizer, parameter_groups, set_lr, stepwise, warmup_cosine

NAMES = ("matrix", "conv", "bias", "bn_weight", "zero_matrix", "sleepy")
STEPS = 5


class Golden:
    """The golden parameters as a module with its LARS, fed with the golden gradients step by step."""

    def __init__(self, golden, case):
        self.array = lambda name: golden[f"lars/{case}/{name}"]
        self.module = nn.ParameterDict({name: torch.tensor(self.array(f"p0_{name}")) for name in NAMES})
        momentum, eta, decay = (float(self.array(name)) for name in ("momentum", "eta", "weight_decay"))
        self.optimizer = LARS(parameter_groups(self.module, decay), lr=0.0, momentum=momentum, eta=eta)

    def step(self, i):
        for name, parameter in self.module.items():
            parameter.grad = torch.tensor(self.array(f"grads_{name}")[i])
        weights, biases = self.optimizer.param_groups
        weights["lr"], biases["lr"] = self.array("lr_weights")[i].item(), self.array("lr_biases")[i].item()
        self.optimizer.step()


def assert_close(actual, expected, of=None, tolerance=1e-9):
    """Within a share of the largest of the expected values, or of `of`."""
    scale = np.abs(expected if of is None else of).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("case", ["a", "b"])
def test_lars_golden(golden, case):
    run = Golden(golden, case)
    for i in range(STEPS):
        run.step(i)
        for name, parameter in run.module.items():
            expected = run.array(f"params_{name}")
            assert_close(parameter.detach(), expected[i], of=expected)
    for name, parameter in run.module.items():
        assert_close(run.optimizer.state[parameter]["momentum"], run.array(f"momentum_{name}"))


def test_lars_goes_on_exactly_after_saving(golden):
    whole, saved, resumed = (Golden(golden, "b") for _ in range(3))
    for i in range(STEPS):
        whole.step(i)
    for i in range(2):
        saved.step(i)
    resumed.module.load_state_dict(saved.module.state_dict())
    resumed.optimizer.load_state_dict(copy.deepcopy(saved.optimizer.state_dict()))
    for i in range(2, STEPS):
        resumed.step(i)
    assert all(torch.equal(whole.module[name], resumed.module[name]) for name in NAMES)


def test_lars_leaves_gradients_alone_and_skips_parameters_without_one():
    used, unused = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(2, 3))
    used.grad = torch.full((2, 3), 2.0)
    LARS([used, unused], lr=1, weight_decay=0.5).step()
    assert torch.equal(used.grad, torch.full((2, 3), 2.0))
    assert used.ne(1).all()
    assert unused.eq(1).all()


def test_lars_evaluates_a_closure():
    p = nn.Parameter(torch.ones(2, 3))

    def closure():
        loss = p.square().sum()
        loss.backward()
        return loss

    assert LARS([p], lr=1).step(closure) == 6
    assert p.lt(1).all()


def network():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2, bias=False), nn.Linear(2, 2))
    net[3].requires_grad_(False)
    return net


def test_biases_and_norms_stand_apart():
    net = network()
    weights, biases = parameter_groups(net, 0.1, bias_lr_scale=0.5)
    assert [id(p) for p in weights["params"]] == [id(net[0].weight), id(net[2].weight)]
    assert [id(p) for p in biases["params"]] == [id(p) for p in (net[0].bias, net[1].weight, net[1].bias)]
    assert (weights["weight_decay"], weights["adapt"], weights["lr_scale"]) == (0.1, True, 1)
    assert (biases["weight_decay"], biases["adapt"], biases["lr_scale"]) == (0, False, 0.5)


def test_biases_and_norms_can_be_treated_like_weights():
    groups = parameter_groups(network(), 0.1, exclude_bias_and_norm=False)
    assert [(g["weight_decay"], g["adapt"], g["lr_scale"]) for g in groups] == [(0.1, True, 1)] * 2


def test_there_is_no_empty_group():
    assert len(parameter_groups(nn.Linear(2, 2, bias=False), 0.1)) == 1


@pytest.mark.parametrize("kind", ["sgd", "lars", "adamw"])
def test_the_learning_rate_of_a_step_is_scaled_by_group(kind):
    optimizer = make_optimizer(parameter_groups(network(), 0.1, bias_lr_scale=0.25), kind, lr=2, momentum=0.8)
    assert [group["lr"] for group in optimizer.param_groups] == [2, 0.5]
    set_lr(optimizer, 4)
    assert [group["lr"] for group in optimizer.param_groups] == [4, 1]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0]


ADAM = 1 + (0.8 * 0.2 / (1 - 0.8**2)) / np.sqrt(0.999 * 0.001 / (1 - 0.999**2))


@pytest.mark.parametrize(("kind", "distance"), [("sgd", 1.8), ("lars", 1.8), ("adamw", ADAM)])
def test_two_steps_of_each_optimizer_by_hand(kind, distance):
    """Gradient 1, then 0, so that the second step is memory alone; momentum 0.8, lr 0.1, no adaptation."""
    p = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    group = {"params": [p], "weight_decay": 0.0, "adapt": False}
    optimizer = make_optimizer([group], kind, 0.1, momentum=0.8)
    for gradient in (1, 0):
        p.grad = torch.full_like(p, gradient)
        optimizer.step()
    torch.testing.assert_close(p.detach(), torch.full_like(p, -0.1 * distance), rtol=1e-6, atol=0)


def test_an_unknown_optimizer_is_refused_with_the_known_ones(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it
    with pytest.raises(InputError, match="unknown optimizer 'adam'; choose sgd, lars or adamw"):
        make_optimizer(parameter_groups(network(), 0.1), "adam", 0.1)


def scalars(golden, case):
    arrays = {key.removeprefix(case): golden[key] for key in golden if key.startswith(case)}
    return {name: array.item() for name, array in arrays.items() if array.ndim == 0}


def test_warmup_cosine_golden_byol(golden):
    s = scalars(golden, "sched/byol_lr/")
    peak = s["base_lr"] * s["batch_size"] / 256
    steps, total, warmup = golden["sched/byol_lr/steps"], s["total_steps"], s["warmup_steps"]
    actual = [warmup_cosine(int(k), total, warmup, peak) for k in steps]
    assert_close(actual, golden["sched/byol_lr/lr"])


@pytest.mark.parametrize("of", ["weights", "biases"])
def test_warmup_cosine_golden_barlow(golden, of):
    s = scalars(golden, "sched/barlow_lr/")
    peak = s[f"base_lr_{of}"] * s["batch_size"] / 256
    total, warmup = (s[name] * s["steps_per_epoch"] for name in ("epochs", "warmup_epochs"))
    actual = [warmup_cosine(k, total, warmup, peak, end=s["end_factor"] * peak) for k in range(total)]
    assert_close(actual, golden[f"sched/barlow_lr/lr_{of}"])


def test_warmup_cosine_golden_sdclr(golden):
    """Its scheduler is stepped before each batch: the batch i takes the value of step i + 1."""
    s = scalars(golden, "sched/sdclr_lr/")
    total, warmup = (s[name] * s["steps_per_epoch"] for name in ("epochs", "warmup_epochs"))
    actual = [warmup_cosine(i + 1, total, warmup, s["lr_max"], end=s["lr_min"]) for i in range(total)]
    assert_close(actual, golden["sched/sdclr_lr/lr_used"])
    assert warmup_cosine(0, total, warmup, s["lr_max"], end=s["lr_min"]) == s["lr_before_first_step"]


@pytest.mark.parametrize(
    ("case", "length", "curve"),
    [("moco_lr", "epochs", "cosine"), ("untitled_lr", "max_epochs", "lr_per_epoch")],
)
def test_warmup_cosine_golden_per_epoch(golden, case, length, curve):
    s = scalars(golden, f"sched/{case}/")
    actual = [warmup_cosine(epoch, s[length], 0, s["lr"]) for epoch in range(s[length])]
    assert_close(actual, golden[f"sched/{case}/{curve}"])


def test_ema_momentum_golden(golden):
    steps, total = golden["sched/byol_tau/steps"], golden["sched/byol_tau/max_steps"].item()
    for base, expected in zip(golden["sched/byol_tau/base_tau"], golden["sched/byol_tau/tau"], strict=True):
        assert_close([ema_momentum(int(k), total, float(base)) for k in steps], expected)
    s = scalars(golden, "sched/untitled_m/")
    actual = [ema_momentum(e, s["max_epochs"], s["m"]) for e in range(s["max_epochs"] + 1)]
    assert_close(actual, golden["sched/untitled_m/m_per_epoch"])


def test_constant_after_its_warmup():
    assert [constant(step, 4, 2) for step in range(7)] == [0, 0.5, 1, 1.5, 2, 2, 2]
    assert [constant(step, 0, 2) for step in range(2)] == [2, 2]


def test_a_stepwise_schedule_by_hand():
    """As torch's MultiStepLR, which says the rate of a step, too."""
    found = [stepwise(k, 0, 2.0, [3, 5, 5], 0.25) for k in range(7)]
    assert found == [2, 2, 2, 0.5, 0.5, 2 / 64, 2 / 64]
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=2.0)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5, 5], 0.25)
    for rate in found:
        assert optimizer.param_groups[0]["lr"] == rate
        optimizer.step()
        theirs.step()
    assert [stepwise(k, 4, 2.0, [2, 6], 0.5) for k in range(7)] == [0, 0.5, 0.5, 0.75, 1, 1, 0.5]


def test_schedules_hold_their_end():
    assert warmup_cosine(13, 10, 2, 1, end=0.25) == 0.25
    assert warmup_cosine(10, 10, 10, 1, end=0.25) == 0.25  # nothing but warm-up
    assert ema_momentum(13, 10, 0.9) == 1


def test_lars_learns_biases_at_their_own_rate():
    layer = nn.Linear(2, 2)
    optimizer = LARS(parameter_groups(layer, 0.0, bias_lr_scale=0.5), lr=0.2, momentum=0.0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.1]
    before = layer.bias.detach().clone()
    layer.bias.grad = torch.ones(2)
    optimizer.step()
    torch.testing.assert_close(layer.bias.detach(), before - 0.1)
    with pytest.raises(InputError, match="not negative"):
        LARS(layer.parameters(), lr=-1.0)


def one_step(optimizer_of, start: float, gradient: float, dim: int = 2) -> float:
    p = nn.Parameter(torch.full((1,) * dim, start, dtype=torch.float64))
    optimizer = optimizer_of([p])
    p.grad = torch.full_like(p, gradient)
    optimizer.step()
    return p.item()


def test_lars_alone_has_the_published_defaults():
    """Momentum 0.9, trust coefficient 0.001, adaptation, no decay: two steps of one weight by hand."""
    p = nn.Parameter(torch.full((1, 1), 2.0, dtype=torch.float64))
    optimizer = LARS([p], lr=1.0)
    for gradient in (5.0, 0.0):  # the second step is the momentum alone: at gradient 0 the ratio is 1
        p.grad = torch.full_like(p, gradient)
        optimizer.step()
    assert p.item() == pytest.approx(2 - 1.9 * 0.001 * 2, rel=1e-12)
    assert [group["lr"] for group in LARS([{"params": [p]}], lr=2).param_groups] == [2]


def test_lars_without_a_gradient_does_not_divide_by_it():
    """A gradient of zero with weight decay 0: no NaN, no step."""
    assert one_step(lambda params: LARS(params, lr=1.0, momentum=0.0), 3.0, 0.0) == 3
    assert one_step(lambda params: LARS(params, lr=1.0, momentum=0.0), 0.0, 2.0) == -2
    assert one_step(lambda params: LARS(params, lr=1.0, momentum=0.0, weight_decay=0.5), 2.0, -1.0) == 2


def test_a_learning_rate_of_zero_is_allowed_and_moves_nothing():
    assert one_step(lambda params: LARS(params, lr=0.0), 3.0, 1.0) == 3


def test_groups_keep_biases_out_by_default_and_at_the_same_rate():
    weights, biases = parameter_groups(network(), 0.1)
    assert (weights["lr_scale"], biases["lr_scale"], biases["adapt"], biases["weight_decay"]) == (1, 1, False, 0)


@pytest.mark.parametrize("kind", ["sgd", "lars", "adamw"])
def test_an_optimizer_has_momentum_0_9_unless_told_otherwise(kind):
    groups = parameter_groups(network(), 0.1)
    found = make_optimizer(groups, kind, lr=1).param_groups[0]
    assert (found["betas"][0] if kind == "adamw" else found["momentum"]) == 0.9
