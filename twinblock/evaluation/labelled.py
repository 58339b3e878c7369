"""The labelled images that features are measured on: some to fit probes on, others to test them on."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from twinblock.config.schema import Data
from twinblock.core.errors import InputError
from twinblock.core.seeding import order
from twinblock.data import Images, take
from twinblock.data.training import split_of, training


@dataclass(frozen=True)
class LabelledSets:
    """Images to fit on and to test on, and the class of each: a place in `classes`, the labels in order.

    A test image whose label is none of them has the number after the last, which no classifier gives.
    """

    train: Images
    test: Images
    classes: Int[np.ndarray, " c"]
    train_labels: Int[np.ndarray, " n"]
    test_labels: Int[np.ndarray, " q"]

    @classmethod
    def of(cls, train: Images, test: Images) -> "LabelledSets":
        """Number the labels of the training images in order."""
        assert train.labels is not None and test.labels is not None
        classes, train_labels = np.unique(train.labels, return_inverse=True)
        place = np.searchsorted(classes, test.labels)
        test_labels = np.where(np.isin(test.labels, classes), place, len(classes))
        return cls(train, test, classes, train_labels, test_labels)

    @property
    def images(self) -> tuple[Images, Images]:
        return self.train, self.test

    def __len__(self) -> int:
        """Images of both sets."""
        return len(self.train) + len(self.test)


def labelled(source: Data, seed: int, train: Images | None = None) -> tuple[Images, Images]:
    """The labelled images to fit on and to test on; a set without a test split gives a fixed fifth of each class.

    Test images may be of classes that are not in training, which come after those that are: they count as missed.
    """
    train = train or training(source)
    test = split_of(source, "test")
    if train.labels is None:
        raise InputError(f"{source.source} has no labels, so accuracy cannot be measured; name labelled data: data=...")
    if test is None or test.labels is None:
        held = _held_out(train.labels, seed)
        if not held.any():
            raise InputError(f"{source.source} has one image of each class, so none is left to test on; add some")
        train, test = take(train, np.flatnonzero(~held)), take(train, np.flatnonzero(held))
    names, tested = train.classes or (), test.classes or train.classes or ()
    if bool(names) != bool(tested) or names != tested[: len(names)]:
        raise InputError(
            f"{source.source}: the classes of its test images do not begin with those of its training images, in order"
        )
    return _with_labels(train), _with_labels(test)


def _held_out(labels: np.ndarray, seed: int) -> np.ndarray:
    """A fifth of each class, rounded up, so that rare classes are tested too; a single image is for fitting."""
    rows = order(seed, -2, len(labels))
    by_class = rows[np.argsort(labels[rows], kind="stable")]
    _, first, size = np.unique(labels[by_class], return_index=True, return_counts=True)
    rank = np.arange(len(rows)) - np.repeat(first, size)
    held = np.zeros(len(labels), bool)
    held[by_class[(rank % 5 == 0) & (np.repeat(size, size) > 1)]] = True
    return held


def _with_labels(images: Images) -> Images:
    assert images.labels is not None
    return images if (images.labels >= 0).all() else take(images, np.flatnonzero(images.labels >= 0))
