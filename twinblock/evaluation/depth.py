"""Every block of an encoder measured in one pass, and accuracy drawn against depth."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from twinblock.core.errors import InputError
from twinblock.core.pictures import as_png, literal
from twinblock.diagnosis.measures import effective_rank
from twinblock.methods.learner import parts_of
from twinblock.nn.encoders import Encoder
from twinblock.nn.pooling import Pooling
from twinblock.runs import checkpoint
from twinblock.runs.run import Run
from twinblock.runs.state import restored

PIXELS, UNTRAINED, STARTING = BASELINES = "raw pixels", "untrained encoder", "starting weights"
BLOCK = "block "  # then its number, from 1 on: what a row of the evaluation calls it
RANKED = 2_000  # images that the effective rank is measured on at most
DRAWN = ("linear %", "kNN %", "rank %")


class EveryBlock(nn.Module):
    """An encoder whose features are those of all its blocks, side by side; `widths` says where one ends.

    A block's features are the average of what it gives over its places, so the last ones are the encoder's own. Where
    there are `pooling`, each block's are what its pooling makes of that, and the encoder's own stand behind them.
    """

    def __init__(self, encoder: Encoder, pooling: Sequence[Pooling] | None = None):
        super().__init__()
        self.encoder = encoder
        self.pooling = None if pooling is None else nn.ModuleList(pooling)
        self.widths = encoder.widths if pooling is None else [*(pooling.width for pooling in pooling), encoder.width]

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        maps = self.encoder.maps(images)
        if self.pooling is None:
            return torch.cat([self.encoder.pooled(x) for x in maps], 1)
        pooled = [pooling(x) for pooling, x in zip(self.pooling, maps, strict=True)]
        return torch.cat([*pooled, self.encoder.pooled(maps[-1])], 1)


def trained_pooling(run: Run) -> list[Pooling]:
    """The pooling that the blocks of a run were trained through, with the expansion where it has one.

    The published probe of blockwise learning looks there. Raises InputError where not every block has a pooling.
    """
    if run.config.scope.kind != "blockwise":
        raise InputError(f"pooling: {run.path} has none of each block; evaluate a run with scope.kind=blockwise")
    file, held = checkpoint.newest(run.checkpoints)
    _, learners = restored(run.config, file, *held, run.objects)
    return [part.network.pooling for learner in learners for part in parts_of(learner)]


def rank_share(x: Float[Tensor, "n d"]) -> float:
    """Effective rank (RankMe) of features about their mean, in percent of their width."""
    rows = x[:RANKED].double()
    return 100 * float(effective_rank(rows - rows.mean(0))) / x.shape[1]


def figure(
    arms: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]],
    title: str = "",
    baselines: Mapping[str, Mapping[str, Any]] | None = None,
) -> bytes:
    """Accuracy and effective rank against depth as a PNG: `arms[name]` holds the rows of `evaluate` of each run.

    Rows that are not of blocks are left out. `baselines`: rows drawn as horizontal lines, by name. Several runs of an
    arm give its mean with their standard deviation. Depth is the part of the blocks that an image has passed, so that
    encoders of few and of many blocks compare.
    """
    return as_png(_drawing(arms, title, baselines or {}))


def _drawing(
    arms: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], title: str, baselines: Mapping[str, Mapping[str, Any]]
) -> Any:
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(14.5, 4), layout="constrained")
    panels = drawing.subplots(1, len(DRAWN))
    for axes, column in zip(panels, DRAWN, strict=True):
        for (name, row), style in zip(baselines.items(), (":", "--", "-."), strict=False):
            if row.get(column) is not None:
                axes.axhline(row[column], color="0.45", linestyle=style, label=literal(name))
        for name, runs in arms.items():
            curves = [[row[column] for row in rows if row["features"].startswith(BLOCK)] for rows in runs]
            points = list(zip(*(curve for curve in curves if curve), strict=True))
            if not points:
                continue
            depth = [(k + 1) / len(points) for k in range(len(points))]
            spread = [statistics.stdev(p) if len(p) > 1 else 0.0 for p in points]
            axes.errorbar(depth, [statistics.fmean(p) for p in points], spread, marker="o", label=literal(name))
        axes.set_ylim(0)  # a cut axis makes small differences look large
        axes.set(xlabel="depth (part of the blocks)", ylabel=column, xlim=(0, 1.03))
        axes.spines[["top", "right"]].set_visible(False)
    drawing.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper")
    drawing.suptitle(literal(title))
    return drawing


def rows_by_block(report: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The rows of the blocks in a report of `evaluate`."""
    return [row for row in (report or {}).get("rows", []) if row["features"].startswith(BLOCK)]


def need_blocks(runs: Sequence[Run], source: str) -> None:
    """Raises InputError for a run that was not evaluated by block on this source."""
    for run in runs:
        if not rows_by_block(run.evaluation_of(source)):
            raise InputError(
                f"beside={run.path}: measure its blocks first: twinblock evaluate {run.path} data={source} --blocks"
            )


def draw_beside(run: Run, others: Sequence[Run], source: str) -> None:
    """Write `depth.png` into a run: its blocks, those of other runs measured so on this source, and its baselines."""
    arms = {}
    for other in (run, *others):
        report = other.evaluation_of(source) or {}
        pooled = " (pooling)" if report.get("pooling") else ""  # of another width
        if blocks := rows_by_block(report):
            arms[f"{other.path}{pooled}"] = [blocks]
    rows = (run.evaluation_of(source) or {})["rows"]
    baselines = {row["features"]: row for row in rows if row["features"] in BASELINES}
    run.write("depth.png", figure(arms, "frozen features of each block", baselines))
