"""The settings of a view: what it is without any, and how far they may go."""

import numpy as np
import pytest
import torch
from pictures import one_line
from pydantic import ValidationError

from twinblock.core.errors import InputError
from twinblock.views import UNIFORM, View, Views, draw


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


@pytest.mark.parametrize("channels", [1, 2, 4, 12])
def test_colour_of_other_than_three_channels_is_refused_with_what_to_set(channels):
    """Whatever is refused is taken once it is set as the line says."""
    for fields in (
        {"jitter": (0.4, 0.4, 0.2, 0)},
        {"jitter": (0.4, 0.4, 0, 0.1)},
        {"gray": 0.2},
        {"solarize": 0.2},
    ):
        view = View(**{"jitter": (0.4, 0.4, 0, 0), "gray": 0, **fields})
        (name,) = fields
        make = lambda view: Views([view], 8, [0.5] * channels, [0.5] * channels)  # noqa: E731
        if name == "solarize" and channels == 1:
            make(view)
            continue
        said = f"view 0: colour has no meaning for {channels} channels?; set {name}="
        with pytest.raises(InputError, match=said) as error:
            make(view)
        one_line(error)
        make(view.model_copy(update={name: (0.4, 0.4, 0, 0) if name == "jitter" else 0}))


def test_images_of_other_channels_than_means_are_refused():
    views = Views([View()], 8, [0.5] * 3, [0.5] * 3)
    with pytest.raises(InputError, match="images of 1 channel, and mean has 3 values: give mean and std") as error:
        views(torch.zeros(2, 9, 9, 1, dtype=torch.uint8), seed=0, epoch=0, step=0, batch=2)
    one_line(error)


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
