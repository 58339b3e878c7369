"""The pictures of runs: loss, rate, kNN of the sample, cosines and effective rank by step; a column for each run."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twinblock.core.errors import InputError, one_line
from twinblock.core.files import replacing
from twinblock.core.pictures import literal
from twinblock.runs.run import Run

PANELS = "loss", "learning rate", "kNN of the sample in %", "cosine of embeddings", "effective rank"
HEIGHTS = 2, 1, 2, 2, 2
ROOM = 1.25  # above the lines, for the legend


def draw(runs: Mapping[str, Run], path: str | Path) -> None:
    """Draw runs by title into one picture; its kind follows the file's ending (.png, .svg, .pdf).

    Lines are Learners (blocks), from light to dark. kNN, of the monitor's sample of images, has the standard error of
    that many images as a band (of the last block), and chance, one over the number of classes, as a line. Cosines are
    the projector's, full within images and dashed between them; ranks are full of the encoder and dashed of the
    projector. All panels of a row but losses and rates share their axis. Raises InputError where it cannot be written.
    """
    from matplotlib.figure import Figure  # here, since it takes a second to import; pyplot is not needed

    figure = Figure(figsize=(4.5 * len(runs), 10.5), layout="constrained")
    panels = figure.subplots(len(PANELS), len(runs), sharex="col", squeeze=False, height_ratios=HEIGHTS)
    for row in panels[2:]:
        for axes in row[1:]:
            axes.sharey(row[0])
    for column, (title, run) in enumerate(runs.items()):
        mine = [row[column] for row in panels]
        _draw_run(mine, run)
        mine[0].set_title(literal(_titled(title, run)), fontsize="medium")
        mine[-1].set_xlabel("step")
        for axes, name in zip(mine, PANELS, strict=True):
            axes.set_ylabel(name if column == 0 else "")
            axes.spines[["top", "right"]].set_visible(False)
            axes.margins(x=0.01)
    knn, cosine, rank = (row[0] for row in panels[2:])
    cosine.set_ylim(min(0, cosine.get_ylim()[0]), 1.03)
    for axes in (knn, rank):
        axes.set_ylim(0, ROOM * axes.get_ylim()[1])
    picture = io.BytesIO()
    try:
        figure.savefig(picture, format=Path(path).suffix[1:] or "png", dpi=110)
    except ValueError as error:
        raise InputError(f"cannot write {path}: {one_line(error)}") from None
    with replacing(Path(path)) as file:
        file.write(picture.getvalue())


def _titled(title: str, run: Run) -> str:
    """A run's title with its verdict below, once it has one."""
    result = run.result
    return title if result is None else f"{title}\n{result['headline']}"


def _draw_run(panels: Sequence[Any], run: Run) -> None:
    rows = run.metrics()
    measured_rows = [row for row in rows if "diagnosis" in row]
    learners = len(measured_rows[0]["diagnosis"]) if measured_rows else 1
    loss, rate, knn, cosine, rank = panels
    for axes, name in ((loss, "loss"), (rate, "lr")):
        _draw_steps(axes, [row for row in rows if name in row], name, learners)
    for i in range(learners):
        last = i == learners - 1
        steps, seen = [row["step"] for row in measured_rows], [row["diagnosis"][i] for row in measured_rows]
        _draw_knn(knn, steps, seen, _shade(i, learners), band=last)
        for axes, style, output, key, meaning in (
            (cosine, "-", "projector", "positive_cosine", "within images"),
            (cosine, "--", "projector", "negative_cosine", "between images"),
            (rank, "-", "encoder", "effective_rank", "encoder"),
            (rank, "--", "projector", "effective_rank", "projector"),
        ):
            # a learner of one's own may have no projector
            measured = [row.get(output, row["encoder"] if axes is cosine else {}) for row in seen]
            values = [indicators.get(key, math.nan) for indicators in measured]
            label = meaning if last else None
            axes.plot(steps, values, style, color=_shade(i, learners), label=label, marker=".")
    classes = (run.result or {}).get("classes")
    if classes and knn.lines:
        knn.axhline(100 / classes, color="0.45", linestyle=":", label=f"chance, 1 of {classes}")
    for axes, where in ((loss, "best"), (knn, "upper left"), (cosine, "best"), (rank, "upper right")):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize="small", loc=where, ncols=2)
    if not knn.lines:
        knn.text(0.5, 0.5, "no labels", transform=knn.transAxes, ha="center", color="0.45")


def _draw_steps(axes: Any, rows: Sequence[Mapping[str, Any]], name: str, learners: int) -> None:
    """Losses or learning rates, a line for each Learner."""
    for i in range(max((len(row[name]) for row in rows), default=0)):
        part = [(row["step"], row[name][i]) for row in rows if i < len(row[name])]
        label = f"block {i + 1}" if learners > 1 and name == "loss" else None
        axes.plot(*_smooth(part), color=_shade(i, learners), linewidth=1, label=label)


def _draw_knn(axes: Any, steps: Sequence[int], seen: Sequence[Mapping[str, Any]], color: Any, band: bool) -> None:
    """Accuracy on the sample of one Learner, and the standard error that a share of so many images has."""
    measured = [(step, row) for step, row in zip(steps, seen, strict=True) if "sample_knn" in row]
    if not measured:
        return
    steps, values = [step for step, _ in measured], [row["sample_knn"] for _, row in measured]
    axes.plot(steps, values, color=color, marker=".")
    counts = [row["encoder"].get("samples", math.nan) for _, row in measured]
    errors = [
        100 * math.sqrt(max(0.0, value / 100 * (1 - value / 100)) / n) for value, n in zip(values, counts, strict=True)
    ]
    if band:
        low, high = ([value + sign * error for value, error in zip(values, errors, strict=True)] for sign in (-1, 1))
        words = f"± standard error of {counts[-1]:.0f} images" if counts[-1] == counts[-1] else None
        axes.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0, label=words)


def _smooth(points: list[tuple[int, float]], most: int = 200) -> tuple[list[float], list[float]]:
    """Means of equally many steps each, so that a long run is a readable line."""
    size = max(1, len(points) // most)
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return ([sum(x for x, _ in p) / len(p) for p in parts], [sum(y for _, y in p) / len(p) for p in parts])


def _shade(i: int, count: int) -> tuple[float, float, float]:
    """Blue, darker for deeper blocks."""
    depth = 1.0 if count == 1 else i / (count - 1)
    light, dark = (0.62, 0.79, 0.88), (0.03, 0.19, 0.42)
    return tuple(a + (b - a) * depth for a, b in zip(light, dark, strict=True))  # pyright: ignore[reportReturnType]
