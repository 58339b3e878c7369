"""Views as a GPU makes them, several as one batch, and the parcel that brings it their numbers."""

import numpy as np
import pytest
import torch
from pictures import photos

import twinblock.views as module
from twinblock.views import View, Views
from twinblock.views.parcel import Parcel

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
EVERYTHING = View(jitter=(0.4, 0.4, 0.2, 0.4), gray=0.5, blur=0.5, solarize=0.3)


@pytest.mark.parametrize(("height", "width", "size"), [(40, 40, 32), (90, 70, 48)])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_views_made_as_one_batch_are_those_made_one_by_one(height, width, size, channels, monkeypatch):
    """As on a GPU, where runs of equal operations are long: but for the last bits, since sums have another order."""
    images = photos(20, height, width)[..., :channels].contiguous()
    colour = {} if channels == 3 else {"jitter": (0.4, 0.8, 0, 0), "gray": 0}
    solarized = {} if channels != 2 else {"solarize": 0}
    first = EVERYTHING.model_copy(update={"count": 2, **colour, **solarized})
    specs = [first, View(size=24, interpolation="bicubic", **colour), View(blur=1.0, **colour)]
    make = Views(specs, size, MEAN[:channels], STD[:channels])
    place = {"seed": 3, "epoch": 1, "step": 2, "batch": 20}
    expected = make(images, **place)
    monkeypatch.setattr(module, "small_runs", lambda device: False)
    found = make(images, **place)
    assert [view.shape[-1] for view in found] == [size, size, 24, size]
    for view, other in zip(found, expected, strict=True):
        close = (view - other).abs() < 16 * torch.finfo(torch.float32).eps / min(STD)
        assert close.float().mean() > 0.999  # near the threshold of solarisation one may fall on the other side
        assert view.is_contiguous()
    versions = [view._version for view in found]
    found[0].add_(1)
    assert [view._version for view in found[1:]] == versions[1:], "a network may change its input in place"


def test_a_parcel_gives_back_what_it_was_given():
    """Floats as float32, all else as int64, of any shape, also none."""
    parcel, rng = Parcel(), np.random.default_rng(0)
    given = [
        rng.random((3, 5)),
        np.arange(70),
        np.zeros((0, 4)),
        np.full((), 2.5),
        np.array([[True], [False]]),
    ]
    parts = [parcel.add(values) for values in given]
    parcel.send(torch.device("cpu"))
    for values, part in zip(given, parts, strict=True):
        assert part().dtype == (torch.float32 if values.dtype.kind == "f" else torch.int64)
        assert part().shape == values.shape
        assert np.array_equal(part().numpy(), values.astype(np.float32 if values.dtype.kind == "f" else np.int64))
    assert len({part().untyped_storage().data_ptr() for part in parts}) == 2
