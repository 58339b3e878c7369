"""The settings of a view: what it is without any, and how far they may go."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from twinblock.views import UNIFORM, View, draw


def test_what_a_view_is_unless_it_is_said():
    """As the reference of the fields says; a recipe that leaves a field out rests on it."""
    view = View()
    assert (view.crop, view.flip, view.jitter, view.jitter_p) == ((0.2, 1.0), 0.5, (0.4, 0.4, 0.2, 0.1), 0.8)
    assert (view.gray, view.blur, view.solarize, view.interpolation) == (0.2, 0.0, 0.0, "bilinear")
    assert (view.size, view.count) == (None, 1)


@pytest.mark.parametrize(
    ("name", "least", "most", "below", "beyond"),
    [
        ("size", 8, 1024, 7, 1025),
        ("count", 1, 64, 0, 65),
        ("flip", 0.0, 1.0, -0.01, 1.01),
        ("jitter", (0, 0, 0, 0), (1e3, 1e3, 1e3, 0.5), (0, 0, 0, -0.01), (1001, 0, 0, 0)),
        ("jitter", (0, 0, 0, 0), (0, 0, 0, 0.5), (0, -1, 0, 0), (0, 0, 0, 0.51)),
    ],
)
def test_settings_have_bounds(name, least, most, below, beyond):
    for value in (least, most):
        assert getattr(View(**{name: value}), name) == value
    for value in (below, beyond):
        with pytest.raises(ValidationError):
            View(**{name: value})


def test_a_box_that_fits_may_be_one_pixel_and_the_whole():
    """The smallest share of 10 x 10 pixels is one pixel; the whole area at ratio 1 is all."""
    u = np.zeros((1, sum(UNIFORM)))
    u[0, 1:20:2] = 0.5  # ratio 1
    assert draw(View(crop=(0.01, 1.0)), u, 10, 10).box.tolist() == [[0, 0, 1, 1]]
    u[0, :20:2] = 1.0
    assert draw(View(crop=(0.01, 1.0)), u, 10, 10).box.tolist() == [[0, 0, 10, 10]]


def test_a_box_of_a_very_wide_image_is_at_least_one_stored_pixel_wide():
    """4/3 of the height is a tenth of a stored pixel: one is taken, in the middle."""
    u = np.zeros((1, sum(UNIFORM)))
    assert draw(View(crop=(1.0, 1.0)), u, 2, 3, torch.tensor([30.0])).box.tolist() == [[0, 1, 2, 1]]
