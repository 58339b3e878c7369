"""A picture of what a network will see: some images, each beside its views."""

import io
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from twinblock.assembly.resolve import resolve
from twinblock.assembly.views import missing_operations, views_of
from twinblock.config.recipes import compose
from twinblock.config.schema import Config
from twinblock.core.files import replacing
from twinblock.core.pictures import colours, literal, picture_file
from twinblock.core.settings import own_settings
from twinblock.data import Images
from twinblock.data.objects import describe, is_object
from twinblock.data.training import chosen, training
from twinblock.data.values import in_words
from twinblock.views.operations import unit

ROWS, COLUMNS, OWN = 8, 8, "views.png"
NARROW = 4  # columns; images with no more of them stand two in a row


@own_settings()
def draw_views(
    recipe: str | Path, *, data: Any = None, out: str | Path | None = None, overrides: Iterable[str] = (), **fields: Any
) -> Path:
    """Draw eight images, spread over the data, each beside the views that a run by this recipe begins with.

    `recipe`, `data`, `overrides` and `fields` as `pretrain` takes them. Colours are those before the normalisation; of
    more than three channels the first three are drawn. `out`: the picture, by its ending; views.png is replaced,
    another file never. Gives the picture's path. Raises InputError for all that the caller can mend.
    """
    source = data.get("source") if isinstance(data, Mapping) else data
    held = source if is_object(source) else None
    if held is not None:
        data = {**(data if isinstance(data, Mapping) else {}), "source": describe(held)}
    given = {"data": data, "out": None if out is None else str(out), **fields}
    config = compose(recipe, {name: value for name, value in given.items() if value is not None}, overrides)
    file = picture_file(Path(config.out or OWN), OWN)
    images = training(*chosen(config.data, held=held))
    config = resolve(config, images, torch.device("cpu"))
    with replacing(file) as picture:
        picture.write(
            picture_of_views(config, images, file.suffix[1:].lower(), f"{Path(recipe).stem} on {config.data.source}")
        )
    return file


def picture_of_views(config: Config, images: Images, kind: str, title: str) -> bytes:
    """Eight images beside their views, of a resolved config, as a picture of this kind (png, svg, pdf)."""
    from matplotlib.figure import Figure

    index = np.linspace(0, len(images) - 1, min(ROWS, len(images))).astype(int)
    pixels, seen = images.batch(index), config.data.seen
    where = {"seed": config.train.seed, "epoch": 0, "step": 0, "batch": len(index)}
    views = views_of(config)(pixels, aspect=images.aspects(index), **where)[: COLUMNS - 1]
    mean, std = (torch.tensor(seen[name]).view(-1, 1, 1) for name in ("mean", "std"))
    whole = unit(pixels, seen["value_range"]).permute(0, 3, 1, 2)
    columns = [colours(whole), *(colours(view * std + mean) for view in views)]
    widths = images.aspects(index)
    count = len(columns)
    beside = 2 if count <= NARROW and len(index) > 1 else 1  # images in a row
    lines = -(-len(index) // beside)
    notes = textwrap.wrap("; ".join([title, *_notes(config, images)]), 20 * count * beside)
    drawing = Figure((1.5 * count * beside, 1.6 * lines + 0.2 * len(notes)), facecolor="0.8", layout="constrained")
    drawing.suptitle(literal("\n".join(notes)), fontsize=9, x=0.01, horizontalalignment="left")
    grid = drawing.subplots(lines, count * beside, squeeze=False)
    for row, some in enumerate(grid.reshape(lines * beside, count)):
        for column, axes in enumerate(some):
            axes.set_axis_off()
            if row >= len(index):
                continue
            height, width = columns[column].shape[1:3]
            shape = width / height if column or widths is None else float(widths[row])
            axes.imshow(columns[column][row], extent=(0, shape, 0, 1), interpolation="nearest")
            if row < beside:
                axes.set_title(f"view {column}, {width} px" if column else "image", fontsize=8)
    file = io.BytesIO()
    drawing.savefig(file, format=kind, dpi=120)
    return file.getvalue()


def _notes(config: Config, images: Images) -> list[str]:
    """Lines on what is drawn, of at most some ten words each."""
    values, missing = in_words(images, config.data), missing_operations(config)
    lines = [] if values is None else values.split("; ")[:1]
    lines += [] if missing is None else [missing]
    if images.channels > 3:
        lines.append(f"channels 1, 2 and 3 of {images.channels} are drawn as red, green and blue")
    return lines
