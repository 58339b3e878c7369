"""What a run shows that has learned nothing, and when its loss or accuracy is clearly better."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from twinblock.config.schema import Config
from twinblock.methods import learners, targets
from twinblock.methods.learner import pairs_of

LEARNED = "learned"
SURE = 2.0  # standard errors
SURE_OF_LABELS = 3.0  # more, as the best of four accuracies is compared with chance
LARGEST = 2**31  # the side of views whose size is not chosen yet
SMALL = 0.01  # part of what a loss can fall by that is no fall
PIXELS, UNTRAINED = "raw pixels", "untrained encoder"
CALIBRATED = "untrained encoder whose batch norms have seen images"
STARTING, ADAPTED = "starting weights", "starting weights whose batch norms have seen images"
AT_CHANCE = "no features tell the classes apart better than chance, so they say nothing of the encoder"
CLASSES_ARE = "classes are"


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy in percent on labelled test images, and by how much the encoder is better than each baseline.

    `gains`: the difference in points and its standard error. All are measured on the same images, so the error is that
    of the mean difference of right and wrong over images (McNemar): what is hard for both does not count. Images of a
    group, such as the frames of a video, are no independent ones: the error is that over `groups` of test images.
    """

    top1: Mapping[str, float]
    gains: Mapping[str, tuple[float, float]]
    train: int
    test: int
    chance: float  # of always naming the most frequent class of the test images
    classes_from: str | None = None
    groups: int | None = None  # None: each image is one

    @classmethod
    def of(
        cls,
        right: Mapping[str, np.ndarray],
        labels: np.ndarray,
        train: int,
        classes_from: str | None = None,
        groups: np.ndarray | None = None,
    ) -> "Accuracy":
        """`right`: for `encoder` and each baseline, which test images got their label. `groups`: of each, from 0 on."""
        n = len(labels)
        group = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
        count = int(group.max(initial=-1)) + 1
        gains = {}
        for name, others in right.items():
            if name != "encoder":
                difference = 100 * (right["encoder"].astype(float) - others)
                sums = np.bincount(group, difference - difference.mean())
                error = float((count / (count - 1) * (sums**2).sum()) ** 0.5) / n if count > 1 else 100.0
                gains[name] = float(difference.mean()), error
        top1 = {name: 100 * float(values.mean()) for name, values in right.items() if name not in (CALIBRATED, ADAPTED)}
        chance = 100 * float(np.unique(labels, return_counts=True)[1].max()) / n
        return cls(top1, gains, train, n, chance, classes_from, None if groups is None else count)

    @property
    def tells(self) -> bool:
        """Whether any features tell the classes apart better than chance; names that mean nothing no features do."""
        error = (self.chance * (100 - self.chance) / (self.groups or self.test)) ** 0.5
        return max(self.top1.values()) > self.chance + SURE_OF_LABELS * error


def by_accuracy(headline: str, evidence: str, accuracy: Accuracy, config: Config | None) -> dict[str, str]:
    """Headline and evidence of a finished run with the accuracy of its encoder beside what its views show.

    It has to be clearly better than the untrained encoder, and than the weights that it started from.
    """
    folders = (accuracy.classes_from or "").replace("top folder", "the top folders", 1)
    resting = f"; {CLASSES_ARE} {folders}" if _of_folders(accuracy) else ""
    if not accuracy.tells and not (config is not None and config.labelled):
        return {"headline": headline, "evidence": f"{evidence}; {AT_CHANCE}{resting}"}
    found = LEARNED
    for name, (gain, error) in accuracy.gains.items():
        if name != PIXELS and gain <= SURE * error:
            than = "the starting weights" if name in (STARTING, ADAPTED) else "untrained"
            found = f"no better than {than}" if gain <= 0 else "too close to tell"
            found = f"worse than {than}" if gain < -SURE * error else found
            evidence = f"{evidence}; {_cannot_tell(name, gain, error, accuracy)}"
            break
    else:
        if PIXELS in accuracy.gains and accuracy.gains[PIXELS][0] <= 0:
            found = "no better than raw pixels"
            evidence = f"{evidence}; kNN of the raw pixels is {accuracy.top1[PIXELS]:.1f} %"
    return {"headline": found, "evidence": evidence + resting}


def remarks(evidence: str) -> list[str]:
    """What is to be said of labels even where a run has learned."""
    return [part for part in evidence.split("; ") if part.startswith((AT_CHANCE, CLASSES_ARE))]


def _cannot_tell(name: str, gain: float, error: float, accuracy: Accuracy) -> str:
    if gain < -SURE * error:
        return f"kNN is {-gain:.1f} ± {error:.1f} points below the {name}"
    of_groups = "" if accuracy.groups is None else f" of {accuracy.groups} groups"
    return (
        f"{accuracy.test:,} test images{of_groups} cannot tell kNN from the {name}'s: {gain:+.1f} points with a "
        f"standard error of {error:.1f}, and {SURE * error:.1f} would be clear"
    )


def _of_folders(accuracy: Accuracy) -> bool:
    return "folder" in (accuracy.classes_from or "")


def chance_loss(config: Config | None) -> float | None:
    """The loss of embeddings that say nothing of which view belongs to which, at least; None for other objectives."""
    known = _chance(config)
    return None if known is None else known[0] * known[1]


def _chance(config: Config | None) -> tuple[float, float] | None:
    """That loss of one pair of views, and what it is multiplied by: the number of pairs in a step times the scale."""
    if config is not None and config.learner is not None:
        cls = learners.KINDS.get(config.learner.kind)
        chance = None if cls is None else cls.chance(config.learner, config.data.batch)
        return None if chance is None else (chance, 1.0)
    if config is None or config.objective is None or config.objective_class is None:
        return None
    chance = config.objective_class.chance(config.objective, config.data.batch)
    if chance is None or config.target.kind not in targets.KINDS:
        return None
    # which pairs there are follows from facts of the classes: nothing need be built
    objective, target = (cls.__new__(cls) for cls in (config.objective_class, targets.KINDS[config.target.kind]))
    sizes = [view.size or config.data.size or LARGEST for view in config.views for _ in range(view.count)]
    pairs = 1 if config.objective_class.averaged else len(pairs_of(objective, target, config.predictor, sizes))
    return chance, config.objective.scale * pairs


def loss_at_chance(losses: Sequence[float], config: Config | None) -> str:
    """That the last quarter's loss is not clearly below chance, in words; empty where it is, or nothing is known."""
    known = _chance(config)
    if known is None or not losses:
        return ""
    assert config is not None
    late, chance = np.array(losses[-max(1, len(losses) // 4) :]), known[0] * known[1]
    error = float(late.std(ddof=1)) / len(late) ** 0.5 if len(late) > 1 else 0.0
    temperature = getattr(config.objective, "temperature", 0.0)  # cosines of 1 and 0: about what it can fall by
    most = min(chance, known[1] / temperature) if temperature else chance
    if late.mean() < chance - max(SURE * error, SMALL * most):
        return ""
    return f"the loss of {late.mean():.3f} is no better than chance, {chance:.3f}"
