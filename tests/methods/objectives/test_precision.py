"""In float32 objectives keep what float64 gives, also where most of a sum is not what is asked for."""

import pytest
import torch

from twinblock.core.errors import InputError
from twinblock.methods.objectives import BarlowTwins, InfoNCE, NTXent, Regression, Supervised, VICReg
from twinblock.nn.pooling import Noise


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def value_and_gradient(objective, z, t, dtype):
    z = z.to(dtype).requires_grad_()
    loss = objective.to(dtype)(z, t.to(dtype))
    (gradient,) = torch.autograd.grad(loss, z)
    return loss.detach().double(), gradient.double()


def assert_as_exact(objective, z, t, of_value=3e-7, of_gradient=1e-5):
    """Errors relative to the value, and to the norm of the gradient."""
    z, t = z.float().double(), t.float().double()  # numbers that both types have
    value, gradient = value_and_gradient(objective, z, t, torch.float64)
    value32, gradient32 = value_and_gradient(objective, z, t, torch.float32)
    assert abs(value32 - value) <= of_value * value
    assert (gradient32 - gradient).norm() <= of_gradient * gradient.norm()


@pytest.mark.parametrize("width", [1, 10, 100, 1000])
@pytest.mark.parametrize("shape", [(256, 64), (64, 256)])
def test_a_wide_dimension_hides_no_covariance(width, shape):
    z, t = draw(*shape, seed=1), draw(*shape, seed=2)
    z[:, 0] *= width
    assert_as_exact(VICReg(0, 0, 1), z, t)


@pytest.mark.parametrize("shape", [(256, 128), (64, 256)])
def test_one_dimension_alone_has_no_covariance(shape):
    z = torch.zeros(shape)
    z[:, 0] = 1e3 * draw(shape[0]).float()
    assert VICReg(0, 0, 1)(z, z) == 0


@pytest.mark.parametrize("shape", [(512, 16), (64, 63)])
def test_little_correlation_is_not_lost_beside_the_diagonal(shape):
    """The off-diagonal of almost decorrelated views is a millionth of the diagonal."""
    z, _ = torch.linalg.qr(draw(*shape, seed=1) - draw(*shape, seed=1).mean(0))
    z = z + 1e-6 * draw(*shape, seed=2)
    value = BarlowTwins(1.0)(z.float(), z.float())
    assert value >= 0
    diagonal = (1 - BarlowTwins(0.0)(z, z)).item()
    torch.testing.assert_close(
        BarlowTwins(1.0)(z.float(), z.float()) - BarlowTwins(0.0)(z.float(), z.float()),
        (BarlowTwins(1.0)(z, z) - BarlowTwins(0.0)(z, z)).float(),
        rtol=1e-2,
        atol=1e-9 * diagonal,
    )


@pytest.mark.parametrize("distance", [1e-1, 1e-2, 1e-3])
def test_the_last_bit_of_way_to_the_target_counts(distance):
    t = torch.nn.functional.normalize(draw(64, 32, seed=1), dim=1)
    z = t + distance * draw(64, 32, seed=2) / 32**0.5
    assert_as_exact(Regression(), z, t, 1e-6 / distance, 1e-6 / distance)
    assert Regression()(t.float(), t.float()) < 1e-13


def test_a_query_far_from_the_queue_still_has_a_loss():
    """Queries equal to their keys and opposite to the queue: the loss is e^-20 for each key of the queue."""
    objective, z = InfoNCE(16, 8, 0.1), torch.ones(4, 16, dtype=torch.float64)
    objective.queue.copy_(-torch.ones(8, 16) / 4)
    value, _ = value_and_gradient(objective, z, z, torch.float32)
    assert value.item() == pytest.approx(8 * 2.061153622438558e-09, rel=1e-5)


@pytest.mark.parametrize("mean", [1, 1e2, 1e4])
def test_the_mean_of_a_map_does_not_hide_its_spread(mean):
    x = (mean + draw(20, 3, 8, 8)).float()
    exact, given = x.double().std(), x.clone().requires_grad_()
    found = Noise(0.25).std(given)
    assert found.item() == pytest.approx(exact.item(), rel=1e-6)
    found.backward()
    expected = (x.double() - x.double().mean()) / (exact * (x.numel() - 1))
    assert (given.grad - expected).norm() <= 3e-7 * mean * expected.norm()  # the mean itself is a float32


def test_the_spread_of_half_precision_is_taken_in_float32():
    x = (3 + draw(40, 3, 8, 8)).bfloat16().requires_grad_()
    found = Noise(0.25).std(x)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(x.double().std().item(), rel=1e-6)
    found.backward()
    assert x.grad.dtype == torch.bfloat16


# ----------------------------------------------------------------------------- batches that are none

EMBEDDINGS = [NTXent(0.2), Regression(), BarlowTwins(0.005), VICReg(), InfoNCE(16, 64, 0.2)]


def one_line(objective, z, t, words):
    with pytest.raises(InputError, match=words) as caught:
        objective(z, t)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("objective", EMBEDDINGS, ids=lambda objective: type(objective).__name__)
def test_a_batch_too_small_for_the_formula_is_one_line_and_no_nan(objective):
    least = 2 if isinstance(objective, BarlowTwins | VICReg) else 1
    assert objective.least_rows == least
    for n in range(4):
        z, t = draw(n, 16, seed=1).float().requires_grad_(), draw(n, 16, seed=2).float()
        if n < least:
            one_line(objective, z, t, f"needs {least} samples or more, not {n}: leave this batch out")
        else:
            loss = objective(z, t)
            loss.backward()
            assert loss.isfinite()
            assert z.grad.isfinite().all()


def test_one_image_alone_has_no_negatives_and_no_loss():
    """The sum over all other views holds the positive alone: log 1."""
    z = draw(1, 16).requires_grad_()
    loss = NTXent(0.2)(z, draw(1, 16, seed=1))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-15)
    assert z.grad.abs().max() < 1e-14


@pytest.mark.parametrize("shape", [(16,), (8, 4, 16), (8, 16, 2, 2), ()])
def test_what_is_no_matrix_is_one_line(shape):
    for objective in EMBEDDINGS:
        one_line(
            objective,
            torch.ones(shape),
            torch.ones(shape),
            r"takes embeddings of shape \(n, d\), one row a sample, not",
        )
    one_line(Supervised(), torch.ones(shape), torch.zeros(shape[:1], dtype=torch.int64), r"\(n, d\)")


@pytest.mark.parametrize("shape", [(7,), (8, 1), ()])
def test_labels_are_one_a_row(shape):
    one_line(
        Supervised(), torch.ones(8, 3), torch.zeros(shape, dtype=torch.int64), r"scores of \(8, 3\) with labels of \("
    )
