"""The labelled images that features are measured on: some to fit probes on, others to test them on."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from twinblock.config.data import Data
from twinblock.core.errors import InputError
from twinblock.core.seeding import order
from twinblock.data import Images, take
from twinblock.data.training import split_of, training


@dataclass(frozen=True)
class LabelledSets:
    """Images to fit on and to test on, and the class of each: a place in `classes`, the labels in order.

    Of tiles the labels are those of the images that they are of.
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
        of_train, of_test = _labels_of(train), _labels_of(test)
        classes, train_labels = np.unique(of_train, return_inverse=True)
        place = np.searchsorted(classes, of_test)
        test_labels = np.where(np.isin(of_test, classes), place, len(classes))
        return cls(train, test, classes, train_labels, test_labels)

    @property
    def images(self) -> tuple[Images, Images]:
        return self.train, self.test

    def __len__(self) -> int:
        """Images of both sets."""
        return len(self.train) + len(self.test)


def _labels_of(images: Images) -> np.ndarray:
    """The labels; of tiles those of their images, in order of their groups."""
    assert images.labels is not None
    if not images.tiled:
        return images.labels
    assert images.groups is not None
    return images.labels[np.unique(images.groups, return_index=True)[1]]


def labelled(source: Data, seed: int, train: Images | None = None) -> tuple[Images, Images]:
    """The labelled images to fit on and to test on; a set without a test split gives a fixed fifth of each class.

    Test images may be of classes that are not in training, which come after those that are: they count as missed.
    """
    train, name = train or training(source), source.source_name
    test = split_of(source, "test")
    if train.labels is None:
        if train.indicators is not None:
            raise InputError(
                f"{name} has several classes an image, which finetune measures; freeze=encoder there is a linear probe"
            )
        raise InputError(f"{name} has no labels, so accuracy cannot be measured; name labelled data: data=...")
    if test is None or test.labels is None:
        held = _held_out(train.labels, seed) if train.groups is None else held_groups(train.groups, seed)
        if not held.any() or held.all():
            raise InputError(f"{name} has one image of each class, or one group, so none is left to test on; add some")
        train, test = take(train, np.flatnonzero(~held)), take(train, np.flatnonzero(held))
    need_same_classes(name, train, test)
    return _with_labels(train), _with_labels(test)


def need_same_classes(name: str, train: Images, test: Images) -> None:
    """Raises InputError unless the classes of the test images begin with those of the training images."""
    names, tested = train.classes or (), test.classes or train.classes or ()
    if bool(names) != bool(tested) or names != tested[: len(names)]:
        raise InputError(
            f"{name}: the classes of its test images do not begin with those of its training images, in order"
        )


def _held_out(labels: np.ndarray, seed: int) -> np.ndarray:
    """A fifth of each class, rounded up, so that rare classes are tested too; a single image is for fitting."""
    rows = order(seed, -2, len(labels))
    by_class = rows[np.argsort(labels[rows], kind="stable")]
    _, first, size = np.unique(labels[by_class], return_index=True, return_counts=True)
    rank = np.arange(len(rows)) - np.repeat(first, size)
    held = np.zeros(len(labels), bool)
    held[by_class[(rank % 5 == 0) & (np.repeat(size, size) > 1)]] = True
    return held


def held_groups(groups: np.ndarray, seed: int) -> np.ndarray:
    """A fifth of the groups, rounded up: what is seen at one place is not tested there. An image of none is one."""
    groups = each_its_group(groups)
    names = np.unique(groups)
    chosen = names[order(seed, -2, len(names))[: -(-len(names) // 5)]]
    return np.isin(groups, chosen)


def each_its_group(groups: np.ndarray) -> np.ndarray:
    """The group of each image; one of none, below 0, becomes a group of its own."""
    alone = np.flatnonzero(groups < 0)
    groups = groups.copy()
    groups[alone] = groups.max(initial=-1) + 1 + np.arange(len(alone))
    return groups


def _with_labels(images: Images) -> Images:
    assert images.labels is not None
    return images if (images.labels >= 0).all() else take(images, np.flatnonzero(images.labels >= 0))
