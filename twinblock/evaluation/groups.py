"""Accuracy by class and by groups of frequent and rare classes, and how balanced it is."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from twinblock.config.schema import Config
from twinblock.core.errors import InputError
from twinblock.core.pictures import literal
from twinblock.data.training import training
from twinblock.runs.run import Run

ByClass = tuple[Int[np.ndarray, " c"], Float[np.ndarray, " c"]]  # training images and accuracy in percent of each class
GROUPS = ("many", "medium", "few")
MANY, FEW = 100, 20  # images above which a class is frequent, below which it is rare


def class_sizes(config: Config, classes: Int[np.ndarray, " c"]) -> Int[np.ndarray, " c"]:
    """Training images of these labels; for a balanced twin those of the long-tailed set that it stands beside."""
    data = config.data
    if data.longtail is not None and data.longtail.kind == "balanced":
        data = data.model_copy(update={"longtail": data.longtail.model_copy(update={"kind": "exp"})})
    images = training(data)
    if images.labels is None:
        raise InputError(f"groups of classes need labels, and the training images of {data.source} have none")
    labels = np.sort(images.labels)
    return np.searchsorted(labels, classes, "right") - np.searchsorted(labels, classes)


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
    """Accuracy of each class in percent, NaN without test images. Labels from `classes` on are of none."""
    tested = np.bincount(labels, minlength=classes)[:classes]
    found = np.bincount(labels[predicted == labels], minlength=classes)[:classes]
    return np.divide(100 * found, tested, out=np.full(classes, np.nan), where=tested > 0)


def group_report(accuracies: Float[np.ndarray, " c"], sizes: Int[np.ndarray, " c"]) -> dict[str, dict[str, Any]]:
    """For both definitions: mean class accuracy of all classes and of each group in percent, and `std`.

    `std`, the balancedness, is the population standard deviation of the accuracies of the groups, in points. Classes of
    accuracy NaN were not tested and are left out; a group without others has None. Jiang et al. 2021, section 4.1.
    """
    tested = np.isfinite(accuracies)
    report = {}
    for name, define in DEFINITIONS.items():
        group = define(sizes)
        parts = {g: accuracies[tested & (group == i)] for i, g in enumerate(GROUPS)}
        means = {g: float(part.mean()) for g, part in parts.items() if len(part)}
        report[name] = {
            "all": float(accuracies[tested].mean()) if means else None,
            **{g: means.get(g) for g in GROUPS},
            "std": float(np.std(list(means.values()))) if means else None,
        }
    return report


def classes_of(run: Run) -> ByClass:
    """Sizes of the classes that were tested, and the linear probe's accuracies in percent.

    As the last `evaluate` of the run wrote them. Raises InputError where it was not evaluated by class.
    """
    found = run.evaluation or {}
    for group in found.get("groups", []):
        if (group["features"], group["evaluator"]) == ("encoder", "linear"):
            accuracies = np.array(group["classes"], float)  # those not tested, None in JSON, become NaN
            tested = np.isfinite(accuracies)
            return np.array(found["class sizes"])[tested], accuracies[tested]
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
        axes.plot(levels, means, color=f"C{i}", label=literal(name))
    axes.set(xscale="log", xlabel="training images of the class", ylabel="accuracy in %", title=title)
    axes.legend(frameon=False)
    file = io.BytesIO()
    drawing.savefig(file, format="png", dpi=150)
    return file.getvalue()
