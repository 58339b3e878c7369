"""LPL and the hinge loss equal what their equations give, in value and gradient, written out here row by row."""

import math

import pytest
import torch
from formulas import draw, value_and_gradients

from twinblock.core.errors import InputError
from twinblock.methods.objectives import LPL, Hinge


def assert_equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-14)


def lpl_by_hand(pull, push, decorrelation):
    """The terms of section 4 with loops over dimensions; no gradient through the mean, as published."""

    def spread(x):
        n, d = x.shape
        centred = [x[:, j] - x[:, j].mean().detach() for j in range(d)]
        logs = sum(torch.log((c * c).sum() / (n - 1) + 1e-4) for c in centred) / d
        pairs = [(i, j) for i in range(d) for j in range(d) if i != j]
        squares = sum(((centred[i] * centred[j]).sum() / (n - 1)) ** 2 for i, j in pairs)
        return -push * logs + decorrelation * squares / (d * d - d)

    return lambda z, t: pull * ((z - t) ** 2).sum() / z.numel() + (spread(z) + spread(t)) / 2


@pytest.mark.parametrize("weights", [(1.0, 1.0, 10.0), (0.5, 0.0, 0.0), (0.0, 2.0, 0.0), (0.0, 0.0, 3.0)])
def test_lpl_equals_its_equations(weights):
    z, t = draw(7, 5, seed=1), 3 + draw(7, 5, seed=2)
    assert_equal(value_and_gradients(LPL(*weights), z, t), value_and_gradients(lpl_by_hand(*weights), z, t))


def test_the_published_weights_of_lpl_are_its_defaults():
    z, t = draw(7, 5, seed=1), draw(7, 5, seed=2)
    assert LPL()(z, t) == LPL(1, 1, 10)(z, t)


def test_each_term_of_lpl_by_hand():
    """Two images whose first number differs by 2 and second by 4: variances 2 and 8, covariance 4."""
    z = torch.tensor([[0.0, 0.0], [2.0, 4.0]], dtype=torch.float64)
    assert LPL(1, 0, 0)(z, z + 3).item() == pytest.approx(9)
    assert LPL(0, 1, 0)(z, z).item() == pytest.approx(-(math.log(2 + 1e-4) + math.log(8 + 1e-4)) / 2)
    assert LPL(0, 0, 1)(z, z).item() == pytest.approx(2 * 4**2 / 2)
    assert LPL(0, 0, 1)(z[:, :1], z[:, :1]).item() == 0  # one dimension correlates with no other


def test_lpl_is_invariant_to_translation_and_to_the_order_of_dimensions():
    z, t, shift = draw(9, 6, seed=1), draw(9, 6, seed=2), draw(6, seed=3)
    for moved in ((z + shift, t + shift), (z.flip(1), t.flip(1))):
        torch.testing.assert_close(LPL()(*moved), LPL()(z, t), rtol=1e-11, atol=0)


def hinge_by_hand(z, t, excess):
    """The published loss, for each choice of one negative for all images: that of k rows further; their mean."""
    t, n = t.detach(), len(z)
    negatives = [torch.stack([excess(1 + z[i] @ t[(i + k) % n]) for i in range(n)]).mean() for k in range(1, n)]
    return torch.stack([excess(1 - z[i] @ t[i]) for i in range(n)]).mean() + torch.stack(negatives).mean()


@pytest.mark.parametrize("soft", [False, True])
def test_the_hinge_loss_equals_its_equation(soft):
    excess = (lambda x: torch.log(1 + torch.exp(x))) if soft else (lambda x: x * (x > 0))
    z, t = draw(7, 5, seed=1), draw(7, 5, seed=2)
    loss, gradient = value_and_gradients(lambda z: Hinge(soft)(z, t), z)
    assert_equal([loss, gradient], value_and_gradients(lambda z: hinge_by_hand(z, t, excess), z))
    assert gradient.any(1).all()


def test_the_hinge_loss_by_hand():
    """Scores of 3 and 0.5 with one's own view, and of -2 and 0.25 with the other's."""
    z = torch.eye(2, dtype=torch.float64)
    t = torch.tensor([[3.0, 0.25], [-2.0, 0.5]], dtype=torch.float64)  # row j holds s_0j and s_1j
    assert Hinge()(z, t).item() == pytest.approx((0 + 0.5) / 2 + (0 + 1.25) / 2)


def test_a_predictor_at_this_side_is_the_published_one_at_the_contexts():
    """Published: a live z, a context without gradient behind W. Here: M z and the context, M the transpose of W."""
    embedding, context, w = draw(6, 4, seed=1), draw(6, 4, seed=2), draw(4, 4, seed=3)

    def live(z, w):  # W learns too, so the context's side is no target, which carries no gradient
        scores = z @ (context @ w.T).T
        n = len(z)
        off = torch.relu(1 + scores)
        return torch.relu(1 - scores.diagonal()).mean() + (off.sum() - off.diagonal().sum()) / (n * n - n)

    published = value_and_gradients(live, embedding, w)
    found = value_and_gradients(lambda z, w: Hinge()(z @ w, context), embedding, w)
    assert_equal(found, published)


@pytest.mark.parametrize("objective", [LPL(), Hinge(), Hinge(soft=True)], ids=["lpl", "hinge", "soft"])
def test_gradients_equal_finite_differences(objective):
    z, t = draw(6, 4, seed=3).requires_grad_(), draw(6, 4, seed=4)
    if objective.detaches_target:
        assert torch.autograd.gradcheck(lambda z: objective(z, t), (z,))
    else:
        assert torch.autograd.gradcheck(objective, (z, t.requires_grad_()))


@pytest.mark.parametrize("objective", [LPL(), Hinge()], ids=["lpl", "hinge"])
def test_one_image_alone_is_refused(objective):
    with pytest.raises(InputError, match="needs 2 samples or more, not 1"):
        objective(draw(1, 4), draw(1, 4))


@pytest.mark.parametrize("soft", [False, True])
def test_scores_that_tell_no_pairs_have_at_least_the_hinge_loss_of_chance(soft):
    class Fields:
        pass

    Fields.soft = soft
    chance = Hinge.chance(Fields, 64)
    point = torch.zeros(8, 3, dtype=torch.float64)
    assert Hinge(soft)(point, point).item() == pytest.approx(chance)
    for seed in range(10):
        z, t = draw(64, 8, seed=seed), draw(64, 8, seed=100 + seed)
        assert Hinge(soft)(z, t) > chance
