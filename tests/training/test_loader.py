"""Batches in the order of seed and epoch: which rows each process gets, and when they are read."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

from twinblock.core.seeding import drawn, order
from twinblock.training.loader import Loader, Samples

CPU = torch.device("cpu")


def loader(images=None, batch=8, share=8, offset=0, seed=3) -> Loader:
    return Loader(images or tiny.images(20), seed, batch, share, offset, CPU)


def rows_of(step: int, batch: int = 8, count: int = 20, seed: int = 3) -> np.ndarray:
    """Those of a step by hand: whole batches of an epoch's order, what is over is left out."""
    epoch, i = divmod(step, count // batch)
    return order(seed, epoch, count)[batch * i : batch * (i + 1)]


@pytest.mark.parametrize(("start", "stop"), [(0, 5), (3, 5)])
def test_each_step_has_the_rows_of_its_place_in_the_epoch(start, stop):
    """Also of a run that goes on within an epoch."""
    images = replace(tiny.images(20), aspect=np.linspace(0.5, 2, 20, dtype=np.float32))
    given = list(loader(images).batches(start, stop))
    assert len(given) == stop - start
    for step, samples in zip(range(start, stop), given, strict=True):
        rows = rows_of(step)
        assert samples.index.tolist() == rows.tolist()
        assert np.array_equal(samples.pixels, images.pixels[rows])
        assert samples.labels.tolist() == images.labels[rows].tolist()
        assert np.array_equal(samples.aspect, images.aspect[rows])


def test_images_with_weights_are_drawn_by_them_anew_in_each_epoch():
    weights = np.linspace(0, 1, 20)
    given = list(loader(replace(tiny.images(20), weights=weights)).batches(0, 4))
    for step, samples in enumerate(given):
        epoch, i = divmod(step, 2)
        assert samples.index.tolist() == drawn(3, epoch, weights)[8 * i : 8 * (i + 1)].tolist()
    assert given[0].index.tolist() != given[2].index.tolist()


def test_the_parts_of_the_processes_are_the_batch():
    parts = [next(loader(share=4, offset=offset).batches(1, 2)).index for offset in (0, 4)]
    assert torch.cat(parts).tolist() == rows_of(1).tolist()


def test_what_is_over_in_an_epoch_is_left_out():
    assert loader().epoch_steps == 2
    assert loader(batch=10, share=10).epoch_steps == 2
    assert loader(batch=20, share=20).epoch_steps == 1


def test_the_order_of_one_epoch_alone_is_kept():
    """Of a hundred million images it is 800 MB."""
    through = loader()
    for step in range(6):
        through.gather(step)
    assert through.order.cache_info().currsize == 1


def test_the_next_batch_is_gathered_while_one_is_trained_on_and_none_beyond_the_last():
    under_test, gathered = loader(), []
    gather = under_test.gather
    under_test.gather = lambda step: gathered.append(step) or gather(step)
    for step, _ in enumerate(under_test.batches(0, 4)):
        assert gathered[: step + 1] == list(range(step + 1))  # the thread may still be about to begin the next
    assert gathered == [0, 1, 2, 3]


def test_images_without_labels_have_none():
    samples = next(loader(replace(tiny.images(20), labels=None)).batches(0, 1))
    assert samples.labels is None and samples.aspect is None


def test_on_another_device_views_still_draw_from_the_cpu():
    """Pixels and labels go there; aspect and index stay."""
    pixels, labels = torch.zeros(2, 4, 4, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    samples = Samples(pixels, labels, torch.ones(2), torch.arange(2))
    there = samples.to(torch.device("meta"))
    devices = [x.device.type for x in (there.pixels, there.labels, there.aspect, there.index)]
    assert devices == ["meta", "meta", "cpu", "cpu"]
    assert replace(samples, labels=None).to(CPU).labels is None


def test_no_copy_to_the_device_is_waited_for(monkeypatch):
    """From pinned memory it goes on beside the training."""
    pixels, labels = torch.zeros(2, 4, 4, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    waited, to = [], torch.Tensor.to

    def noted(tensor, *args, non_blocking=False, **kwargs):
        if tensor is pixels or tensor is labels:  # other threads may copy, too
            waited.append(not non_blocking)
        return to(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", noted)
    Samples(pixels, labels, None, torch.arange(2)).to(torch.device("meta"))
    assert waited == [False, False]
