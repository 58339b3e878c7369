"""Accuracy by class and by groups of frequent and rare classes, and how balanced it is."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from twinblock.config.schema import Config
from twinblock.core.errors import InputError
from twinblock.core.pictures import as_png, literal
from twinblock.data import Images
from twinblock.data.training import training
from twinblock.runs.run import Run

ByClass = tuple[Int[np.ndarray, " c"], Float[np.ndarray, " c"]]  # training images and accuracy in percent of each class
GROUPS = ("many", "medium", "few")
LEVELS = 20  # classes, or sizes of them, above which the picture shows them as many
DOTS = (18, 0.5), (8, 0.25)  # area and opacity of the dots of few classes, and of many
MANY, FEW = 100, 20  # images above which a class is frequent, below which it is rare


def class_sizes(config: Config, classes: Int[np.ndarray, " c"], images: Images | None = None) -> Int[np.ndarray, " c"]:
    """Training images of these labels; for a balanced twin those of the long-tailed set that it stands beside.

    `images`: those of the source, where they are a Python object.
    """
    data = config.data
    if data.longtail is not None and data.longtail.kind == "balanced":
        data = data.model_copy(update={"longtail": data.longtail.model_copy(update={"kind": "exp"})})
    images = training(data, images)
    if images.labels is None:
        raise InputError(f"groups of classes need labels, and the training images of {data.source_name} have none")
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
    correct = np.bincount(labels[predicted == labels], minlength=classes)[:classes]
    return np.divide(100 * correct, tested, out=np.full(classes, np.nan), where=tested > 0)


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


def classes_of(run: Run, source: str | None = None) -> ByClass:
    """Sizes of the classes that were tested, and the linear probe's accuracies in percent.

    As the last `evaluate` of the run wrote them, on this source if one is given. Raises InputError where it was not
    evaluated by class.
    """
    evaluation = (run.evaluation if source is None else run.evaluation_of(source)) or {}
    for group in evaluation.get("groups", []):
        if (group["features"], group["evaluator"]) == ("encoder", "linear"):
            accuracies = np.array(group["classes"], float)  # those not tested, None in JSON, become NaN
            tested = np.isfinite(accuracies)
            return np.array(evaluation["class sizes"])[tested], accuracies[tested]
    raise InputError(
        f"{run.path} has no accuracy by class: evaluate it first; a balanced one --beside a long-tailed one"
    )


def figure(methods: Mapping[str, Sequence[ByClass]], title: str) -> bytes:
    """A PNG of accuracy against class size and, as bars, of groups of classes: `methods[name]` holds its runs.

    A bar is the mean class accuracy of a third of the classes, averaged over the runs. Its error is the standard
    deviation over runs; of one run the standard error over the classes.
    """
    return as_png(_drawing(methods, title))


def _drawing(methods: Mapping[str, Sequence[ByClass]], title: str) -> Any:
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(11, 4.2), layout="constrained")
    scatter, bars = drawing.subplots(1, 2, sharey=True)
    most = max(len(sizes) for runs in methods.values() for sizes, _ in runs)
    dot, faint = DOTS[most > LEVELS]
    for i, (name, runs) in enumerate(methods.items()):
        sizes, accuracies = (np.concatenate(column) for column in zip(*runs, strict=True))
        scatter.scatter(sizes, accuracies, s=dot, alpha=faint, color=f"C{i}", linewidths=0)
        scatter.plot(*_trend(sizes, accuracies), color=f"C{i}", label=literal(name))
        means, errors = _group_bars(runs)
        width = 0.8 / len(methods)
        places = np.arange(len(GROUPS)) + (i - (len(methods) - 1) / 2) * width
        bars.bar(places, means, 0.92 * width, yerr=errors, color=f"C{i}")
    scatter.set(xscale="log", xlabel="training images of the class", ylabel="accuracy in %", ylim=(0, 100))
    bars.set_xticks(range(len(GROUPS)), GROUPS)
    bars.set_title("mean accuracy of each third of the classes")
    scatter.set_title("a dot is a class, a line their mean")
    scatter.xaxis.set_major_formatter(lambda size, _: f"{size:,.0f}")
    for axes in (scatter, bars):
        axes.spines[["top", "right"]].set_visible(False)
    drawing.suptitle(literal(title))
    drawing.legend(*scatter.get_legend_handles_labels(), loc="outside right upper")
    return drawing


def _trend(sizes: np.ndarray, accuracies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean accuracy at each size; of many classes, of tenths of them in order of size."""
    levels = np.unique(sizes)
    if len(levels) <= LEVELS:
        return levels, np.array([accuracies[sizes == level].mean() for level in levels])
    parts = np.array_split(np.argsort(sizes, kind="stable"), 10)
    return np.array([sizes[part].mean() for part in parts]), np.array([accuracies[part].mean() for part in parts])


def _group_bars(runs: Sequence[ByClass]) -> tuple[list[float], list[float]]:
    """Mean accuracy of many, medium and few, and its error; NaN for a group without classes."""
    means, errors = [], []
    for i in range(len(GROUPS)):
        parts = [accuracies[thirds(sizes) == i] for sizes, accuracies in runs]
        parts = [part for part in parts if len(part)]
        of_runs = [float(part.mean()) for part in parts]
        means.append(float(np.mean(of_runs)) if parts else np.nan)
        if len(parts) > 1:
            errors.append(float(np.std(of_runs, ddof=1)))
        else:
            errors.append(float(parts[0].std(ddof=1) / len(parts[0]) ** 0.5) if parts and len(parts[0]) > 1 else 0.0)
    return means, errors
