"""The embedded data: always the same, split by digit, and not to be read off from raw pixels."""

import time

import numpy as np
import torch
from sklearn.datasets import load_digits

from twinblock.data.photodigits import RENDERINGS, digits_of, photodigits, render, scanned
from twinblock.evaluation import knn_scores, pixels


def test_counts_shapes_and_classes():
    train, test = photodigits("train"), photodigits("test")
    assert (len(train), len(test)) == (5752, 1436)
    for images in (train, test):
        assert images.pixels.shape == (len(images), 32, 32, 3)
        assert images.pixels.dtype == np.uint8
        assert images.labels.dtype == np.int64
        assert np.bincount(images.labels, minlength=10).min() > 0.08 * len(images)
        assert images.classes == tuple("0123456789")


def test_no_digit_is_on_both_sides_and_all_are_used():
    _, labels = load_digits(return_X_y=True)
    train, test = digits_of("train", labels), digits_of("test", labels)
    assert sorted([*train, *test]) == list(range(1797))
    assert np.array_equal(photodigits("test").labels, np.repeat(labels[test], RENDERINGS))


def test_the_digits_are_scikit_learns():
    images, labels = load_digits(return_X_y=True)
    for ours, theirs in zip(scanned(), (images, labels), strict=True):
        assert np.array_equal(ours, theirs)


def test_it_is_made_quickly_and_always_the_same():
    render.cache_clear()
    start = time.process_time()
    first = photodigits("train")
    assert time.process_time() - start < 5
    render.cache_clear()
    again, other = photodigits("train"), photodigits("train", seed=1)
    assert np.array_equal(first.pixels, again.pixels)
    assert (first.pixels != other.pixels).mean() > 0.5
    assert np.array_equal(first.labels, other.labels)


def test_renderings_of_a_digit_differ():
    images = photodigits("test").pixels.reshape(-1, RENDERINGS, 32, 32, 3).astype(float)
    assert np.abs(images[:, 0] - images[:, 1]).mean((1, 2, 3)).min() > 5


def test_raw_pixels_tell_little():
    """By the kNN of `twinblock evaluate`, with 200 neighbours; with 20 of them raw pixels tell half of the digits."""
    train, test = photodigits("train"), photodigits("test")
    scores = knn_scores(pixels(train, 32), torch.from_numpy(train.labels), pixels(test, 32), 10)
    assert 0.12 < float((scores.argmax(1) == torch.from_numpy(test.labels)).float().mean()) <= 0.3
