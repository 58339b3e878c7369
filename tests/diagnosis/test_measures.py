import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from twinblock.core.errors import InputError
from twinblock.diagnosis import measures as d
from twinblock.diagnosis.measures import indicators, shares


def close(found, expected, tolerance=1e-9):
    np.testing.assert_allclose(np.asarray(found.detach()), expected, rtol=0, atol=tolerance * np.abs(expected).max())


def tensor(golden, key):
    return torch.from_numpy(golden[key]).requires_grad_()


@pytest.mark.parametrize("group", ["spread", "near_collapse"])
def test_std_of_normalised(golden, group):
    close(d.std_of_normalised(tensor(golden, f"zstd/{group}/Z")), golden[f"zstd/{group}/std_mean"])


@pytest.mark.parametrize("group", ["full", "lowrank", "wide", "collapsed"])
def test_effective_rank(golden, group):
    z = tensor(golden, f"rankme/{group}/Z").detach()
    close(d.effective_rank(z), golden[f"rankme/{group}/rankme_1e7"])
    close(d.effective_rank(z, eps=1e-5), golden[f"rankme/{group}/rankme_1e5"])
    assert indicators(z)["effective_rank"] == pytest.approx(float(golden[f"rankme/{group}/rankme_1e7"]), rel=2e-6)


@pytest.mark.parametrize("group", ["a", "b"])
def test_lidar(golden, group):
    z = tensor(golden, f"lidar/{group}/Z").detach()
    views, delta, eps = (golden[f"lidar/{group}/{name}"] for name in ("n_views", "delta", "eps"))
    close(d.lidar(z, int(views), float(delta), float(eps)), golden[f"lidar/{group}/lidar"], 1e-8)


def test_cosines(golden):
    z, t = tensor(golden, "posneg/z"), tensor(golden, "posneg/z_target")
    close(d.positive_cosine(z, t), golden["posneg/pos_cos"])
    close(d.negative_cosine(z, t), golden["posneg/neg_cos"])
    found = indicators(z, t)
    assert found["positive_cosine"] == pytest.approx(float(golden["posneg/pos_cos"]), rel=1e-9)
    assert found["negative_cosine"] == pytest.approx(float(golden["posneg/neg_cos"]), rel=1e-9)


@pytest.mark.parametrize("group", ["a", "b"])
def test_alignment_and_uniformity(golden, group):
    x, y = (tensor(golden, f"align_uniform/{group}/{name}") for name in "xy")
    alpha, t = (float(golden[f"align_uniform/{group}/{name}"]) for name in ("alpha", "t"))
    losses = {
        "align": d.alignment(x, y, alpha),
        "uniform_x": d.uniformity(x, t),
        "uniform_y": d.uniformity(y, t),
    }
    for name, loss in losses.items():
        close(loss, golden[f"align_uniform/{group}/{name}"])
    for name, side in (("align_x", x), ("align_y", y), ("uniform_x", x), ("uniform_y", y)):
        (gradient,) = torch.autograd.grad(losses.get(name, losses["align"]), side, retain_graph=True)
        close(gradient, golden[f"align_uniform/{group}/g_{name}"])


def gaussian(n=256, width=64, seed=0):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def test_dead_share_counts_dimensions_that_do_not_vary():
    z = gaussian(width=8)
    z[:, 2] = 0
    z[:, 5] = 3.3
    z[:, 6] *= 1e-3  # small, but alive
    assert d.dead_share(z) == 0.25
    assert d.dead_share(100 * z) == 0.25
    assert d.dead_share(torch.full((5, 3), 0.1)) == 1


def test_feature_norm():
    assert d.feature_norm(torch.tensor([[3.0, 4.0], [0.0, 1.0]])) == 3


def test_lidar_does_not_depend_on_linear_coordinates_and_counts_directions():
    """Images differ along 3 of 6 axes equally, views along all: 3 discriminants, in whatever coordinates."""
    means = torch.zeros(2000, 6, dtype=torch.float64)
    means[:, :3] = 3 * gaussian(2000, 3).double()
    views = means[:, None] + 0.01 * gaussian(8000, 6, seed=1).double().view(2000, 4, 6)
    mix = gaussian(6, 6, seed=2).double()
    found = d.lidar(views.flatten(0, 1), 4, delta=0.0)
    assert found == pytest.approx(3, abs=0.01)
    assert d.lidar(views.flatten(0, 1) @ mix, 4, delta=0.0) == pytest.approx(float(found), rel=1e-6)


def test_diagnose_of_an_isotropic_gaussian():
    z = gaussian()
    found = indicators(z, z + 0.1 * gaussian(seed=1))
    assert found["samples"] == 256
    assert found["dimensions"] == 64
    assert found["negative_cosine"] == pytest.approx(0, abs=0.02)
    assert found["positive_cosine"] == pytest.approx(1 / math.sqrt(1.01), abs=0.01)
    assert found["alignment"] == pytest.approx(2 - 2 * found["positive_cosine"])
    assert found["std"] == pytest.approx(1 / 8, rel=0.02)
    assert 56 < found["effective_rank"] <= 64
    assert found["uniformity"] == pytest.approx(float(d.uniformity(normalize(z))), rel=1e-5)
    assert found["feature_norm"] == pytest.approx(8, rel=0.02)
    assert found["dead_share"] == 0


def test_diagnose_sees_past_the_mean():
    z = gaussian() + 30
    found = indicators(z)
    assert found["effective_rank"] < 8
    assert found["centred_rank"] == pytest.approx(indicators(gaussian())["centred_rank"], rel=1e-3)


def test_diagnose_of_one_view_says_nothing_of_pairs():
    assert indicators(gaussian()).keys() == indicators(gaussian(), gaussian()).keys() - {
        "positive_cosine",
        "alignment",
    }


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_diagnose_of_what_is_not_finite(value):
    z = gaussian()
    z[3, 2] = value
    for found in (indicators(z), indicators(gaussian(), z)):
        assert found.pop("samples") == 256
        assert found.pop("dimensions") == 64
        assert all(math.isnan(number) for number in found.values())


def test_diagnose_leaves_no_graph_and_takes_half_precision():
    z = gaussian().requires_grad_()
    exact, rough = indicators(z, z), indicators(z.bfloat16(), z.bfloat16())
    assert all(isinstance(number, float) for number in exact.values())
    assert rough["effective_rank"] == pytest.approx(exact["effective_rank"], rel=0.01)


def test_diagnose_of_nothing_but_zeros():
    assert indicators(torch.zeros(4, 3))["effective_rank"] == pytest.approx(1, abs=1e-4)


def test_one_embedding_is_refused():
    with pytest.raises(InputError, match="at least 2"):
        indicators(gaussian(n=1))


def test_uniformity_of_rows_that_are_nearly_alike():
    """In float32 squares of whole lengths cancel, and so do logarithms of sums of many ones."""
    g = torch.Generator().manual_seed(0)
    z = torch.nn.functional.normalize(1 + 1e-4 * torch.randn(300, 16, generator=g, dtype=torch.float64))
    exact = torch.pdist(z.float().double()).square().mul(-2).expm1().mean().log1p()
    assert float(d.uniformity(z.float())) == pytest.approx(float(exact), rel=1e-5)


def test_agreement_is_what_the_cosines_say_and_its_error_is_the_jackknife():
    g = torch.Generator().manual_seed(0)
    shared, *own = torch.randn(3, 40, 12, generator=g, dtype=torch.float64)
    z1, z2 = (2 + shared + 0.7 * noise for noise in own)

    def by_cosines(a, b):
        within, between = (float(f(a, b)) for f in (d.positive_cosine, d.negative_cosine))
        return (within - between) / (1 - between)

    value, error = d.agreement(z1, z2)
    assert value == pytest.approx(by_cosines(z1, z2), rel=1e-9)
    without = np.array([by_cosines(*(torch.cat([z[:i], z[i + 1 :]]) for z in (z1, z2))) for i in range(40)])
    assert error == pytest.approx((39 / 40 * ((without - without.mean()) ** 2).sum()) ** 0.5, rel=1e-9)
    assert d.agreement(z1, z1)[0] == pytest.approx(1)
    assert abs(d.agreement(z1, z2.roll(1, 0))[0]) < 0.1  # other images' views agree by chance
    assert math.isnan(d.agreement(z1 * math.nan, z2)[0])


def test_the_error_of_agreement_is_its_spread_over_samples():
    g = torch.Generator().manual_seed(1)
    values, errors = [], []
    for _ in range(200):
        shared, *own = torch.randn(3, 64, 8, generator=g)
        value, error = d.agreement(*(shared + noise for noise in own))
        values.append(value)
        errors.append(error)
    assert np.std(values) == pytest.approx(np.mean(errors), rel=0.15)


def test_two_images_have_an_agreement_without_an_error():
    """Without one of them there are none to compare."""
    for seed in range(20):  # rounding may make 0 / 0 infinite
        value, error = d.agreement(*torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(seed)))
        assert math.isfinite(value) and math.isnan(error)


def test_dead_is_relative_to_the_size_of_all_entries():
    for scale in (1e-3, 1.0, 1e3):
        z = gaussian(width=4).double()
        z[:, 0] *= 1.5e-5  # std above 1e-5 of the root mean square 0.87, and below
        z[:, 1] *= 0.5e-5
        assert d.dead_share(scale * z) == 0.25


def test_lidar_in_double_precision_by_numpy():
    z = gaussian(60, 5).double()
    groups = z.numpy().reshape(20, 3, 5)
    means = groups.mean(1)
    within = (groups - means[:, None]).reshape(60, 5)
    within = within.T @ within / 40 + 0.1 * np.eye(5)
    between = np.cov(means.T)
    values = np.linalg.eigvals(np.linalg.solve(within, between)).real + 1e-8
    p = values / values.sum()
    assert float(d.lidar(z, 3, delta=0.1)) == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-11)


def test_shares_of_prototypes_by_hand():
    """Four images: two choose the first of four prototypes, two the last; two are certain, two hardly."""
    q = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 1.0], [0.26, 0.24, 0.25, 0.25], [0.25, 0.25, 0.24, 0.26]])
    found = shares(q)
    assert found["prototypes"] == 4 and found["used"] == pytest.approx(2)
    assert found["uncertainty"] == pytest.approx(0.5, abs=1e-3)
    alone = shares(torch.tensor([[0.6, 0.4]] * 5))
    assert alone["used"] == pytest.approx(1)
    assert alone["uncertainty"] == pytest.approx(-(0.6 * math.log(0.6) + 0.4 * math.log(0.4)) / math.log(2))
