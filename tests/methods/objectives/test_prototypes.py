"""DINO and SwAV: losses over prototypes, against solo-learn and by hand."""

import math

import numpy as np
import pytest
import torch

from twinblock.core.durations import Duration
from twinblock.methods.learner import Batch, Learner, Network, Signal
from twinblock.methods.objectives import DINO, SwAV
from twinblock.methods.objectives.swav import sinkhorn
from twinblock.methods.targets.shared import Shared
from twinblock.nn.heads import Prototypes
from twinblock.nn.pooling import Noise, Pooling


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(found, expected):
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-11, atol=1e-13)


def of_pairs(objective, views, targets=2):
    """The mean over the pairs of views, as a learner has it."""
    pairs = [(i, j) for i in range(len(views)) for j in range(targets) if i != j]
    return torch.stack([objective(views[i], views[j]) for i, j in pairs]).mean()


def test_dino_equals_solo_learn_over_three_steps(golden):
    """Its temperature moves once an epoch: here an epoch is one step, and it rises over the first two."""
    objective = DINO(12, target_temperature=0.07, first_temperature=0.04, warmup=Duration.parse("2epochs")).double()
    for step in range(3):
        g = {name: golden[f"dino/{step}/{name}"] for name in ("student", "teacher", "value", "gradient", "centre")}
        student = torch.tensor(g["student"]).requires_grad_()
        z, t = student.chunk(5), torch.tensor(g["teacher"]).chunk(2)
        loss = torch.stack([objective(z[i], t[j]) for i in range(5) for j in range(2) if i != j]).mean()
        loss.backward()
        objective.after_step(dict(enumerate(t)), step, 10)
        close(loss, g["value"]), close(student.grad, g["gradient"]), close(objective.centre, g["centre"])


def test_dino_by_hand():
    """Two prototypes: the target says (3/4, 1/4), the online network (1/2, 1/2), so the loss is log 2."""
    objective = DINO(2, temperature=1.0, target_temperature=0.5).double()
    t = torch.tensor([[math.log(3) / 2, 0.0]], dtype=torch.float64)
    assert objective(torch.zeros(1, 2, dtype=torch.float64), t).item() == pytest.approx(math.log(2))
    objective.after_step({0: t, 1: 3 * t}, 0, 10)
    close(objective.centre, np.array([math.log(3) / 10, 0]))  # a tenth of the mean, which is log 3


def test_the_temperature_of_the_target_rises_over_the_warmup_and_then_stays():
    objective = DINO(
        3, target_temperature=0.07, first_temperature=0.04, warmup=Duration.parse("2epochs"), epoch_steps=5
    )
    found = [objective.divisor.item()]
    for step in range(12):
        objective.after_step({0: torch.zeros(1, 3)}, step, 100)
        found.append(objective.divisor.item())
    assert found == pytest.approx([0.04 + 0.003 * min(step, 10) for step in range(13)])


@pytest.mark.parametrize("name", ["alone", "queued"])
def test_swav_equals_solo_learn(golden, name):
    z = torch.tensor(golden["swav/z"]).requires_grad_()
    objective = SwAV(4, prototypes=5, queue=8).double()
    with torch.no_grad():
        objective.prototypes.weight.copy_(torch.tensor(golden["swav/prototypes"]))
    if name == "queued":
        objective.queue.copy_(torch.tensor(golden["swav/queue"]))
        objective.pushes.fill_(8)
    loss = of_pairs(objective, z)
    loss.backward()
    close(torch.stack([objective.made_of(view) for view in z]), golden[f"swav/{name}/codes"])
    close(loss, golden[f"swav/{name}/value"]), close(z.grad, golden[f"swav/{name}/of_z"])
    close(objective.prototypes.weight.grad, golden[f"swav/{name}/of_w"])


def test_codes_share_the_prototypes_out_equally():
    """However alike the images are to one prototype; a row is a distribution."""
    scores = draw(8, 4) / 10 + torch.tensor([0.5, 0, 0, 0])
    q = sinkhorn(scores, 0.05, 200)
    close(q.sum(1), np.ones(8)), close(q.sum(0), np.full(4, 2.0))
    assert scores.argmax(1).unique().tolist() == [0]


def test_codes_of_scores_that_underflow_are_finite():
    q = sinkhorn(torch.tensor([[100.0, -100.0], [100.0, -100.0]]), 0.01, 3)
    close(q, np.array([[1.0, 0.0], [1.0, 0.0]]))


def test_the_queue_of_swav_fills_from_its_time_on_and_counts_once_it_is_full():
    objective = SwAV(4, prototypes=5, queue=9, queue_from=Duration.parse("20%")).double()
    z, batches = draw(6, 4), draw(10, 2, 2, 4, seed=1)
    alone = objective.made_of(z)
    for step, (a, b) in enumerate(batches):
        objective.after_step({0: a, 1: b}, step, 10)
        counted = not torch.equal(objective.made_of(z), alone)
        assert counted == (step >= 4)  # steps 2, 3 and 4 bring 12 rows
        assert bool(objective.queue.any()) == (step >= 2)
    held = {tuple(row.tolist()) for row in objective.queue}
    newest = torch.nn.functional.normalize(batches.flatten(0, 2)[-9:], dim=1)
    assert held == {tuple(row.tolist()) for row in newest}


def test_prototypes_give_cosines():
    x, layer = draw(3, 4), Prototypes(4, 6).double()
    expected = torch.nn.functional.cosine_similarity(x[:, None], layer.weight[None], dim=2)
    close(layer(x), expected.detach())
    with torch.autocast("cpu", torch.bfloat16):
        assert Prototypes(4, 6)(x.bfloat16()).dtype == torch.float32


def test_a_learner_takes_the_mean_over_the_pairs_and_makes_codes_once_for_each_target(monkeypatch):
    made, made_of = [], SwAV.made_of
    monkeypatch.setattr(SwAV, "made_of", lambda self, t: made.append(t) or made_of(self, t))
    torch.manual_seed(0)
    network = Network([torch.nn.Identity()], Pooling(4), torch.nn.Identity(), Noise(0.0)).double()
    objective, views = SwAV(4, prototypes=5).double(), list(draw(3, 6, 4))
    learner = Learner(network, None, Shared(), objective, [8, 8, 4])
    loss, _, _ = learner(Signal.from_views(views), Batch(None, (0, 0)))
    assert len(made) == 2  # for four pairs
    close(loss, of_pairs(objective, views).detach())
