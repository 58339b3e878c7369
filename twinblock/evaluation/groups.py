"""Accuracy by class and by groups of frequent and rare classes, and how balanced it is."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from twinblock.config import Config
from twinblock.data.longtail import training
from twinblock.errors import InputError
from twinblock.run import Run

ByClass = tuple[Int[np.ndarray, " c"], Float[np.ndarray, " c"]]  # training images and accuracy in percent of each class
GROUPS = ("many", "medium", "few")
MANY, FEW = 100, 20  # images above which a class is frequent, below which it is rare


def class_sizes(config: Config) -> Int[np.ndarray, " c"]:
    """Training images of each class; for a balanced twin those of the long-tailed set that it stands beside."""
    data = config.data
    if data.longtail is not None and data.longtail.kind == "balanced":
        data = data.model_copy(update={"longtail": data.longtail.model_copy(update={"kind": "exp"})})
    images = training(data)
    if images.labels is None:
        raise InputError(f"groups of classes need labels, and the training images of {data.source} have none")
    return np.bincount(images.labels[images.labels >= 0], minlength=len(images.classes or ()))


def thirds(sizes: Int[np.ndarray, " c"]) -> Int[np.ndarray, " c"]:
    """Group of each class, 0 many, 1 medium, 2 few: a third of the classes each, what is over counts as many.

    SDCLR's definition for CIFAR. Of classes of one size the one with the smaller label counts as rarer.
    """
    third = len(sizes) // 3
    group = np.zeros(len(sizes), np.int64)
    order = np.argsort(sizes, kind="stable")
    group[order[:third]], group[order[third : 2 * third]] = 2, 1
    return group


def by_size(sizes: Int[np.ndarray, " c"]) -> Int[np.ndarray, " c"]:
    """Group of each class: many with more than 100 images, few with less than 20. Liu et al. 2019, ImageNet-LT."""
    return np.where(sizes > MANY, 0, np.where(sizes < FEW, 2, 1))


DEFINITIONS = {"thirds": thirds, "by size": by_size}


def class_accuracies(
    predicted: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], classes: int
) -> Float[np.ndarray, " c"]:
    """Accuracy of each class in percent. Raises InputError for a class without test images."""
    tested = np.bincount(labels, minlength=classes)
    if not tested.all():
        raise InputError(
            f"class {int(tested.argmin())} has no test image, so its accuracy cannot be measured; add some"
        )
    return 100 * np.bincount(labels[predicted == labels], minlength=classes) / tested


def group_report(accuracies: Float[np.ndarray, " c"], sizes: Int[np.ndarray, " c"]) -> dict[str, dict[str, Any]]:
    """For both definitions: mean class accuracy of all classes and of each group in percent, and `std`.

    `std`, the balancedness, is the population standard deviation of the accuracies of the groups, in points; a group
    without classes has None. Jiang et al. 2021, section 4.1.
    """
    report = {}
    for name, define in DEFINITIONS.items():
        group = define(sizes)
        means = {g: float(accuracies[group == i].mean()) for i, g in enumerate(GROUPS) if (group == i).any()}
        report[name] = {
            "all": float(accuracies.mean()),
            **{g: means.get(g) for g in GROUPS},
            "std": float(np.std(list(means.values()))),
        }
    return report


def classes_of(run: Run) -> ByClass:
    """Class sizes, and the linear probe's accuracies in percent, that the last `evaluate` of a run wrote.

    Raises InputError where it was not evaluated by class.
    """
    found = run.evaluation or {}
    for group in found.get("groups", []):
        if (group["features"], group["evaluator"]) == ("encoder", "linear"):
            return np.array(found["class sizes"]), np.array(group["classes"])
    raise InputError(
        f"{run.path} has no accuracy by class: evaluate it first; a balanced one --beside a long-tailed one"
    )


def figure(methods: Mapping[str, Sequence[ByClass]], title: str) -> bytes:
    """A PNG of accuracy against class size, methods overlaid: `methods[name]` holds what each of its runs has."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(6, 4), layout="constrained")
    axes = drawing.subplots()
    for i, (name, runs) in enumerate(methods.items()):
        sizes, accuracies = (np.concatenate(column) for column in zip(*runs, strict=True))
        axes.scatter(sizes, accuracies, s=14, alpha=0.45, color=f"C{i}")
        levels = np.unique(sizes)
        if len(levels) > 20:  # many classes: a line through means of neighbours
            levels = np.array([part.mean() for part in np.array_split(np.sort(sizes), 10)])
            order = np.argsort(sizes, kind="stable")
            means = [accuracies[part].mean() for part in np.array_split(order, 10)]
        else:
            means = [accuracies[sizes == level].mean() for level in levels]
        axes.plot(levels, means, color=f"C{i}", label=name)
    axes.set(xscale="log", xlabel="training images of the class", ylabel="accuracy in %", title=title)
    axes.legend(frameon=False)
    file = io.BytesIO()
    drawing.savefig(file, format="png", dpi=150)
    return file.getvalue()
