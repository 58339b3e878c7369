"""Learners: directions, isolation of gradients, and what passes from one to the next."""

from functools import partial

import pytest
import tiny
import torch
from torch import nn

from twinblock.assembly.build import encoder_of, make_learners
from twinblock.assembly.plan import Phase, Plan, make_plan
from twinblock.methods.learner import Batch, Signal, pairs_of
from twinblock.methods.objectives import InfoNCE, NTXent, Regression, Supervised
from twinblock.methods.targets.ema import EMA, ema_momentum
from twinblock.methods.targets.shared import Shared
from twinblock.nn.modes import evaluating


def build(method: str, scope: str, **fields):
    config = tiny.trainer_config(method, scope, **fields)
    encoder = encoder_of(config).double()
    learners = [learner.double() for learner in make_learners(config, encoder, 3, None)]
    return config, encoder, learners


def views(count: int = 2, n: int = 8) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return [torch.randn(n, 3, 16, 16, generator=g, dtype=torch.float64) for _ in range(count)]


def test_pairs():
    ema, head = EMA(nn.Linear(1, 1), 0.9), nn.Linear(1, 1)
    both = ((0, 1), (1, 0))
    assert pairs_of(NTXent(0.1), Shared(), None, (32, 32)) == ((0, 1),)  # symmetric and live: one is all there is
    assert (
        pairs_of(NTXent(0.1), ema, None, (32, 32)) == both
    )  # the target gets no gradient: each view must be online once
    assert pairs_of(NTXent(0.1), Shared(), head, (32, 32)) == both
    assert pairs_of(Regression(), Shared(), head, (32, 32)) == both
    assert pairs_of(InfoNCE(2, 4, 0.1), ema, None, (32, 32)) == ((0, 1),)
    assert pairs_of(Supervised(), Shared(), None, (32,)) == ((0, None),)


@pytest.mark.parametrize(
    ("method", "passes"), [("simclr", 2), ("byol", 4), ("moco_v2", 2), ("simsiam", 2), ("supervised", 1)]
)
def test_no_pass_is_run_that_the_objective_does_not_need(method, passes):
    _, _, (learner,) = build(method, "end_to_end")
    ran = []
    for name, module in learner.named_modules():
        if name.endswith("conv1") and name.count(".") <= 5 and "layer" not in name:
            module.register_forward_hook(lambda *_: ran.append(1))
    learner(
        Signal.from_views(views(1 if method == "supervised" else 2)),
        Batch(torch.zeros(8, dtype=torch.int64), (0, 0)),
    )
    assert len(ran) == passes


@pytest.mark.parametrize("method", tiny.METHODS)
def test_no_loss_reaches_another_block(method):
    _, encoder, learners = build(method, "simultaneous")
    signal = Signal.from_views(views(1 if method == "supervised" else 2))
    batch = Batch(torch.arange(8) % 3, (0, 0))
    for k, learner in enumerate(learners):
        loss, signal, *_ = learner(signal, batch)
        loss.backward()
        touched = {name.split(".")[0] for name, p in encoder.named_parameters() if p.grad is not None and p.grad.any()}
        own = {path.split(".")[0] for path in encoder.cuts[k]}
        assert touched
        assert touched <= own
        assert all(not x.requires_grad for x in (*signal.online.values(), *signal.target.values()))
        encoder.zero_grad()


@pytest.mark.parametrize("method", [*tiny.METHODS, "sdclr"])
def test_blockwise_with_one_block_is_end_to_end_bit_for_bit(method, tmp_path):
    """Whole runs: weights, heads, target, queue and optimizer after three steps, and every loss."""
    found, losses = [], []
    for scope in ("end_to_end", "simultaneous"):
        config = tiny.config(method, scope, precision="fp32", train={"length": "3steps"})
        if scope == "simultaneous":
            tree = config.model_dump(mode="json")
            tree["scope"]["cuts"] = ["conv1"]
            config = type(config).model_validate(tree)
        trainer = tiny.trainer(config, tmp_path / scope)
        trainer.fit()
        assert len(trainer.learners) == 1
        found.append(tiny.state(trainer))
        losses.append([row["loss"] for row in trainer.run.metrics() if "loss" in row])
    assert losses[0] == losses[1]
    whole, block = (list(state.values()) for state in found)  # copies of the blocks are named by scope
    assert all(torch.equal(a, b) for a, b in zip(whole, block, strict=True))


def test_memory_held_for_backward_is_that_of_the_largest_block():
    """And not that of the network, which it is when the losses are summed before one backward."""
    whole = bytes_held("end_to_end")[0]
    blocks = bytes_held("simultaneous")
    assert max(blocks) < 0.8 * whole
    assert sum(blocks) == pytest.approx(whole, rel=0.02)
    assert peak_bytes(at_once=True) == max(blocks)
    assert peak_bytes(at_once=False) == sum(blocks)


def test_overlapping_pairs_hold_one_pair_at_a_time():
    (whole,) = build("simclr", "overlapping")[2]
    signal, batch, pairs = Signal.from_views(views()), Batch(None, (0, 0)), []
    for learner in whole.parts:
        live = {"now": 0, "peak": 0}
        with torch.autograd.graph.saved_tensors_hooks(partial(Held, live=live), lambda held: held.tensor):
            loss, signal, *_ = learner(signal, batch)
        pairs.append(live["now"])
        del loss
    live = {"now": 0, "peak": 0}
    with torch.autograd.graph.saved_tensors_hooks(partial(Held, live=live), lambda held: held.tensor):
        whole(Signal.from_views(views()), batch)
    assert live["peak"] == pytest.approx(max(pairs), rel=0.001)


def bytes_held(scope: str) -> list[int]:
    """What each Learner saves for its own backward."""
    found = []
    signal = Signal.from_views(views())
    for learner in build("simclr", scope)[2]:
        held = {"now": 0, "peak": 0}
        with torch.autograd.graph.saved_tensors_hooks(partial(Held, live=held), lambda held: held.tensor):
            loss, signal, *_ = learner(signal, Batch(None, (0, 0)))
        found.append(held["now"])
        del loss
    return found


def peak_bytes(at_once: bool) -> int:
    """The most that is held at any moment of a step over all Learners."""
    live = {"now": 0, "peak": 0}
    signal, losses = Signal.from_views(views()), []
    for learner in build("simclr", "simultaneous")[2]:
        with torch.autograd.graph.saved_tensors_hooks(partial(Held, live=live), lambda held: held.tensor):
            loss, signal, *_ = learner(signal, Batch(None, (0, 0)))
        if at_once:
            loss.backward()
        else:
            losses.append(loss)
        del loss
    return live["peak"]


class Held:
    """A saved tensor that counts its bytes for as long as its graph lives."""

    def __init__(self, tensor: torch.Tensor, live: dict[str, int]):
        self.tensor, self.live = tensor, live
        live["now"] += tensor.nbytes
        live["peak"] = max(live.values())

    def __del__(self):
        self.live["now"] -= self.tensor.nbytes


def test_the_moving_average_moves_by_hand_computed_amounts():
    network, target = nn.Linear(1, 1, bias=False), None
    with torch.no_grad():
        network.weight.fill_(1.0)
    target = EMA(network, momentum=0.5)
    with torch.no_grad():
        network.weight.fill_(3.0)
    target.after_step(network, step=0, total=10)  # momentum 0.5: half way
    assert target.average.weight.item() == 2.0
    target.after_step(network, step=5, total=10)  # momentum 0.75: a quarter of the way
    assert target.average.weight.item() == pytest.approx(2.25)
    assert ema_momentum(10, 10, 0.5) == 1
    assert not any(p.requires_grad for p in target.parameters())


def test_buffers_of_the_target_follow_their_policy():
    network = nn.BatchNorm1d(2)
    own, averaged = EMA(network, 0.5, buffers="own"), EMA(network, 0.5, buffers="average")
    network.running_mean.fill_(4.0)
    for target in (own, averaged):
        target.after_step(network, 0, 10)
    assert own.average.running_mean.tolist() == [0, 0]
    assert averaged.average.running_mean.tolist() == [2, 2]


def test_phases_of_the_sequential_plan():
    scope = tiny.trainer_config("simclr", "sequential").scope
    plan = make_plan(scope, 4, 10)
    assert plan == Plan((Phase((0,), 2), Phase((1,), 3), Phase((2,), 2), Phase((3,), 3)))
    assert plan.total == 10
    assert [plan.at(step)[0].trained[0] for step in range(10)] == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert plan.at(4) == (plan.phases[1], 2)


def test_frozen_blocks_stay_as_they_are(tmp_path):
    """In a later phase the earlier blocks keep weights and batch statistics."""
    trainer = tiny.trainer(
        tiny.config("byol", "sequential", precision="fp32", train={"length": "8steps"}), tmp_path / "run"
    )
    states = []

    def noting(*batch):
        states.append(tiny.state(trainer))
        return train_step(*batch)

    train_step = tiny.take_steps_by(trainer, noting)
    trainer.fit()
    after_first_phase, end = states[2], tiny.state(trainer)
    first = [name for name in end if name.startswith(("encoder.conv1", "encoder.bn1", "encoder.layer1", "learners.0"))]
    assert all(torch.equal(after_first_phase[name], end[name]) for name in first)
    assert not torch.equal(states[0]["encoder.conv1.weight"], after_first_phase["encoder.conv1.weight"])
    later = [name for name in end if name.startswith("encoder.layer4")]
    assert any(not torch.equal(after_first_phase[name], end[name]) for name in later)


def test_the_monitor_changes_nothing(tmp_path):
    trainer = tiny.trainer(tiny.config("moco_v2", "simultaneous"), tmp_path / "run")
    before = tiny.state(trainer)
    modes = [m.training for learner in trainer.learners for m in learner.modules()]
    trainer.monitor.measure()
    after = tiny.state(trainer)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert modes == [m.training for learner in trainer.learners for m in learner.modules()]


def test_evaluating_restores_each_part():
    module = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with evaluating(module):
        assert not any(m.training for m in module.modules())
    assert [m.training for m in module.modules()] == [True, True, False]
