"""The section of a report that shows images that a learner makes: reconstructions, and samples of its model."""

import io
import math

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from twinblock.assembly.views import views_of
from twinblock.config.schema import Config
from twinblock.core.errors import InputError
from twinblock.core.pictures import colours
from twinblock.methods.learners import KINDS
from twinblock.reports.page import picture
from twinblock.reports.seen import Seen, spread
from twinblock.runs.run import Run

SHOWN, TILE, GAP = 12, 64, 4  # images, and pixels of each and between them
SAID = "From above: images as the learner sees them, what it makes of them, and samples of its model."


def makes_images(run: Run) -> bool:
    """Whether the run's learner is one of ours that makes images."""
    try:
        learner = run.config.learner
    except InputError:  # a config that cannot be read is said elsewhere
        return False
    return learner is not None and hasattr(KINDS.get(learner.kind), "samples")


def made(run: Run, seen: Seen) -> str:
    """Twelve images, their reconstructions by the first learner, and twelve samples."""
    return picture(drawn(run, seen), "png", "Images, their reconstructions and samples, in three rows", SAID)


def drawn(run: Run, seen: Seen) -> bytes:
    """That picture, as a PNG."""
    learner, some = run.learners()[0], spread(seen.images, SHOWN)
    index = np.arange(len(some))
    how = {"seed": 0, "epoch": 0, "step": 0, "batch": len(some), "aspect": some.aspects(index)}
    images = views_of(run.config)(some.batch(index), **how)[0].to(next(learner.parameters()).dtype)
    found = learner.outputs(images)[0]["reconstruction"]
    if found.numel() != images.numel():
        raise InputError("the learner reconstructs parts of images alone")
    rows = [images, found.view_as(images), learner.samples(SHOWN, seed=0)]
    tiles = [_tiles(row, run.config) for row in rows]
    step = TILE + GAP
    sheet = np.full((len(rows) * step - GAP, SHOWN * step - GAP, 3), 255, np.uint8)
    for i, row in enumerate(tiles):
        for j, tile in enumerate(row):
            sheet[i * step : i * step + TILE, j * step : j * step + TILE] = tile
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, "PNG")
    return file.getvalue()


def _tiles(images: Float[Tensor, "n c h w"], config: Config) -> np.ndarray:
    """Thumbnails of images that are normalised as views are."""
    mean, std = (torch.tensor(config.data.seen[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    shown = (images.detach().float() * std + mean).clamp(0, 1)
    times = math.ceil(TILE / shown.shape[-1])
    larger = shown.repeat_interleave(times, 2).repeat_interleave(times, 3)
    shown = torch.nn.functional.interpolate(larger, TILE, mode="nearest-exact")
    return (np.asarray(colours(shown)) * 255).round().astype(np.uint8)
