"""Published settings by length of training, and what is said of the lengths between them."""

import logging

import pytest

from twinblock.config.presets import preset
from twinblock.config.recipes import compose
from twinblock.core.errors import InputError


def byol(length, *overrides):
    config = compose("byol_imagenet", overrides=[f"train.length={length}", *overrides])
    return config.optim.lr, config.optim.weight_decay, config.target.momentum


@pytest.mark.parametrize(
    ("epochs", "values"),
    [(40, (0.45, 1e-6, 0.97)), (100, (0.45, 1e-6, 0.99)), (300, (0.3, 1e-6, 0.99)), (1000, (0.2, 1.5e-6, 0.996))],
)
def test_published_lengths_have_the_published_settings(epochs, values, caplog):
    assert byol(f"{epochs}epochs") == values
    assert not caplog.records


def test_a_length_between_is_interpolated_and_said_so(caplog):
    lr, decay, momentum = byol("173.2epochs")  # the geometric mean of 100 and 300
    assert (lr, decay, momentum) == (pytest.approx(0.375, rel=1e-3), 1e-6, 0.99)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "no settings are published for 173.2epochs; interpolated between 100 and 300" in record.message


@pytest.mark.parametrize(
    ("length", "values", "words"),
    [
        ("10epochs", (0.45, 1e-6, 0.97), "those of 40 epochs"),
        ("3000epochs", (0.2, 1.5e-6, 0.996), "those of 1000 epochs"),
        ("7steps", (0.2, 1.5e-6, 0.996), "published by epochs"),
    ],
)
def test_other_lengths(length, values, words, caplog):
    assert byol(length) == values
    assert words in caplog.text


def test_what_is_asked_for_wins():
    assert byol("100epochs", "optim.lr=7", "target.momentum=0.5") == (7, 1e-6, 0.5)
    assert compose("byol_imagenet", {"train": {"length": "40epochs"}}).target.momentum == 0.97


@pytest.mark.parametrize("presets", [3, {}, {"a": {}}, {100: 3}, {100: {"optim.lr": "x"}}, {1: {"a": 1}, 2: {"b": 1}}])
def test_presets_that_are_none(presets):
    with pytest.raises(InputError, match="presets map numbers of epochs"):
        preset(presets, "5epochs", "mine")


def test_a_part_that_is_no_mapping_is_one_line():
    with pytest.raises(InputError, match="train"):
        compose("byol_imagenet", overrides=["train=5"])
