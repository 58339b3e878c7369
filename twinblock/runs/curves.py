"""The pictures of runs: loss, kNN on the sample, cosines and effective rank against steps, a column for each run."""

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twinblock.core.errors import InputError, one_line
from twinblock.core.files import replacing
from twinblock.core.pictures import literal
from twinblock.runs.run import Run

PANELS = "loss", "sample kNN %", "cosine of embeddings", "effective rank"


def draw(runs: Mapping[str, Run], path: str | Path) -> None:
    """Draw runs by title into one picture; its kind follows the file's ending (.png, .svg, .pdf).

    Lines are Learners (blocks), from light to dark. Cosines are the projector's, full within images and dashed between
    them; ranks are full of the encoder and dashed of the projector. Raises InputError where it cannot be written.
    """
    from matplotlib.figure import Figure  # here, since it takes a second to import; pyplot is not needed

    figure = Figure(figsize=(4.5 * len(runs), 9), layout="constrained")
    panels = figure.subplots(len(PANELS), len(runs), sharex="col", squeeze=False)
    for column, (title, run) in enumerate(runs.items()):
        mine = [row[column] for row in panels]
        _draw_run(mine, run)
        mine[0].set_title(literal(title))
        mine[-1].set_xlabel("step")
        for axes, name in zip(mine, PANELS, strict=True):
            axes.set_ylabel(name if column == 0 else "")
            axes.spines[["top", "right"]].set_visible(False)
            axes.margins(x=0.01)
    picture = io.BytesIO()
    try:
        figure.savefig(picture, format=Path(path).suffix[1:] or "png", dpi=110)
    except ValueError as error:
        raise InputError(f"cannot write {path}: {one_line(error)}") from None
    with replacing(Path(path)) as file:
        file.write(picture.getvalue())


def _draw_run(panels: list[Any], run: Run) -> None:
    rows = run.metrics()
    losses = [row for row in rows if "loss" in row]
    looks = [row for row in rows if "diagnosis" in row]
    blocks = len(looks[0]["diagnosis"]) if looks else 1
    loss, knn, cosine, rank = panels
    width = max((len(row["loss"]) for row in losses), default=0)
    for i in range(width):
        part = [(row["step"], row["loss"][i]) for row in losses if i < len(row["loss"])]
        loss.plot(*_smooth(part), color=_shade(i, blocks), linewidth=1)
    for i in range(blocks):
        seen = [(row["step"], row["diagnosis"][i]) for row in looks]
        steps, color = [step for step, _ in seen], _shade(i, blocks)
        label = f"block {i + 1}" if blocks > 1 else None
        knn.plot(steps, [found.get("sample_knn", math.nan) for _, found in seen], color=color, label=label, marker=".")
        for axes, style, output, key, meaning in (
            (cosine, "-", "projector", "positive_cosine", "within images"),
            (cosine, "--", "projector", "negative_cosine", "between images"),
            (rank, "-", "encoder", "effective_rank", "encoder"),
            (rank, "--", "projector", "effective_rank", "projector"),
        ):
            values = [found[output].get(key, math.nan) for _, found in seen]
            label = meaning if i == blocks - 1 else None
            axes.plot(steps, values, style, color=color, label=label, marker=".")
    cosine.set_ylim(min(0, cosine.get_ylim()[0]), 1.03)
    rank.set_ylim(0)
    knn.set_ylim(0)
    for axes in (cosine, rank, *((knn,) if blocks > 1 else ())):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize="small")


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
