"""Formulas: golden vectors in value and gradient, finite differences, invariances, hand-computed cases."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from formulas import assert_golden, draw, value_and_gradients

from twinblock.core.errors import InputError
from twinblock.methods.objectives import BarlowTwins, InfoNCE, NTXent, Regression, Supervised, VICReg


@pytest.mark.parametrize("case", ["a", "b", "c"])
def test_nt_xent_golden(golden, case):
    g = {name: golden[f"ntxent/{case}/{name}"] for name in ("z1", "z2", "T", "loss", "g_z1", "g_z2")}
    actual = value_and_gradients(NTXent(float(g["T"])), g["z1"], g["z2"])
    assert_golden(actual, [g["loss"], g["g_z1"], g["g_z2"]])


@pytest.mark.parametrize("case", ["a", "b"])
def test_regression_golden_byol(golden, case):
    g = {name: golden[f"byol/{case}/{name}"] for name in ("p1", "p2", "z1", "z2", "loss", "g_p1", "g_p2")}
    f = Regression()
    t1, t2 = torch.tensor(g["z1"]), torch.tensor(g["z2"])
    actual = value_and_gradients(lambda p1, p2: f(p1, t2) + f(p2, t1), g["p1"], g["p2"])
    assert_golden(actual, [g["loss"], g["g_p1"], g["g_p2"]])


@pytest.mark.parametrize("case", ["a", "b"])
def test_regression_golden_simsiam(golden, case):
    g = {name: golden[f"simsiam/{case}/{name}"] for name in ("p1", "p2", "z1", "z2", "loss", "g_p1", "g_p2")}
    f = Regression()
    t1, t2 = torch.tensor(g["z1"]), torch.tensor(g["z2"])
    actual = value_and_gradients(lambda p1, p2: (f(p1, t2) + f(p2, t1)) / 4 - 1, g["p1"], g["p2"])
    assert_golden(actual, [g["loss"], g["g_p1"], g["g_p2"]])


@pytest.mark.parametrize("case", ["a", "b"])
def test_barlow_twins_golden(golden, case):
    names = ("z1", "z2", "lambd", "scale", "loss", "g_z1", "g_z2")
    g = {name: golden[f"barlow/{case}/{name}"] for name in names}
    actual = value_and_gradients(BarlowTwins(float(g["lambd"])), g["z1"], g["z2"])
    assert_golden([float(g["scale"]) * x for x in actual], [g["loss"], g["g_z1"], g["g_z2"]])


@pytest.mark.parametrize("case", ["a", "b"])
def test_vicreg_golden(golden, case):
    g = {name: golden[f"vicreg/{case}/{name}"] for name in ("x", "y", "loss", "g_x", "g_y")}
    weights = (float(golden[f"vicreg/{case}/{name}"]) for name in ("sim_coeff", "std_coeff", "cov_coeff"))
    assert_golden(value_and_gradients(VICReg(*weights), g["x"], g["y"]), [g["loss"], g["g_x"], g["g_y"]])


def test_vicreg_defaults_are_the_published_weights(golden):
    x, y = (torch.tensor(golden[f"vicreg/a/{name}"]) for name in ("x", "y"))
    assert_golden([VICReg()(x, y)], [golden["vicreg/a/loss"]])


@pytest.mark.parametrize("case", ["a", "b"])
def test_info_nce_golden(golden, case):
    g = {name: golden[f"infonce_queue/{case}/{name}"] for name in ("q", "k", "queue", "T", "loss", "g_q")}
    dim, size = g["queue"].shape
    f = InfoNCE(dim, size, float(g["T"])).double()
    f.queue.copy_(torch.tensor(g["queue"].T))
    actual = value_and_gradients(lambda q: f(q, torch.tensor(g["k"])), g["q"])
    assert_golden(actual, [g["loss"], g["g_q"]])


@pytest.mark.parametrize(("n", "d"), [(12, 4), (5, 40)])  # one formula for large batches, one for small
def test_barlow_twins_and_vicreg_equal_their_definition(n, d):
    z, t = draw(n, d, seed=1), draw(n, d, seed=2)
    a, b = ((x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt() for x in (z, t))
    weights = torch.full((d, d), 0.3, dtype=torch.float64).fill_diagonal_(1)
    correlation = a.T @ b / n
    expected = (weights * (correlation - torch.eye(d)).square()).sum()
    torch.testing.assert_close(BarlowTwins(0.3)(z, t), expected, rtol=1e-11, atol=0)
    covariances = (torch.cov(x.T).fill_diagonal_(0) for x in (z, t))
    expected = sum(c.square().sum() for c in covariances) / d
    torch.testing.assert_close(VICReg(0, 0, 1)(z, t), expected, rtol=1e-11, atol=0)


@pytest.mark.parametrize("n", [5, 12])
@pytest.mark.parametrize(
    "objective",
    [NTXent(0.3), Regression(), BarlowTwins(0.1), VICReg(), InfoNCE(11, 7, 0.2).double()],
    ids=lambda objective: type(objective).__name__,
)
def test_gradients_equal_finite_differences(objective, n):
    z, t = draw(n, 11, seed=3).requires_grad_(), draw(n, 11, seed=4)
    if objective.detaches_target:  # finite differences would see the target move
        assert torch.autograd.gradcheck(lambda z: objective(z, t), (z,))
    else:
        assert torch.autograd.gradcheck(objective, (z, t.requires_grad_()))


def test_supervised_gradient_equals_finite_differences():
    z = draw(5, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: Supervised()(z, torch.tensor([0, 2, -1, 1, -1])), (z,))


@pytest.mark.parametrize(
    "objective",
    [NTXent(0.3), Regression(), InfoNCE(6, 7, 0.2).double()],
    ids=lambda objective: type(objective).__name__,
)
def test_length_of_an_embedding_does_not_count(objective):
    z, t = draw(8, 6, seed=1), draw(8, 6, seed=2)
    longer = 10 ** draw(8, 1, seed=3)
    torch.testing.assert_close(objective(z * longer, t / longer), objective(z, t), rtol=1e-12, atol=0)


def test_barlow_twins_is_invariant_to_affine_maps_of_each_dimension():
    z, t = 1e4 * draw(9, 6, seed=1), 1e4 * draw(9, 6, seed=2)  # so large that eps does not count
    scales, shifts = 10 ** draw(2, 6, seed=3), 1e3 * draw(2, 6, seed=4)
    moved = BarlowTwins(0.1)(z * scales[0] + shifts[0], t * scales[1] + shifts[1])
    torch.testing.assert_close(moved, BarlowTwins(0.1)(z, t), rtol=1e-7, atol=0)


def test_vicreg_is_invariant_to_translation():
    z, t, shift = draw(9, 6, seed=1), draw(9, 6, seed=2), draw(6, seed=3)
    torch.testing.assert_close(VICReg()(z + shift, t + shift), VICReg()(z, t), rtol=1e-12, atol=0)


def test_temperature_divides_the_cosines():
    """Two pairs at right angles: each anchor sees its positive at cosine 1 and two negatives at cosine 0."""
    z = torch.eye(2, dtype=torch.float64)
    expected = torch.tensor(np.log(1 + 2 * np.exp(-1 / 0.5)))
    torch.testing.assert_close(NTXent(0.5)(z, z), expected)


def test_supervised_is_the_mean_over_labelled_rows():
    z, labels = draw(6, 4), torch.tensor([3, -1, 0, 1, -1, 2])
    kept = labels >= 0
    torch.testing.assert_close(Supervised()(z, labels), F.cross_entropy(z[kept], labels[kept]))


def test_supervised_without_any_label_is_zero_and_can_be_differentiated():
    loss, gradient = value_and_gradients(lambda z: Supervised()(z, torch.full((4,), -1)), draw(4, 3))
    assert loss == 0
    assert gradient.eq(0).all()


@pytest.mark.parametrize("objective", [NTXent(0.2), Regression(), BarlowTwins(0.005), VICReg(), InfoNCE(16, 64, 0.2)])
def test_embeddings_of_other_shapes_are_not_broadcast(objective):
    z = torch.randn(8, 16)
    for t in (z[:1], z[:, :1], z[:4]):
        with pytest.raises(InputError, match=r"compares embeddings of \(8, 16\) with \("):
            objective(z, t)


def test_a_queue_may_be_filled_before_the_backward_that_its_loss_belongs_to():
    objective, q, k = InfoNCE(16, 64, 0.2), torch.randn(8, 16, requires_grad=True), torch.randn(8, 16)
    loss = objective(q, k)
    (expected,) = torch.autograd.grad(loss, q, retain_graph=True)
    objective.after_step({1: k}, 0, 1)
    loss.backward()
    assert torch.equal(q.grad, expected)
    with pytest.raises(InputError, match="at least one key"):
        InfoNCE(16, 0, 0.2)


def test_a_queue_of_one_key_is_a_queue():
    objective = InfoNCE(2, 1, 0.5).double()
    objective.queue.copy_(torch.tensor([[0.0, 1.0]]))
    z = torch.tensor([[3.0, 0.0]], dtype=torch.float64)
    assert objective(z, z).item() == pytest.approx(np.log(1 + np.exp(-2)))


def test_one_label_in_a_batch_counts_whole():
    z = draw(3, 4)
    expected = F.cross_entropy(z[1:2], torch.tensor([2]))
    torch.testing.assert_close(Supervised()(z, torch.tensor([-1, 2, -1])), expected)


@pytest.mark.parametrize(("length", "loss"), [(1.1e-6, 0.0), (1e-6, 0.0), (0.5e-6, 0.25), (0.0, 1.0)])
def test_lengths_below_a_millionth_are_not_stretched_to_one(length, loss):
    """As in BYOL's code, which divides by the root of at least 1e-12."""
    z, t = torch.tensor([[length, 0.0]], dtype=torch.float64), torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    assert Regression()(z, t).item() == pytest.approx(loss, abs=1e-12)
