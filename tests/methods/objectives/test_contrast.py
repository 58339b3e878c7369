"""Contrast within a batch: against published code in value and gradient, invariances, and cases by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from formulas import assert_golden, draw, value_and_gradients

from twinblock.core.errors import InputError
from twinblock.methods.objectives import DCL, InBatchNCE, NearestNeighbour, NTXent, SupCon


def of(golden, case, *names):
    return {name: golden[f"{case}/{name}"] for name in ("T", "loss", *names)}


@pytest.mark.parametrize("case", ["a", "b"])
def test_moco_v3_golden(golden, case):
    """Both directions, times twice the temperature."""
    g = of(golden, f"moco_v3/{case}", "p1", "p2", "k1", "k2", "g_p1", "g_p2")
    f, scale = InBatchNCE(float(g["T"])), 2 * float(g["T"])
    k1, k2 = torch.tensor(g["k1"]), torch.tensor(g["k2"])
    actual = value_and_gradients(lambda p1, p2: scale * (f(p1, k2) + f(p2, k1)), g["p1"], g["p2"])
    assert_golden(actual, [g["loss"], g["g_p1"], g["g_p2"]])


@pytest.mark.parametrize("case", ["a", "b"])
def test_nnclr_golden(golden, case):
    """The mean of both directions."""
    g = of(golden, f"nnclr/{case}", "p1", "p2", "z1", "z2", "g_p1", "g_p2", "queue")
    f = NearestNeighbour(g["queue"].shape[1], len(g["queue"]), float(g["T"])).double()
    f.queue.copy_(torch.tensor(g["queue"]))
    z1, z2 = torch.tensor(g["z1"]), torch.tensor(g["z2"])
    actual = value_and_gradients(lambda p1, p2: (f(p2, z1) + f(p1, z2)) / 2, g["p1"], g["p2"])
    assert_golden(actual, [g["loss"], g["g_p1"], g["g_p2"]])


@pytest.mark.parametrize("case", ["a", "b"])
def test_dcl_golden(golden, case):
    g = of(golden, f"dcl/{case}", "z1", "z2", "g_z1", "g_z2")
    assert_golden(value_and_gradients(DCL(float(g["T"])), g["z1"], g["z2"]), [g["loss"], g["g_z1"], g["g_z2"]])


@pytest.mark.parametrize("case", ["a", "b"])
def test_sup_con_golden(golden, case):
    """Times the temperature over that of the publication."""
    g = of(golden, f"sup_con/{case}", "z1", "z2", "g_z1", "g_z2", "base_T", "labels")
    f, scale = SupCon(float(g["T"])), float(g["T"] / g["base_T"])
    labels = SimpleNamespace(labels=torch.tensor(g["labels"]))
    actual = value_and_gradients(lambda z, t: scale * f(z, t, labels), g["z1"], g["z2"])
    assert_golden(actual, [g["loss"], g["g_z1"], g["g_z2"]])


def by_loop(z, t, labels, temperature, decoupled=False):
    """SupCon, or DCL, as the sums of their papers."""
    unit = [x / x.norm() for x in (*z, *t)]
    images, total = [*range(len(z))] * 2, 0.0
    for a, x in enumerate(unit):
        others = [b for b in range(len(unit)) if b != a]
        same = [b for b in others if images[b] == images[a] or -1 != labels[images[a]] == labels[images[b]]]
        compared = [b for b in others if b not in same] if decoupled else others
        s = {b: x @ unit[b] / temperature for b in others}
        below = sum(s[b].exp() for b in compared).log()
        total = total + sum(below - s[b] for b in same) / len(same)
    return total / len(unit)


@pytest.mark.parametrize("labels", [[0, 1, 0, -1, -1, 2, 0], [-1] * 7, [3] * 7])
def test_sup_con_equals_the_sums_of_its_paper(labels):
    """Images without a label have their own other view alone as a positive."""
    z, t = draw(7, 4, seed=1), draw(7, 4, seed=2)
    batch = SimpleNamespace(labels=torch.tensor(labels))
    actual = value_and_gradients(lambda z, t: SupCon(0.3)(z, t, batch), z, t)
    assert_golden(actual, value_and_gradients(lambda z, t: by_loop(z, t, labels, 0.3), z, t))


def test_dcl_equals_the_sums_of_its_paper():
    z, t = draw(7, 4, seed=1), draw(7, 4, seed=2)
    expected = value_and_gradients(lambda z, t: by_loop(z, t, [-1] * 7, 0.3, decoupled=True), z, t)
    assert_golden(value_and_gradients(DCL(0.3), z, t), expected)


def test_sup_con_without_labels_is_nt_xent():
    z, t = draw(7, 4, seed=1), draw(7, 4, seed=2)
    nobody = SimpleNamespace(labels=torch.full((7,), -1))
    for loss in (SupCon(0.3)(z, t), SupCon(0.3)(z, t, nobody)):
        torch.testing.assert_close(loss, NTXent(0.3)(z, t), rtol=1e-12, atol=0)


def test_sup_con_does_not_mind_the_order_of_images_or_the_names_of_classes():
    z, t, labels = draw(7, 4, seed=1), draw(7, 4, seed=2), torch.tensor([0, 1, 0, -1, -1, 2, 0])
    order, names = torch.tensor([3, 1, 6, 0, 2, 5, 4]), torch.tensor([9, 7, 8, -1])
    expected = SupCon(0.3)(z, t, SimpleNamespace(labels=labels))
    actual = SupCon(0.3)(z[order], t[order], SimpleNamespace(labels=names[labels][order]))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("make", [lambda: InBatchNCE(0.3), lambda: NearestNeighbour(11, 7, 0.3).double()])
def test_gradients_of_predictions_equal_finite_differences(make):
    objective, t = make(), draw(5, 11, seed=4)
    assert torch.autograd.gradcheck(lambda z: objective(z, t), (draw(5, 11, seed=3).requires_grad_(),))


@pytest.mark.parametrize("objective", [DCL(0.3), SupCon(0.3)])
def test_gradients_of_both_views_equal_finite_differences(objective):
    assert torch.autograd.gradcheck(objective, (draw(5, 11, seed=3).requires_grad_(), draw(5, 11).requires_grad_()))


@pytest.mark.parametrize(
    "objective",
    [InBatchNCE(0.3), NearestNeighbour(6, 7, 0.3).double(), DCL(0.3), SupCon(0.3)],
    ids=lambda objective: type(objective).__name__,
)
def test_length_of_an_embedding_does_not_count(objective):
    z, t, longer = draw(8, 6, seed=1), draw(8, 6, seed=2), 10 ** draw(8, 1, seed=3)
    torch.testing.assert_close(objective(z * longer, t / longer), objective(z, t), rtol=1e-12, atol=0)
    with pytest.raises(InputError, match="compares embeddings"):
        objective(z, t[:4])


def test_two_images_at_right_angles():
    """Cosines are 1 with the positive and 0 with the two views of the other image."""
    z = torch.eye(2, dtype=torch.float64)
    assert InBatchNCE(0.5)(z, z).item() == pytest.approx(math.log(1 + math.exp(-2)))
    assert DCL(0.5)(z, z).item() == pytest.approx(math.log(2) - 2)
    assert SupCon(0.5)(z, z).item() == pytest.approx(math.log(1 + 2 * math.exp(-2)))
    one_class = SimpleNamespace(labels=torch.zeros(2, dtype=torch.int64))
    assert SupCon(0.5)(z, z, one_class).item() == pytest.approx(math.log(2 + math.exp(2)) - 2 / 3)
    with pytest.raises(InputError, match="DCL needs 2 samples or more"):
        DCL(0.5)(z[:1], z[:1])


def test_the_neighbour_is_looked_up_and_the_projection_is_not_compared():
    objective = NearestNeighbour(2, 2, 1.0).double()
    objective.queue.copy_(torch.eye(2))
    z, t = torch.eye(2, dtype=torch.float64), torch.tensor([[5.0, 4.9], [0.1, 0.2]], dtype=torch.float64)
    assert objective(z, t).item() == pytest.approx(math.log(1 + math.exp(-1)))
    assert objective(z, t.flip(0)).item() == pytest.approx(math.log(1 + math.exp(1)))


def test_the_projections_of_the_first_view_alone_enter_the_queue_of_neighbours():
    objective, first, second = NearestNeighbour(4, 7, 0.1), draw(3, 4).float(), draw(3, 4, seed=1).float()
    before = objective.queue.clone()
    objective.after_step({0: first, 1: second}, 0, 1)
    assert torch.equal(objective.queue, torch.cat([F.normalize(first, dim=1), before[3:]]))
    assert objective.pointer == 3
