"""Views of several sizes: what shares a pass learns as it does alone, where nothing looks at the batch."""

import copy

import pytest
import tiny
import torch

from twinblock.assembly.build import encoder_of, make_learners
from twinblock.assembly.resolve import resolve
from twinblock.config.schema import check
from twinblock.core.errors import InputError
from twinblock.methods.learner import Batch, Learner, Signal


def learners(method: str, **scope):
    tree = tiny.cropped(tiny.config(method, "simultaneous", norm="none")).model_dump(mode="json")
    tree["encoder"] |= {"drop_path": 0.5}
    tree["scope"] |= scope
    config = resolve(check(tree), tiny.images(), torch.device("cpu"))
    return make_learners(config, encoder_of(config).double(), 3, None)


@pytest.mark.parametrize("method", ["simclr", "dino", "sdclr", "byol"])
@pytest.mark.parametrize("over", ["all", "c"])
def test_a_shared_pass_draws_and_learns_as_passes_of_single_views_do(method, over, monkeypatch):
    """Noise and dropped paths too are those of each view, on a process that does not begin at the first sample."""
    blocks = [learner.double() for learner in learners(method, noise=0.5, noise_over=over)]
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(6, 3, side, side, generator=generator, dtype=torch.float64) for side in (16, 16, 8, 8)]
    batch = Batch(torch.arange(6) % 3, (3, 5), offset=18)
    found = []
    for alone in (False, True):
        if alone:
            monkeypatch.setattr(Learner, "passes_of", lambda self, views: [[[i]] for i in sorted(views)])
        signal, grads, losses = Signal.from_views(views), [], []
        for learner in copy.deepcopy(blocks):
            loss, signal, _ = learner(signal, batch)
            loss.backward()
            losses.append(loss.detach())
            grads += [p.grad for p in learner.parameters() if p.requires_grad]
        found.append((losses, grads))
    for together, alone in zip(*found, strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("scope", "words"),
    [
        ({"noise": 0.5, "noise_over": "hw"}, "scope.noise_over=hw: the map of block 4 for views of 8 px is one place"),
        ({"pool": "l2", "grid": 2}, "scope.grid=2 is more than the 1 x 1 map of block 4 for views of 8 px has"),
    ],
)
def test_maps_of_small_crops_that_are_too_small_are_said(scope, words):
    with pytest.raises(InputError, match=words):
        learners("simclr", **scope)
