"""What is measured: the features that a frozen encoder gives for images, and their raw pixels."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from twinblock.assembly.precision import autocast_here
from twinblock.config.schema import Config
from twinblock.core.errors import InputError
from twinblock.data import Images
from twinblock.data.values import sample
from twinblock.data.values import value_range as found_range
from twinblock.nn.modes import evaluating
from twinblock.views import EIGHT_BITS, ValueRange, centre


def features(encoder: nn.Module, images: Images, **seen: Any) -> Float[Tensor, "n d"]:
    """Features of the central view of each image, in order, float32 on the CPU; arguments as of `feature_rows`."""
    return torch.cat([*feature_rows(encoder, images, **seen)])


def feature_rows(
    encoder: nn.Module,
    images: Images,
    *,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    value_range: ValueRange = EIGHT_BITS,
    device: torch.device | str = "cpu",
    batch: int | None = None,
    autocast: torch.dtype | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Iterator[Float[Tensor, "b d"]]:
    """Features of the central view of each image, in order, some images at a time, float32 on the CPU.

    The encoder, already on `device`, runs in evaluation mode; each module then returns to the mode it was in.
    `batch`: images at a time, else `at_once`; `autocast`: a type for mixed precision; `advance` is told how many
    images are done. Raises InputError unless the encoder gives one row an image.
    """
    dtype, kind = next((p.dtype for p in encoder.parameters()), torch.float32), torch.device(device).type
    layout = torch.channels_last if kind == "cuda" else torch.contiguous_format  # as in training
    seen = {"mean": mean, "std": std, "value_range": value_range}
    for view in _central(images, size, seen, device, batch):
        # not around the loop: whoever takes the rows is not in evaluation mode, nor in mixed precision
        with torch.no_grad(), evaluating(encoder), torch.autocast(kind, autocast, enabled=autocast is not None):
            output = encoder(view.to(dtype, memory_format=layout))
        if output.ndim != 2:
            raise InputError(f"the encoder gives shape {tuple(output.shape)}; pool it to (images, features)")
        yield output.float().cpu()
        advance(len(view))


def at_once(size: int) -> int:
    """Images that a network without gradients looks at together: 500, fewer of more than 129 pixels a side.

    The first map of a ResNet is then of half a GiB at most.
    """
    return max(1, min(500, 2**23 // size**2))


def seen_by(config: Config, device: torch.device) -> dict[str, Any]:
    """How the encoder of a run sees images, as `features` takes it."""
    return {
        "size": config.data.size,
        **config.data.seen,
        "device": device,
        "autocast": autocast_here(config, device),
    }


@torch.no_grad()
def at_size(config: Config, encoder: nn.Module, size: int | None) -> Config:
    """The config of a run that looks at images of another size; InputError where its encoder takes only one."""
    if size in (None, config.data.size):
        return config
    try:
        encoder(torch.zeros(1, config.image_shape[0], size, size))
    except (RuntimeError, ValueError, AssertionError):
        only = f"{config.encoder.kind} was built for {config.data.size} px and takes no others"
        raise InputError(f"data.size={size}: {only}; leave data.size out") from None
    return config.model_copy(update={"data": config.data.model_copy(update={"size": size})})


def pixels(
    images: Images, size: int, batch: int | None = None, value_range: ValueRange | None = None
) -> Float[Tensor, "n d"]:
    """The central view of each image as one row of pixels in [0, 1]: features that need no encoder.

    `value_range` None: 0 to 255 of bytes, else by a sample of the images.
    """
    return torch.cat([*pixel_rows(images, size, batch, value_range)])


def pixel_rows(
    images: Images, size: int, batch: int | None = None, value_range: ValueRange | None = None
) -> Iterator[Float[Tensor, "b d"]]:
    """`pixels`, some images at a time."""
    value_range = value_range or found_range(sample(images))
    seen = {"mean": (0.0,) * images.channels, "std": (1.0,) * images.channels, "value_range": value_range}
    for view in _central(images, size, seen, "cpu", batch):
        yield view.flatten(1)


def by_image(rows: Iterable[Float[Tensor, "b d"]], images: Images) -> Float[Tensor, "m d"]:
    """The mean over the tiles of each image, in order of their groups; rows of other images are as they are.

    `rows` come some at a time, in order of the tiles. They are added up as they come: one row an image is held.
    """
    if not images.tiled:
        return torch.cat([*rows])
    assert images.groups is not None
    groups, place, counts = np.unique(images.groups, return_inverse=True, return_counts=True)
    sums, start, dtype = None, 0, torch.float32
    for some in rows:
        sums = torch.zeros(len(groups), some.shape[1], dtype=torch.float64) if sums is None else sums
        sums.index_add_(0, torch.from_numpy(place[start : start + len(some)]), some.double())
        start, dtype = start + len(some), some.dtype
    assert sums is not None and start == len(images)
    return (sums / torch.from_numpy(counts)[:, None]).to(dtype)


def check(train: Tensor, labels: Tensor, test: Tensor, classes: int) -> None:
    """Raises InputError where the features or labels of a classifier cannot be used."""
    for name, rows in (("training", train), ("test", test)):
        bad = int((~rows.isfinite()).any(1).sum())
        if bad:
            raise InputError(f"{bad} of {len(rows)} {name} features hold NaN or infinity: has the encoder diverged?")
    if len(train) == 0 or labels.min() < 0 or labels.max() >= classes:
        raise InputError(f"a classifier needs training features with labels from 0 to {classes - 1}")


def _central(
    images: Images,
    size: int,
    seen: Mapping[str, Any],
    device: torch.device | str,
    batch: int | None,
) -> Iterator[Tensor]:
    batch = batch or at_once(size)
    for start in range(0, len(images), batch):
        index = np.arange(start, min(start + batch, len(images)))
        yield centre(images.batch(index).to(device), size, aspect=images.aspects(index), **seen)
