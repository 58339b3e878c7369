"""Which encoder is best, without labels: checkpoints and runs in order of a score of their features."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from twinblock.assembly.precision import autocast_here
from twinblock.assembly.views import views_of
from twinblock.config.schema import Config
from twinblock.core.console import progress
from twinblock.core.device import best_device
from twinblock.core.errors import InputError
from twinblock.core.seeding import order
from twinblock.core.settings import own_settings
from twinblock.data import Images, take
from twinblock.data.training import chosen, split_of, training, whole
from twinblock.data.values import seen_as
from twinblock.diagnosis.labelfree import SCORES
from twinblock.evaluation.compare import need_different
from twinblock.evaluation.features import at_once
from twinblock.nn.modes import evaluating
from twinblock.runs.run import Run
from twinblock.views import View

SCORE = "whitened reciprocal rank"  # the one that benchmarks/rank.py chose
IMAGES, VIEWS, SEED = 1024, 4, 0  # of all encoders the same ones
LEAST = 32  # images: fewer tell nothing


@own_settings()
def rank(runs: Sequence[Run | str | Path] | Run | str | Path, *, data: Any = None) -> list[dict[str, Any]]:
    """Order the encoders of runs by a score that needs no labels, the best one first.

    Of each run the last encoder and those that were kept on the way (`train.keep`). All see the same four random
    views of the same 1024 images, by default the runs' own: those of the test split, if there is one. Their crop and
    flip are those of the first run's first view, their colours the usual ones. The score is of the encoder's features,
    not of the projector's output: 1 / rank of a view of the same image among the images nearest to another view, on
    average, where distances count in units of what views of one image differ by (docs/results/rank.md).
    `data`: other images, as `pretrain` takes them.
    A row has `rank`, from 1, `run`, `step`, None for the last encoder, and the score. An encoder whose features are not
    finite has the score NaN and comes last. Raises InputError for runs on different images where `data` is not given,
    the same run twice, and fewer than 32 images.
    """
    given = [runs] if isinstance(runs, Run | str | Path) else runs
    opened = [Run.open(run) for run in given]
    if not opened:
        raise InputError("rank: give at least one run")
    need_different(opened, "rank")
    steps = [(run, step) for run in opened for step in steps_of(run)]
    seen = Seen.of(opened, data)
    rows = []
    with progress("scoring encoders", len(steps)) as advance:
        for run, step in steps:
            z = seen.features(run, run.encoder(step))
            score = SCORES[SCORE](z) if z.isfinite().all() else math.nan
            rows.append({"run": str(run.path), "step": step, SCORE: score})
            advance(1)
    best = sorted(rows, key=lambda row: -math.inf if math.isnan(row[SCORE]) else row[SCORE], reverse=True)
    return [{"rank": place, **row} for place, row in enumerate(best, start=1)]


class Seen:
    """Random views of some images, which all encoders see alike."""

    def __init__(self, source: Any, images: Images, view: View):
        index = np.sort(order(SEED, -1, len(images))[:IMAGES])
        self.source, self.images, self.view = source, take(images, index), view

    @classmethod
    def of(cls, runs: Sequence[Run], data: Any = None) -> "Seen":
        """Images of these runs, or `data`. Raises InputError where the runs have different ones, or few."""
        first = runs[0]
        names = list(dict.fromkeys(run.config.data.source_name for run in runs))
        if data is None and len(names) > 1:
            raise InputError(f"rank: the runs saw different images ({', '.join(names)}): say data=... for all of them")
        source, held = chosen(whole(first.config.data), data, first.objects.get("data"))
        images = None if held is not None else split_of(source, "test")
        images = training(source, held) if images is None or len(images) < LEAST else images
        if len(images) < LEAST:
            raise InputError(f"rank: {source.source_name} has {len(images)} images; give at least {LEAST}, better 1000")
        shape = first.config.views[0]
        return cls(source, images, View.model_validate({"crop": shape.crop, "flip": shape.flip}))

    @torch.no_grad()
    def features(self, run: Run, encoder: nn.Module, views: int = VIEWS) -> Float[Tensor, "v n d"]:
        """Features of so many views of each image, float64 on the CPU."""
        config = seen_as(run.config, self.source, self.images)
        device = best_device()
        encoder = encoder.to(device)
        return torch.stack([torch.cat([*self._rows(config, encoder, device, view)]) for view in range(views)])

    def _rows(
        self, config: Config, encoder: nn.Module, device: torch.device, view: int
    ) -> Iterator[Float[Tensor, "b d"]]:
        dtype, autocast = next(encoder.parameters()).dtype, autocast_here(config, device)
        views, count, size = views_of(config, [self.view]), len(self.images), at_once(config.data.size or 1)
        for start in range(0, count, size):
            some = np.arange(start, min(start + size, count))
            aspect = self.images.aspects(some)
            where = {"epoch": 0, "step": view, "batch": count, "offset": start}
            (x,) = views(self.images.batch(some).to(device), seed=SEED, aspect=aspect, **where)
            with evaluating(encoder), torch.autocast(device.type, autocast, enabled=autocast is not None):
                output = encoder(x.to(dtype))
            yield output.double().cpu()


def steps_of(run: Run) -> list[int | None]:
    """The kept encoders, and the last one, which need not be scored twice."""
    done = (run.result or {}).get("steps")
    return [*(step for step in run.kept if step != done), None]
