"""What a classifier is fine-tuned for: one class an image, measured by accuracy, or several, by average precision."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from twinblock.config.data import Data
from twinblock.core.errors import InputError
from twinblock.core.seeding import order
from twinblock.data import Images, take
from twinblock.data.tails import by_class
from twinblock.data.training import split_of, training
from twinblock.evaluation.labelled import LabelledSets, held_groups, labelled, need_same_classes

HELD_OUT = 5  # every fifth image chooses the learning rate, and tests where there is no test split


@dataclass(frozen=True)
class OneClass:
    """One class an image: cross-entropy, and top-1 accuracy in percent."""

    sets: LabelledSets
    measure = "accuracy %"
    several = False  # whether an image may be of several classes

    @property
    def images(self) -> tuple[Images, Images]:
        return self.sets.images

    @property
    def names(self) -> list[str]:
        """Of the classes, in order of their scores."""
        given = self.sets.train.classes
        return [given[i] if given and i < len(given) else str(i) for i in self.sets.classes.tolist()]

    @property
    def targets(self) -> tuple[Tensor, Tensor]:
        """What is to be predicted of the images to train on, and of those to test on."""
        return torch.from_numpy(self.sets.train_labels), torch.from_numpy(self.sets.test_labels)

    def part(self, fraction: float, seed: int) -> Int[np.ndarray, " m"]:
        """Rows of so large a part of each class, one image at least; parts of one seed lie within each other."""
        parts = [rows[: max(1, round(fraction * len(rows)))] for rows in by_class(self.sets.train_labels, seed)]
        return np.sort(np.concatenate([part for part in parts if len(part)]))

    def held_out(self, rows: Int[np.ndarray, " m"], seed: int) -> Bool[np.ndarray, " m"]:
        """A fifth of these rows, of each class, to choose on; classes of one image are all trained on."""
        held = np.zeros(len(rows), bool)
        for some in by_class(self.sets.train_labels[rows], seed):
            held[some[: max(1, len(some) // HELD_OUT) if len(some) > 1 else 0]] = True
        return held

    def loss(self, scores: Float[Tensor, "n c"], targets: Int[Tensor, " n"]) -> Tensor:
        return cross_entropy(scores, targets)

    def measured(self, scores: Float[Tensor, "n c"], targets: Int[Tensor, " n"]) -> float:
        return 100 * float((scores.argmax(1) == targets).double().mean())

    def score(self, measured: Any) -> float:
        """In percent."""
        return measured


@dataclass(frozen=True)
class SeveralClasses:
    """Several classes an image: binary cross-entropy of each class, and their average precisions in percent.

    `columns`: the classes, as columns of `Images.indicators`. Cells that are not known count in nothing.
    """

    train: Images
    test: Images
    columns: Int[np.ndarray, " c"]
    measure = "mAP %"
    several = True

    @classmethod
    def of(cls, train: Images, test: Images) -> "SeveralClasses":
        """The classes are those that some training images are of, and some are not. Raises InputError where there are
        none, and where test images tell of none.
        """
        told, tested = _tells(train), _tells(test)
        if not told.any() or not (told & tested[: len(told)]).any():
            raise InputError(f"{train.name}: no class has images that are of it, and others, to train and to test on")
        return cls(train, test, np.flatnonzero(told))

    @property
    def images(self) -> tuple[Images, Images]:
        return self.train, self.test

    @property
    def names(self) -> list[str]:
        given = self.train.classes
        return [given[i] if given else str(i) for i in self.columns.tolist()]

    @property
    def targets(self) -> tuple[Tensor, Tensor]:
        first, second = (torch.from_numpy(self._indicators(images)) for images in self.images)
        return first, second

    def _indicators(self, images: Images) -> np.ndarray:
        assert images.indicators is not None
        return images.indicators[:, self.columns]

    def part(self, fraction: float, seed: int) -> Int[np.ndarray, " m"]:
        """Rows of so large a part of the images, drawn at random; and the first of each class that would have none.
        Parts of one seed lie within each other.
        """
        shuffled = order(seed, -3, len(self.train))
        chosen = shuffled[: max(1, round(fraction * len(shuffled)))]
        positive = self._indicators(self.train)[shuffled] == 1
        missing = ~positive[: len(chosen)].any(0)
        return np.sort(np.union1d(chosen, shuffled[positive.argmax(0)[missing]]))

    def held_out(self, rows: Int[np.ndarray, " m"], seed: int) -> Bool[np.ndarray, " m"]:
        """A fifth of these rows, drawn at random, to choose on; none is the last to train a class on."""
        return spared(self._indicators(self.train)[rows] == 1, order(seed, -4, len(rows)))

    def loss(self, scores: Float[Tensor, "n c"], targets: Int[Tensor, "n c"]) -> Tensor:
        """The sum over classes, so that each class learns alike however many there are; the mean over images."""
        each = binary_cross_entropy_with_logits(scores, targets.clamp_min(0).to(scores.dtype), reduction="none")
        return (each * (targets >= 0)).sum() / len(scores)

    def measured(self, scores: Float[Tensor, "n c"], targets: Int[Tensor, "n c"]) -> list[float | None]:
        """Of each class; None without an image that is of it, or one that is not."""
        return [average_precision(one, truth) for one, truth in zip(scores.T, targets.T, strict=True)]

    def score(self, measured: Any) -> float:
        """The mean over the classes that images tell of; NaN where they tell of none."""
        found = [value for value in measured if value is not None]
        return sum(found) / len(found) if found else float("nan")


Goal: TypeAlias = OneClass | SeveralClasses


def average_precision(scores: Float[Tensor, " n"], truth: Int[Tensor, " n"]) -> float | None:
    """The sum over k of (recall at k - recall at k - 1) times precision at k, in percent, by falling score.

    Equal scores are one step, as in scikit-learn. `truth`: 1, 0, or -1 for not known, which does not count. None
    without a 1 or without a 0.
    """
    from sklearn.metrics import average_precision_score

    known = truth >= 0
    if not (truth == 1).any() or not (truth == 0).any():
        return None
    return 100 * float(average_precision_score(truth[known].numpy(), scores[known].double().numpy()))


def spared(positive: Bool[np.ndarray, "n c"], shuffled: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """A fifth of the rows in this order, rounded down, of which none is the last that is left of a class."""
    held, left, wanted = np.zeros(len(positive), bool), positive.sum(0), len(positive) // HELD_OUT
    for row in shuffled:
        if wanted == 0:
            break
        if (left[positive[row]] > 1).all():
            held[row] = True
            left = left - positive[row]
            wanted -= 1
    return held


def goal_of(source: Data, seed: int, images: Images | None = None) -> Goal:
    """What the labels of a source ask for; a set without a test split is tested on a fixed fifth."""
    train = training(source, images)
    if train.indicators is None:
        return OneClass(LabelledSets.of(*labelled(source, seed, train)))
    test = split_of(source, "test")
    if test is None or test.indicators is None:
        held = held_groups(train.groups, seed) if train.groups is not None else _held(train.indicators, seed)
        if not held.any() or held.all():
            raise InputError(f"{source.source_name} has too few images to hold some out to test on; add some")
        train, test = take(train, np.flatnonzero(~held)), take(train, np.flatnonzero(held))
    need_same_classes(source.source_name, train, test)
    return SeveralClasses.of(_known(train), _known(test))


def _held(indicators: np.ndarray, seed: int) -> Bool[np.ndarray, " n"]:
    return spared(indicators == 1, order(seed, -2, len(indicators)))


def _tells(images: Images) -> Bool[np.ndarray, " c"]:
    assert images.indicators is not None
    return (images.indicators == 1).any(0) & (images.indicators == 0).any(0)


def _known(images: Images) -> Images:
    assert images.indicators is not None
    known = (images.indicators >= 0).any(1)
    return images if known.all() else take(images, np.flatnonzero(known))
