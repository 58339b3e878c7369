"""Test images of a group, such as frames of a video, are not independent: the error is that over groups."""

from dataclasses import replace

import numpy as np
import pytest
import tiny

import twinblock
from twinblock.diagnosis.chance import Accuracy

LABELS = np.arange(40) % 2
RIGHT = {"encoder": np.arange(40) % 3 > 0, "raw pixels": np.arange(40) % 5 > 1}


def test_copies_of_an_image_say_no_more_than_the_image():
    alone = Accuracy.of(RIGHT, LABELS, 100)
    copies = {name: values.repeat(20) for name, values in RIGHT.items()}
    grouped = Accuracy.of(copies, LABELS.repeat(20), 100, groups=np.arange(40).repeat(20))
    assert grouped.gains["raw pixels"] == pytest.approx(alone.gains["raw pixels"])
    believed = Accuracy.of(copies, LABELS.repeat(20), 100)
    assert believed.gains["raw pixels"][1] < alone.gains["raw pixels"][1] / 4
    assert (grouped.groups, alone.groups) == (40, None)


def test_the_error_by_hand():
    """Differences 100, 100, 0 and 0, -100: about their mean, 20, the groups sum to 140 and -140; 2 / 1 x 39200, / 5."""
    right = {"encoder": np.array([1, 1, 0, 0, 0], bool), "raw pixels": np.array([0, 0, 0, 0, 1], bool)}
    found = Accuracy.of(right, np.zeros(5, int), 9, groups=np.array([4, 4, 4, 7, 7]))
    assert found.gains["raw pixels"] == pytest.approx((20, (2 * (140**2 + 140**2)) ** 0.5 / 5))
    one = Accuracy.of(right, np.zeros(5, int), 9, groups=np.zeros(5, int))
    assert one.gains["raw pixels"] == pytest.approx((20, 100))  # one group tells nothing


def test_few_groups_do_not_show_that_labels_mean_something():
    labels = np.repeat([0, 1, 0, 1], 10)
    right = {"encoder": np.repeat([True, True, True, False], 10), "raw pixels": np.zeros(40, bool)}
    assert Accuracy.of(right, labels, 100).tells
    assert not Accuracy.of(right, labels, 100, groups=np.arange(4).repeat(10)).tells


def test_a_run_on_groups_says_how_many_there_were(tmp_path):
    images = replace(tiny.images(200), groups=np.arange(200) // 20)
    small = ["encoder.kind=resnet10", "encoder.width=8", "projector.dims=[8]", "data.batch=32", "train.length=1steps"]
    run = twinblock.pretrain("simclr", data=images, out=tmp_path / "run", overrides=small, quiet=True)
    accuracy = run.result["accuracy"]
    assert (accuracy["test"], accuracy["groups"]) == (40, 2)
