"""What a run shows that has learned nothing, and when its loss or accuracy is clearly better."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from twinblock.config.schema import Config

LEARNED = "learned"
SURE = 2.0  # standard errors
SURE_OF_LABELS = 3.0  # more, as the best of four accuracies is compared with chance
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
    """The loss of embeddings that say nothing of which view belongs to which, at least; None for other objectives.

    If the positive is as likely any of the candidates, its mean similarity is that of all, and by Jensen's inequality
    the mean of log sum exp(s) - s[positive] is at least the logarithm of their number: 2n - 1 for NT-Xent of n images,
    the queue and the positive for InfoNCE, whatever the temperature. The number of pairs of views, and the scale of the
    loss, multiply it.
    """
    candidates, factor = _candidates(config)
    return factor * math.log(candidates) if candidates else None


def _candidates(config: Config | None) -> tuple[int, float]:
    """Among how many candidates the positive is sought, 0 where none is, and how often a step, times the scale."""
    objective = None if config is None else config.objective
    if config is None or objective is None or sum(view.count for view in config.views) != 2:
        return 0, 0.0
    if objective.kind == "nt_xent":
        both_ways = config.predictor is not None or config.target.kind not in ("shared", "pruned")
        return 2 * config.data.batch - 1, objective.scale * (1 + both_ways)
    if objective.kind == "info_nce":
        both_ways = config.target.kind == "pruned"
        return (objective.negatives or objective.queue) + 1, objective.scale * (1 + both_ways)
    return 0, 0.0


def loss_at_chance(losses: Sequence[float], config: Config | None) -> str:
    """That the last quarter's loss is not clearly below chance, in words; empty where it is, or nothing is known."""
    candidates, factor = _candidates(config)
    if not candidates or not losses:
        return ""
    assert config is not None
    late, chance = np.array(losses[-max(1, len(losses) // 4) :]), factor * math.log(candidates)
    error = float(late.std(ddof=1)) / len(late) ** 0.5 if len(late) > 1 else 0.0
    most = min(chance, factor / config.objective.temperature)  # cosines of 1 and 0: about what it can fall by
    if late.mean() < chance - max(SURE * error, SMALL * most):
        return ""
    return f"the loss of {late.mean():.3f} is no better than chance, {chance:.3f}"
