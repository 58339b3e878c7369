"""Scores without labels against cases that are worked out by hand, and against what they must not depend on."""

import math

import pytest
import torch

from twinblock.diagnosis import labelfree as s
from twinblock.diagnosis import measures


def gaussian(n, width, seed=0):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def two_views(n=400, width=6, noise=0.7):
    shared = gaussian(n, width)
    return shared + noise * gaussian(n, width, 1), shared + noise * gaussian(n, width, 2)


# four images at the ends of two lines that cross; the mean of all views is (0, 0)
FIRST = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 2.0], [0.0, -2.0]], dtype=torch.float64)
SECOND = torch.tensor([[3.0, 1.0], [-3.0, -1.0], [-2.0, 1.0], [2.0, -1.0]], dtype=torch.float64)


def test_retrieval_by_hand():
    """Views 0 and 1 point the way of their own first view; 2 points more to image 1, and 3 more to image 0."""
    assert s.retrieval(FIRST, SECOND) == 0.5
    assert s.retrieval(FIRST + 7, SECOND + 7) == 0.5  # about the mean


def test_reciprocal_rank_by_hand():
    """Views 2 and 3 have one image before their own: ranks 1, 1, 2, 2."""
    assert s.reciprocal_rank(FIRST, SECOND) == 0.75


def test_neighbourhood_by_hand():
    """Two pairs, each other's nearest."""
    first = torch.tensor([[10.0, 1.0], [10.0, -1.0], [-10.0, 1.0], [-10.0, -1.0]], dtype=torch.float64)
    assert s.neighbourhood(first, first, k=1) == 1
    across = first[[0, 2, 1, 3]]  # images 1 and 2 have changed places: nobody's neighbour stays
    assert s.neighbourhood(first, across, k=1) == 0
    assert s.neighbourhood(first, across, k=3) == 1  # all others


def test_clusters_by_hand():
    """Two far groups of three; one image of six changes sides in its second view."""
    near = 0.01 * gaussian(6, 2)
    first = torch.tensor([[5.0, 0.0]] * 3 + [[-5.0, 0.0]] * 3, dtype=torch.float64) + near
    second = torch.tensor([[5.0, 0.0]] * 2 + [[-5.0, 0.0]] * 4, dtype=torch.float64) + near
    a, b = s.clusters(first, second, k=2)
    assert (a != a[0]).tolist() == [False] * 3 + [True] * 3
    assert (b != a[0]).tolist() == [False] * 2 + [True] * 4
    assert s.stability(first, first) == pytest.approx(1)
    assert s.shared_clusters(first, first) == pytest.approx(1)


def test_stability_is_the_adjusted_rand_index(monkeypatch):
    """Of the table [[2, 1], [0, 3]]: 4 pairs together in both, 3 + 3 and 1 + 6 in one: (4 - 2.8) / (6.5 - 2.8)."""
    given = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 0, 1, 1, 1, 1])
    monkeypatch.setattr(s, "clusters", lambda *views: given)
    assert s.stability(FIRST, FIRST) == pytest.approx((4 - 2.8) / (6.5 - 2.8))
    joint = (2 / 6) * math.log((2 / 6) / (1 / 2 * 1 / 3)) + (1 / 6) * math.log((1 / 6) / (1 / 2 * 2 / 3))
    joint += (3 / 6) * math.log((3 / 6) / (1 / 2 * 2 / 3))
    entropies = math.log(2), -(1 / 3) * math.log(1 / 3) - (2 / 3) * math.log(2 / 3)
    assert s.shared_clusters(FIRST, FIRST) == pytest.approx(joint / (sum(entropies) / 2))


def test_information_is_that_of_a_gaussian():
    """Each of four independent features correlates by r: 4 * -log(1 - r^2) / 2 nats; two more hold noise alone."""
    noise = 0.5
    shared = gaussian(40_000, 4)
    z1, z2 = (torch.cat([shared + noise * gaussian(40_000, 4, i), gaussian(40_000, 2, 9 + i)], 1) for i in (1, 2))
    r = 1 / (1 + noise**2)
    expected = -4 * math.log(1 - r**2) / 2
    assert s.information(z1, z2) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("name", ["information", "whitened retrieval", "whitened reciprocal rank"])
def test_linear_coordinates_do_not_matter(name):
    score, z = s.SCORES[name], torch.stack(two_views())
    mix = torch.linalg.qr(gaussian(6, 6, seed=5))[0] * torch.tensor([1, 1, 1, 3, 3, 0.5], dtype=torch.float64)
    assert score(z @ mix + 2) == pytest.approx(score(z), rel=0.1)  # but for the shrinkage


def test_whitened_retrieval_finds_what_a_loud_nuisance_hides():
    z1, z2 = two_views(noise=0.05)
    loud = [torch.cat([z, 100 * gaussian(400, 1, seed)], 1) for z, seed in ((z1, 7), (z2, 8))]
    assert s.retrieval(*loud) < 0.3
    assert s.whitened_retrieval(torch.stack(loud)) > 0.9
    assert s.whitened_reciprocal_rank(torch.stack(loud)) > 0.9


@pytest.mark.parametrize("name", s.SCORES)
def test_scores_fall_to_chance_where_views_are_of_other_images(name):
    """But for those that look at one view alone, and for those of pairs, which fall."""
    z1, z2 = two_views()
    right, wrong = (s.SCORES[name](torch.stack([z1, z])) for z in (z2, z2.roll(1, 0)))
    if name in ("effective rank (RankMe)", "centred rank", "uniformity"):
        assert right == wrong
        return
    chance = {"retrieval": 1 / 400, "whitened retrieval": 1 / 200, "neighbourhood": 10 / 399, "stability": 0}
    assert wrong < right
    if name in chance:
        assert wrong == pytest.approx(chance[name], abs=0.02)


@pytest.mark.parametrize("name", s.SCORES)
def test_a_collapsed_encoder_is_worst(name):
    """All rows alike but for rounding: no score says that this is as good as a spread of images."""
    z1, z2 = two_views()
    flat = [1 + 1e-5 * gaussian(400, 6, seed) for seed in (11, 12)]
    if name == "alignment":  # collapse aligns perfectly; alone it says nothing
        assert s.SCORES[name](torch.stack(flat)) == pytest.approx(0, abs=1e-8)
        return
    if name == "centred rank":  # noise has a rank
        flat = [torch.ones(400, 6, dtype=torch.float64)] * 2
    assert s.SCORES[name](torch.stack(flat)) < s.SCORES[name](torch.stack([z1, z2]))


def test_those_that_are_measures_already_are_these():
    z = torch.stack([*two_views(), two_views(noise=0.2)[0]])
    mean = lambda values: sum(map(float, values)) / 3  # noqa: E731
    pairs = [(0, 1), (0, 2), (1, 2)]
    assert s.SCORES["effective rank (RankMe)"](z) == pytest.approx(mean(measures.effective_rank(one) for one in z))
    assert s.SCORES["agreement"](z) == pytest.approx(mean(measures.agreement(z[i], z[j])[0] for i, j in pairs))
    assert s.SCORES["retrieval"](z) == pytest.approx(mean(s.retrieval(z[i], z[j]) for i, j in pairs))
    by_image = torch.stack([z[view, image] for image in range(400) for view in range(3)])
    assert s.SCORES["LiDAR"](z) == pytest.approx(float(measures.lidar(by_image, 3)))


@pytest.mark.parametrize("name", ["information", "whitened retrieval", "whitened reciprocal rank"])
def test_more_features_than_images_are_no_harm(name):
    """Twelve features, as they are and mixed into 300 with a little noise: of 60 images."""
    z = torch.stack(two_views(60, 12, 0.3))
    wide = z @ gaussian(12, 300, 8) + 0.05 * torch.stack([gaussian(60, 300, 5), gaussian(60, 300, 6)])
    assert s.SCORES[name](wide) > 0.7 * s.SCORES[name](z)
    other = torch.stack([wide[0], wide[1].roll(1, 0)])
    assert s.SCORES[name](other) < 0.3 * s.SCORES[name](wide)


def test_dead_features_and_dead_encoders_are_no_error():
    z = torch.cat([torch.stack(two_views()), torch.zeros(2, 400, 3, dtype=torch.float64)], 2)
    for name in ("information", "whitened retrieval", "whitened reciprocal rank"):
        assert s.SCORES[name](z) == pytest.approx(s.SCORES[name](z[:, :, :6]), rel=0.05)
        assert s.SCORES[name](torch.zeros(2, 400, 3, dtype=torch.float64)) <= 1 / 200
