"""What a classifier is fine-tuned for: average precision by hand and by its definition, and which images are drawn."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from tiny import images
from torch.nn.functional import logsigmoid

from twinblock.core.errors import InputError
from twinblock.data import Images
from twinblock.evaluation.goals import SeveralClasses, average_precision, spared

RNG = np.random.Generator(np.random.PCG64(0))


def tagged(matrix) -> Images:
    matrix = np.array(matrix, np.int8)
    return Images(images(len(matrix)).pixels, indicators=matrix, name="some")


def goal(train, test=None) -> SeveralClasses:
    return SeveralClasses.of(tagged(train), tagged(train if test is None else test))


def test_average_precision_by_hand():
    """Ranked: right, wrong, right, wrong, right. Precision at the right ones is 1, 2/3 and 3/5; recall rises by 1/3."""
    scores, truth = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5]), torch.tensor([1, 0, 1, 0, 1])
    assert average_precision(scores, truth) == pytest.approx(100 * (1 + 2 / 3 + 3 / 5) / 3)
    # what is not known is not there: ranked right, right, wrong, right
    assert average_precision(scores, torch.tensor([1, -1, 1, 0, 1])) == pytest.approx(100 * (1 + 1 + 3 / 4) / 3)
    # equal scores are one step: three at once, two of them right
    tied = torch.tensor([0.5, 0.5, 0.5, 0.1])
    assert average_precision(tied, torch.tensor([1, 1, 0, 0])) == pytest.approx(100 * 2 / 3)
    assert average_precision(scores, torch.tensor([1, 1, 1, -1, 1])) is None
    assert average_precision(scores, torch.tensor([0, 0, 0, -1, 0])) is None


def test_average_precision_by_its_definition_and_by_scikit_learn():
    scores, truth = torch.from_numpy(RNG.normal(size=200)), torch.from_numpy(RNG.integers(0, 2, 200))
    ranked = truth[scores.argsort(descending=True)].double()
    precision = ranked.cumsum(0) / torch.arange(1, 201)
    assert average_precision(scores, truth) == pytest.approx(100 * float((precision * ranked).sum() / ranked.sum()))
    expected = 100 * average_precision_score(truth.numpy(), scores.numpy())
    assert average_precision(scores, truth) == pytest.approx(expected)


def test_the_score_is_the_mean_over_classes_that_images_tell_of():
    one = goal([[1, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 0]], [[1, 0, 1], [0, 0, 1], [1, 0, 0], [0, 0, 0]])
    scores = torch.tensor([[4.0, 0, 1], [3, 0, 2], [2, 0, 3], [1, 0, 4]])
    measured = one.measured(scores, one.targets[1])
    # by the first class right, wrong, right, wrong; by the last wrong, wrong, right, right
    assert measured == pytest.approx([100 * (1 + 2 / 3) / 2, None, 100 * (1 / 3 + 2 / 4) / 2])
    assert one.score(measured) == pytest.approx((measured[0] + measured[2]) / 2)
    assert math.isnan(one.score([None, None]))


def test_the_loss_is_binary_cross_entropy_of_each_class_and_what_is_not_known_has_no_gradient():
    one = goal([[1, 0], [0, 1], [1, 1]])
    scores = torch.tensor([[0.3, -2.0], [1.5, 0.2]], dtype=torch.float64, requires_grad=True)
    loss = one.loss(scores, torch.tensor([[1, 0], [-1, 1]], dtype=torch.int8))
    by_hand = -(logsigmoid(scores[0, 0]) + logsigmoid(-scores[0, 1]) + logsigmoid(scores[1, 1])) / 2
    assert float(loss.detach()) == pytest.approx(float(by_hand.detach()), rel=1e-12)
    loss.backward()
    assert scores.grad is not None and float(scores.grad[1, 0]) == 0
    assert float(scores.grad[0, 0]) == pytest.approx((torch.sigmoid(torch.tensor(0.3)).item() - 1) / 2)


def test_classes_that_tell_nothing_of_the_training_images_are_left_out():
    one = goal([[1, 1, 0, -1, 0], [0, 1, 0, 1, 1], [1, 1, 0, -1, 1]])
    assert one.columns.tolist() == [0, 4] and one.names == ["0", "4"]
    assert one.targets[0].tolist() == [[1, 0], [0, 1], [1, 1]]
    for train, test in (([[1], [1]], [[1], [0]]), ([[1], [0]], [[1], [1]])):
        with pytest.raises(InputError, match="no class has images that are of it, and others"):
            goal(train, test)


def test_parts_are_drawn_whatever_their_classes_and_no_class_is_without_an_image():
    matrix = (RNG.random((1000, 6)) < [0.5, 0.3, 0.1, 0.05, 0.01, 0]).astype(np.int8)
    matrix[7, 5] = 1  # a single image of the last class
    one = goal(matrix)
    parts = {fraction: one.part(fraction, 1) for fraction in (0.002, 0.1, 1.0)}
    assert {*parts[0.002]} <= {*parts[0.1]} <= {*parts[1.0]} == {*range(1000)}
    assert len(parts[0.002]) <= 2 + 6 and 100 <= len(parts[0.1]) <= 106
    assert all((matrix[rows].sum(0) > 0).all() and 7 in rows for rows in parts.values())
    assert {*one.part(0.1, 2)} != {*parts[0.1]}
    shares = np.mean([matrix[one.part(0.1, seed)].mean(0) for seed in range(50)], 0)
    error = np.sqrt(matrix.mean(0) * (1 - matrix.mean(0)) / 100 / 50)
    assert (abs(shares - matrix.mean(0))[:4] < 4 * error[:4]).all()  # not more of the images of many classes


def test_a_fifth_is_held_out_and_spares_the_last_image_of_each_class():
    matrix = np.zeros((100, 3), bool)
    matrix[:50, 0] = matrix[50:, 1] = matrix[99, 2] = True
    held = spared(matrix, np.array([99, *range(99)]))
    assert held.sum() == 20 and not held[99]
    assert not spared(np.eye(10, dtype=bool), np.arange(10)).any()
