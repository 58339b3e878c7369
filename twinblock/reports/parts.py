"""The section of a report that shows what the encoder makes of the parts of images."""

import io
import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from twinblock.core.errors import InputError
from twinblock.core.pictures import colours
from twinblock.nn.encoders import Encoder
from twinblock.reports.page import picture
from twinblock.reports.seen import Seen, spread
from twinblock.runs.run import Run
from twinblock.views import centre

SHOWN = 8
PLACES = 4  # a side of the map at least: fewer show nothing
WITHIN = 0.02, 0.98  # quantiles that become no colour and full colour


def parts(run: Run, seen: Seen) -> str:
    """Eight images, each above the first three principal components of the encoder's map as red, green and blue.

    Raises InputError where no map of the encoder has 4 x 4 places.
    """
    images = spread(seen.images, SHOWN)
    index, how = np.arange(len(images)), run.config.data.seen
    assert run.config.data.size is not None
    x = centre(images.batch(index), run.config.data.size, **how, aspect=images.aspects(index))
    block, maps = finest(run.encoder(), x)
    rows = colours(x * _column(how["std"]) + _column(how["mean"])), components(maps)
    side = maps.shape[2]
    said = (
        f"Below each image are the first three principal components of the {side} x {side} map of block {block}, over "
        "all these images, as red, green and blue: parts of one colour are alike to the encoder."
    )
    alt = "Images, each above a map of colours that shows which parts are alike to the encoder"
    return picture(_drawn(rows), "png", alt, said)


@torch.no_grad()
def finest(encoder: Encoder, x: Tensor) -> tuple[int, Float[Tensor, "n d h w"]]:
    """The last map with enough places, and the number of its block."""
    maps = encoder.maps(x.to(next(encoder.parameters()).dtype))
    for block in range(len(maps), 0, -1):
        y = maps[block - 1]
        if y.ndim == 3:  # tokens; those before the places are none
            side = math.isqrt(y.shape[1] - encoder.prefix)
            y = y[:, encoder.prefix :].transpose(1, 2).unflatten(2, (side, side))
        if y.ndim == 4 and y.shape[2] >= PLACES:
            return block, y.float()
    raise InputError(f"no map of the encoder has {PLACES} x {PLACES} places")


def components(maps: Float[Tensor, "n d h w"]) -> Float[np.ndarray, "n h w 3"]:
    """The first three principal components of all places, each from 0 to 1; of fewer channels the rest is 0."""
    n, d, h, w = maps.shape
    rows = maps.permute(0, 2, 3, 1).reshape(-1, d).double()
    left, scales, _ = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    some = left[:, :3] * scales[:3]
    low, high = (some.quantile(q, dim=0) for q in WITHIN)
    shown = torch.zeros(len(rows), 3, dtype=torch.float64)
    shown[:, : some.shape[1]] = ((some - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    return shown.reshape(n, h, w, 3).numpy()


def _column(values) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1)


def _drawn(rows: tuple[np.ndarray, np.ndarray]) -> bytes:
    from matplotlib.figure import Figure

    drawing = Figure((1.5 * len(rows[0]), 3.1), layout="constrained")
    grid = drawing.subplots(2, len(rows[0]), squeeze=False)
    for line, pictures in zip(grid, rows, strict=True):
        for axes, shown in zip(line, pictures, strict=True):
            axes.set_axis_off()
            axes.imshow(shown, interpolation="nearest")
    file = io.BytesIO()
    drawing.savefig(file, format="png", dpi=120)
    return file.getvalue()
