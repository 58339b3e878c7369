import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from twinblock.core.errors import InputError
from twinblock.evaluation import linear_probe
from twinblock.evaluation.linear import PENALTIES, choose_penalty, logistic_regression


def blobs(n: int, d: int, classes: int, gap: float, seed: int = 0):
    """Gaussian blobs in correlated coordinates of very different scale."""
    means = torch.randn(classes, d, generator=torch.Generator().manual_seed(d + classes), dtype=torch.float64)
    mix = torch.randn(d, d, generator=torch.Generator().manual_seed(d), dtype=torch.float64)
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(0, classes, (n,), generator=draw)
    x = gap * means[y] + torch.randn(n, d, generator=draw, dtype=torch.float64)
    return x @ mix * torch.logspace(-2, 2, d, dtype=torch.float64) + 5, y


def standardised(x):
    return (x - x.mean(0)) / x.std(0, correction=0)


@pytest.mark.parametrize("classes", [3, 6])
def test_same_optimum_as_scikit_learn_along_a_path(classes):
    x, y = blobs(300, 12, classes, gap=0.4)
    x = standardised(x)
    penalties = [1.0, 1e-2, 1e-4]
    for penalty, (weight, bias) in zip(
        penalties, logistic_regression(x, y, classes, penalties, tolerance=1e-9), strict=True
    ):
        peer = LogisticRegression(C=1 / (len(x) * penalty), tol=1e-10, max_iter=5000).fit(x.numpy(), y.numpy())
        expected = peer.predict_proba(x.numpy())
        np.testing.assert_allclose((x @ weight + bias).softmax(1), expected, atol=2e-6)


def test_the_gradient_vanishes_at_the_solution():
    x, y = blobs(200, 8, 4, gap=0.5)
    x, penalty = standardised(x), 0.01
    weight, bias = next(logistic_regression(x, y, 4, [penalty], tolerance=1e-9))
    error = (x @ weight + bias).softmax(1) - torch.nn.functional.one_hot(y, 4)
    assert (x.T @ error / len(x) + penalty * weight).abs().max() < 1e-8
    assert error.mean(0).abs().max() < 1e-8


def test_few_samples_of_many_dimensions_are_solved_among_the_samples(monkeypatch):
    """Raw pixels of a handful of images took longer than the training."""
    sizes, factor = [], torch.linalg.cholesky
    monkeypatch.setattr(torch.linalg, "cholesky", lambda bound: sizes.append(len(bound)) or factor(bound))
    x, y = blobs(24, 300, 3, gap=0.5)
    x, penalty = standardised(x), 0.01
    weight, bias = next(logistic_regression(x, y, 3, [penalty], tolerance=1e-9))
    assert sizes == [24] and weight.shape == (300, 3)
    error = (x @ weight + bias).softmax(1) - torch.nn.functional.one_hot(y, 3)
    assert (x.T @ error / len(x) + penalty * weight).abs().max() < 1e-6
    assert error.mean(0).abs().max() < 1e-6


def test_float32_reaches_the_optimum_of_float64():
    x, y = blobs(400, 16, 6, gap=0.5)
    exact, rough = (linear_probe(z[:300], y[:300], z[300:], 6) for z in (x, x.float()))
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough.softmax(1), exact.softmax(1).float(), atol=1e-3, rtol=0)


def test_more_dimensions_than_samples_and_nearly_no_penalty():
    """The bound has eigenvalues of zero; rounded to float32 it would be negative somewhere."""
    x, y = blobs(60, 200, 3, gap=0.5)
    x = standardised(x).float()
    (weight, bias) = next(logistic_regression(x, y, 3, [1e-6]))
    assert weight.isfinite().all()
    assert ((x @ weight + bias).argmax(1) == y).all()


def test_one_penalty_that_does_not_help_does_not_end_the_search(monkeypatch):
    """Near chance the strongest penalties differ by noise."""
    losses = iter([3.0, 3.1, 2.0, 2.5, 2.6, 1.0])
    monkeypatch.setattr("twinblock.evaluation.linear.cross_entropy", lambda *_: torch.tensor(next(losses)))
    nothing = (torch.zeros(2, 2), torch.zeros(2))
    monkeypatch.setattr("twinblock.evaluation.linear.logistic_regression", lambda *_: iter([nothing] * 6))
    penalties = [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    assert choose_penalty(torch.zeros(10, 2), torch.arange(10) % 2, 2, penalties, seed=0) == 4.0


def test_the_penalties_are_half_decades_from_ten_to_a_millionth():
    assert pytest.approx(np.logspace(1, -6, 15)) == PENALTIES


def test_scale_shift_and_constant_features_do_not_matter():
    x, y = blobs(250, 6, 3, gap=0.6)
    other = torch.cat([x * torch.logspace(-3, 3, 6).double() - 2, torch.full((250, 2), 7.3).double()], 1)
    first, second = (linear_probe(z[:200], y[:200], z[200:], 3) for z in (x, other))
    torch.testing.assert_close(first.softmax(1), second.softmax(1), atol=1e-4, rtol=0)


def test_a_score_does_not_depend_on_the_other_test_samples():
    x, y = blobs(120, 5, 3, gap=0.5)
    torch.testing.assert_close(linear_probe(x[:90], y[:90], x[90:91], 3), linear_probe(x[:90], y[:90], x[90:], 3)[:1])


def test_the_choice_is_nearly_the_best_penalty():
    """Few samples, many dimensions, one with the classes: unpenalised, noise is learned by heart."""
    draw = torch.Generator().manual_seed(1)
    y = torch.randint(0, 2, (1120,), generator=draw)
    x = torch.randn(1120, 60, generator=draw)
    x[:, 0] += 2.0 * y
    train, test = slice(0, 120), slice(120, 1120)

    def loss(penalties):
        scores = linear_probe(x[train], y[train], x[test], 2, penalties)
        return float(torch.nn.functional.cross_entropy(scores, y[test]))

    alone = [loss([penalty]) for penalty in PENALTIES]
    assert loss(PENALTIES) < min(alone) + 0.05
    assert min(alone) + 0.1 < min(alone[0], alone[-1])  # so that there is something to choose


def test_deterministic_and_without_the_global_generator():
    x, y = blobs(200, 6, 3, gap=0.3)
    state = torch.get_rng_state()
    first, second = (linear_probe(x[:150], y[:150], x[150:], 3) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


def test_held_out_samples_come_from_every_class(monkeypatch):
    """Sorted labels, as from a folder: each class of ten is held out twice, whatever the seed."""
    held = []
    monkeypatch.setattr(
        "twinblock.evaluation.linear.cross_entropy",
        lambda scores, labels: held.append(labels) or torch.nn.functional.cross_entropy(scores, labels),
    )
    y = torch.arange(4).repeat_interleave(10)
    choose_penalty(blobs(40, 3, 4, gap=1)[0], y, 4, [1.0], seed=5)
    assert held[-1].bincount().tolist() == [2, 2, 2, 2]


def test_a_class_without_samples_is_never_predicted():
    x, y = blobs(100, 5, 2, gap=1)
    assert (linear_probe(x, y, x, 4).argmax(1) < 2).all()


@pytest.mark.parametrize("n", [1, 4])
def test_a_handful_of_samples(n):
    x = torch.eye(4)[:n]
    scores = linear_probe(x, torch.arange(n), x, 4)
    assert scores.isfinite().all()
    assert scores.argmax(1).tolist() == list(range(n))


def test_nan_is_refused():
    x, y = blobs(20, 3, 2, gap=1)
    x[4, 1] = torch.nan
    with pytest.raises(InputError, match="1 of 20 training features hold NaN"):
        linear_probe(x, y, x[:2], 2)


def test_features_are_standardised_by_those_of_the_training():
    """Also those of the test: a larger scale changes no score."""
    x, y = blobs(40, 3, 2, gap=1)
    first, second = (linear_probe(z[:30], y[:30], z[30:], 2, [0.1]) for z in (x, 50 * x + 3))
    torch.testing.assert_close(first, second, atol=1e-3, rtol=1e-3)


def test_penalties_go_from_ten_down_to_a_millionth():
    assert pytest.approx([10 ** (1 - 0.5 * i) for i in range(15)]) == PENALTIES
    assert (PENALTIES[0], PENALTIES[-1]) == pytest.approx((10, 1e-6))
