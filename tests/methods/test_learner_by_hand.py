"""A Learner of vectors and linear layers: losses, keys, streams and what is passed on, all computed by hand."""

import pytest
import torch
from torch import Tensor, nn

from twinblock.methods.learner import Batch, Learner, Network, Passes, Signal, asks_for_batch, parts_of
from twinblock.methods.objectives.objective import Objective
from twinblock.methods.overlapping import OverlappingLearners
from twinblock.methods.targets.ema import EMA
from twinblock.methods.targets.shared import Shared
from twinblock.nn.pooling import Noise, Pooling


class Noted(Noise):
    """Adds nothing, and notes what it would draw by."""

    def __init__(self):
        super().__init__(0.0)
        self.seen = []

    def forward(self, x: Tensor, key: tuple[int, ...], offset: int = 0) -> Tensor:
        self.seen.append((key, offset, self.training))
        return x


class Products(Objective):
    """The sum of products, and a note of all that it is given."""

    def __init__(self):
        super().__init__()
        self.seen, self.moved = [], []

    def forward(self, z: Tensor, t: Tensor, batch: Batch) -> Tensor:
        self.seen.append((z, t, batch))
        return (z * t).sum()

    def after_step(self, targets: dict[int, Tensor], step: int, total: int) -> None:
        self.moved.append((targets, step, total))


class Plain(nn.Module):
    """Products without a batch."""

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        return (z * t).sum()


class Labels(Objective):
    """One view beside the labels."""

    def pairs(self, sizes):
        return [(0, None)]

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        return z[:, 0].sum() + t.sum()


def linear(factor: float) -> nn.Linear:
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = factor * torch.eye(2)
    return layer


def network(number: int = 5, factors=(2.0, 3.0)) -> Network:
    """Maps of 2 x and 6 x, and an embedding of 30 x."""
    return Network([*map(linear, factors)], Pooling(2), linear(5.0), Noted(), number)


def learner(target=None, objective=None, net=None, **more) -> Learner:
    net = net or network()
    target = target(net) if isinstance(target, type) and target is not Shared else target or Shared()
    return Learner(net, more.pop("predictor", None), target, objective or Products(), sizes=(2, 2), **more)


X, Y = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [3.0, 1.0]])
BATCH = Batch(torch.tensor([4, 6]), (11, 7), 20, torch.tensor([8, 9]))


def test_the_loss_is_the_scaled_sum_over_pairs():
    one = learner(scale=3.0)
    assert one.pairs == ((0, 1), (1, 0))
    loss, following, targets = one(Signal.from_views([X, Y]), BATCH)
    assert loss.item() == 3 * 2 * 900 * float((X * Y).sum())
    assert torch.equal(targets[0], 30 * X) and torch.equal(targets[1], 30 * Y)
    assert not any(t.requires_grad for t in targets.values())
    assert torch.equal(following.online[0], 2 * X) and torch.equal(following.online[1], 2 * Y)
    assert following.target is following.online
    assert not following.online[0].requires_grad and loss.requires_grad
    (first, second) = one.objective.seen
    assert torch.equal(first[0], 30 * X) and torch.equal(first[1], 30 * Y) and torch.equal(second[0], 30 * Y)


def test_a_predictor_stands_behind_the_online_embedding_alone():
    one = learner(predictor=linear(7.0))
    loss, _, targets = one(Signal.from_views([X, Y]), BATCH)
    assert loss.item() == 7 * 2 * 900 * float((X * Y).sum())
    assert torch.equal(targets[0], 30 * X) and torch.equal(targets[1], 30 * Y)


def test_each_block_draws_by_seed_step_view_and_its_number():
    one = learner()
    one(Signal.from_views([X, Y]), BATCH)
    keys = [(11, 7, view, block) for view in (0, 1) for block in (5, 6)]
    assert one.network.noise.seen == [(key, 20, True) for key in keys]
    ema = learner(Doubled)
    ema(Signal.from_views([X, Y]), BATCH)
    assert ema.target.average.noise.seen == ema.network.noise.seen == [(key, 20, True) for key in keys]


class Doubled(EMA):
    """An average of twice the weights."""

    def __init__(self, net: nn.Module):
        super().__init__(net, 0.5)
        for p in self.average.parameters():
            p.data *= 2


def test_a_target_of_its_own_has_a_stream_of_its_own():
    """Its weights are twice the others, so its maps are 4 x and 24 x, and the embedding 240 x."""
    one = learner(Doubled)
    loss, following, targets = one(Signal(online={0: X, 1: Y}, target={0: 10 * X, 1: 10 * Y}), BATCH)
    assert loss.item() == 2 * 30 * 2400 * float((X * Y).sum())
    assert torch.equal(targets[0], 2400 * X) and torch.equal(targets[1], 2400 * Y)
    assert torch.equal(following.online[1], 2 * Y) and torch.equal(following.target[1], 40 * Y)
    assert not following.target[1].requires_grad


def test_views_that_only_later_learners_need_are_passed_on():
    labels = learner(objective=Labels())
    assert labels.passes == Passes(frozenset({0}), frozenset())
    loss, following, targets = labels(Signal.from_views([X, Y]), BATCH)
    assert (loss.item(), targets) == (30 * float(X[:, 0].sum()) + 10, {})
    assert following.online.keys() == {0}
    more = learner(objective=Labels(), later=Passes(frozenset({1}), frozenset({0})))
    assert more(Signal.from_views([X, Y]), BATCH)[1].online.keys() == {0, 1}
    apart = learner(Doubled, Labels(), later=Passes(frozenset(), frozenset({1})))
    _, following, _ = apart(Signal.from_views([X, Y]), BATCH)
    assert (following.online.keys(), following.target.keys()) == ({0}, {1})


def test_what_an_objective_is_told_of_the_batch():
    """Who asks has labels, indices and positions of the whole batch; who compares labels alone has no indices."""
    one = learner()
    one(Signal.from_views([X, Y]), BATCH)
    (_, _, batch), *_ = one.objective.seen
    assert (batch.labels.tolist(), batch.index.tolist(), batch.offset, batch.key) == ([4, 6], [8, 9], 0, (11, 7))
    one(Signal.from_views([X, Y]), Batch(None, (11, 7), 20))
    batch = one.objective.seen[-1][2]
    assert (batch.labels, batch.index) == (None, None)
    supervised = learner(objective=Labels())
    told = supervised.gathered(BATCH, torch.device("cpu"))
    assert (told.labels.tolist(), told.index) == ([4, 6], None)
    plain = learner(objective=Plain())
    assert plain.gathered(BATCH, torch.device("cpu")) is BATCH
    assert [asks_for_batch(x) for x in (Products(), Plain(), lambda z, t: z, lambda z, t, batch: z)] == [
        True,
        False,
        False,
        True,
    ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_of_float32_or_wider(dtype):
    one = learner()
    one.compare(X.to(dtype), Y.to(dtype), BATCH)
    one.compare(X.double(), Y.double(), BATCH)
    assert [z.dtype for z, *_ in one.objective.seen] == [torch.float32, torch.float64]
    assert [t.dtype for _, t, _ in one.objective.seen] == [torch.float32, torch.float64]


def test_mixed_precision_is_for_the_networks_and_not_for_the_loss():
    one = learner(autocast=torch.bfloat16)
    _, following, targets = one(Signal.from_views([X, Y]), BATCH)
    assert following.online[0].dtype == targets[1].dtype == torch.bfloat16
    assert one.objective.seen[0][0].dtype == torch.float32
    assert one.pass_on(Signal.from_views([X, Y]), BATCH).online[0].dtype == torch.bfloat16
    outputs, _ = one.outputs(X)
    assert outputs["projector"].dtype == torch.float32


def test_a_learner_that_only_passes_on_makes_no_embedding():
    one = learner(Doubled)
    ran = []
    for module in (one.network.projector, one.target.average.projector):
        module.register_forward_hook(lambda *_: ran.append(1))
    following = one.pass_on(Signal.from_views([X, Y]), BATCH)
    assert torch.equal(following.online[0], 2 * X) and torch.equal(following.target[0], 4 * X)
    assert ran == [] and not following.online[0].requires_grad


def test_views_of_several_sizes_go_through_the_blocks_by_size_and_through_the_heads_at_once():
    net = network()
    net.noise.sigma = 1.0  # it notes what it is asked for, and adds nothing
    rows = {"blocks": [], "projector": [], "predictor": []}
    predictor = linear(7.0)
    one = Learner(net, predictor, EMA(net, 0.5), Products(), sizes=(4, 4, 2, 2, 2))
    for name, module in (("blocks", net.blocks[0]), ("projector", net.projector), ("predictor", predictor)):
        module.register_forward_hook(lambda module, given, out, name=name: rows[name].append(len(out)))
    views = [X, Y, 2 * X, 3 * Y, X]
    loss, following, targets = one(Signal.from_views(views), BATCH)
    assert rows == {"blocks": [4, 6], "projector": [10], "predictor": [10]}
    pairs = [(i, j) for i in range(5) for j in range(2) if i != j]
    assert loss.item() == pytest.approx(7 * 900 * float(sum((views[i] * views[j]).sum() for i, j in pairs)))
    assert targets.keys() == {0, 1} and torch.equal(targets[1], 30 * Y)
    assert [torch.equal(following.online[i], 2 * view) for i, view in enumerate(views)] == [True] * 5
    of_views = [
        [((*BATCH.key, i, block), 20, True) for i in stack] for stack in ((0, 1), (2, 3, 4)) for block in (5, 6)
    ]
    assert net.noise.seen == [seen for views in of_views for seen in views]


def test_views_that_meet_other_networks_are_passes_of_their_own():
    class Second(Shared):
        def sees(self, view):
            return view > 0

    one = Learner(network(), None, Second(), Products(), sizes=(4, 4, 2, 2))
    assert one.passes_of(range(4)) == [[[0]], [[1], [2, 3]]]
    one = Learner(network(), None, Second(), Products(), sizes=(4, 4, 4))
    assert one.passes_of(range(3)) == [[[0]], [[1]], [[2]]]


def test_the_loss_may_be_the_mean_over_the_pairs():
    objective = Products()
    objective.averaged = True
    loss, *_ = learner(objective=objective, scale=3.0)(Signal.from_views([X, Y]), BATCH)
    assert loss.item() == 3 * 900 * float((X * Y).sum())


def test_what_is_moved_after_a_step():
    one = learner(Doubled)
    one.after_step(5, 10, {1: X})
    # BYOL's momentum half way from 0.5 to 1 is 0.75: of twice the weights and the weights, 1.75
    assert one.target.average.projector.weight[0, 0].item() == pytest.approx(5 * 1.75)
    ((targets, *when),) = one.objective.moved
    assert targets.keys() == {1} and targets[1] is X and when == [5, 10]
    learner(objective=Plain()).after_step(0, 10, {1: X})  # it has nothing to move


def test_outputs_are_of_the_evaluated_network():
    one = learner(predictor=linear(7.0))
    outputs, following = one.outputs(X)
    assert {name: float(value[0, 0] / X[0, 0]) for name, value in outputs.items()} == {
        "encoder": 6,
        "projector": 30,
        "predictor": 210,
    }
    assert torch.equal(following, 2 * X)
    assert one.network.noise.seen == [((0, 5), 0, False), ((0, 6), 0, False)] and one.training
    assert not outputs["projector"].requires_grad
    assert "predictor" not in learner().outputs(X)[0]


def test_overlapping_learners_sum_their_losses_and_gradients():
    """Each begins at the second block of the one before; a shared block learns from both."""
    shared = linear(3.0)
    first, second = (
        Network([a, b], Pooling(2), linear(5.0), Noted(), number)
        for number, (a, b) in enumerate([(linear(2.0), shared), (shared, linear(4.0))])
    )
    parts = [learner(net=net) for net in (first, second)]
    whole = OverlappingLearners(parts)
    assert list(parts_of(whole)) == parts and parts_of(parts[0]) == (parts[0],)
    loss, following, rests = whole(Signal.from_views([X, Y]), BATCH)
    product = float((X * Y).sum())
    assert loss.item() == pytest.approx(2 * (30**2 + (2 * 3 * 4 * 5) ** 2) * product)
    assert torch.equal(following.online[0], 6 * X) and len(rests) == 2
    (2 * loss).backward()
    factor = shared.weight.grad.clone()
    shared.weight.grad = None
    alone = [part(signal, BATCH) for part, signal in zip(parts, signals(X, Y), strict=True)]
    (2 * (alone[0][0] + alone[1][0])).backward()
    torch.testing.assert_close(factor, shared.weight.grad)
    whole.after_step(0, 10, rests)
    assert [len(part.objective.moved) for part in parts] == [1, 1]


def signals(*views):
    return Signal.from_views(views), Signal.from_views([2 * view for view in views])


def test_what_is_compared_and_told_is_of_all_processes(monkeypatch):
    """Of two, here: what the other one has is ten times as much."""
    monkeypatch.setattr("twinblock.methods.learner.gather", lambda x: torch.cat([x, 10 * x]))
    one = learner()
    loss, _, targets = one(Signal.from_views([X, Y]), BATCH)
    z, t, batch = one.objective.seen[0]
    assert torch.equal(z, 30 * torch.cat([X, 10 * X])) and torch.equal(t, 30 * torch.cat([Y, 10 * Y]))
    assert (batch.labels.tolist(), batch.index.tolist(), batch.offset) == ([4, 6, 40, 60], [8, 9, 80, 90], 0)
    assert [t.shape for t in targets.values()] == [(4, 2), (4, 2)] and loss.item() == 2 * 900 * 101 * float(
        (X * Y).sum()
    )


class Sees(Shared):
    """View 1 meets a network of its own."""

    def sees(self, view: int) -> bool:
        return view == 1


class Named(Plain):
    def __init__(self, *pairs):
        super().__init__()
        self.named = list(pairs)

    def pairs(self, sizes):
        return self.named


def test_where_views_meet_networks_of_their_own_every_pair_has_its_mirror_image():
    for named, pairs in (
        ([(0, 1)], ((0, 1), (1, 0))),
        ([(0, 1), (1, 0)], ((0, 1), (1, 0))),
        ([(0, None), (0, 1)], ((0, None), (0, 1), (1, 0))),
    ):
        assert learner(Sees(), Named(*named)).pairs == pairs
        assert learner(objective=Named(*named)).pairs == tuple(named)
