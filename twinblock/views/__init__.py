"""Random views of whole batches of any values and channels, on the batch's device.

Parameters are drawn apart from being applied.

What happens to a sample is a function of (seed, epoch, step, view, position in the global batch) alone, so
one process or many, on the CPU or a GPU, see the same views.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from numpy import ndarray as Array
from pydantic import BaseModel, Field, model_validator
from torch import Tensor

from twinblock.core.errors import InputError
from twinblock.core.seeding import hashed
from twinblock.views.operations import (
    HUE,
    Operation,
    ValueRange,
    plan_blur,
    plan_color_jitter,
    plan_crop,
    plan_gray,
    plan_intensity_jitter,
    plan_unit,
    solarize_,
)
from twinblock.views.parcel import Parcel

TRIES = 10  # of a random box
RATIO = (3 / 4, 4 / 3)  # width/height of a random box
# uniform numbers of a sample: for the size of its box, its place, decisions, order, factors, sigma
UNIFORM = (2 * TRIES, 2, 5, 4, 4, 1)
EIGHT_BITS = (0.0, 255.0)  # the values that are black and white
CHUNK = 1_200_000  # values worked on at once on the CPU, so that they stay in its cache
MANY = 100_000_000  # values worked on at once on a GPU, which its memory bounds

Probability = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0, le=1e3)]
HueStrength = Annotated[float, Field(ge=0, le=0.5)]


class View(BaseModel, extra="forbid", frozen=True, use_attribute_docstrings=True):
    """How one view of an image is made, at random."""

    crop: tuple[float, float] | None = (0.2, 1.0)
    """Range of the random resized crop's area; None: the central square."""
    flip: Probability = 0.5
    """Probability of a horizontal flip."""
    jitter: tuple[Strength, Strength, Strength, HueStrength] = (0.4, 0.4, 0.2, 0.1)
    """Strengths of the jitter of brightness, contrast, saturation and hue; the last two are of 3 channels."""
    jitter_p: Probability = 0.8
    """Probability of the jitter."""
    gray: Probability = 0.2
    """Probability of no colour; of 3 channels."""
    blur: Probability = 0.0
    """Probability of a Gaussian blur."""
    solarize: Probability = 0.0
    """Probability of solarisation; of 1 or 3 channels."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How pixels are interpolated."""
    size: Annotated[int, Field(ge=8, le=1024)] | None = None
    """Side in pixels; None: that of the run."""
    count: Annotated[int, Field(ge=1, le=64)] = 1
    """How many such views there are."""

    @model_validator(mode="after")
    def _crop_is_a_range(self) -> "View":
        if isinstance(self.crop, tuple) and not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise ValueError(f"crop is {self.crop}, but must be a range of areas, 0 < low <= high <= 1")
        return self


def left_out(spec: View, channels: int) -> dict[str, Any]:
    """What a view of so many channels goes without, as the fields that say so: colour is of 3, solarisation of 1 or 3
    channels.
    """
    fields: dict[str, Any] = {}
    if channels != 3 and spec.jitter_p and any(spec.jitter[2:]):
        fields["jitter"] = (*spec.jitter[:2], 0, 0)
    if channels != 3 and spec.gray:
        fields["gray"] = 0
    if channels not in (1, 3) and spec.solarize:
        fields["solarize"] = 0
    return fields


class Views:
    """Makes a batch for each view of each spec, normalised by `mean` and `std` of images in [0, 1].

    There are as many channels as means. `value_range`: the values that become 0 and 1, of all channels or of each; what
    lies beyond is cut off. Brightness is one factor for all channels; contrast is of each channel alone where they are
    not 3. Raises InputError for operations that mean nothing for these channels.
    """

    def __init__(
        self,
        specs: Sequence[View],
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        value_range: ValueRange = EIGHT_BITS,
    ) -> None:
        self.specs = tuple(spec for spec in specs for _ in range(spec.count))
        self.size, self.mean, self.std, self.value_range = size, tuple(mean), tuple(std), value_range
        self.alike: dict[tuple[int, str], list[int]] = defaultdict(list)  # places of views that are made together
        for place, spec in enumerate(self.specs):
            self.alike[spec.size or size, spec.interpolation].append(place)
        for i, spec in enumerate(specs):
            if fields := left_out(spec, len(self.mean)):
                given = ", ".join(f"{name}={value}" for name, value in fields.items())
                raise InputError(f"view {i}: colour has no meaning for {len(self.mean)} channels; set {given}")

    def __call__(
        self,
        images: Shaped[Tensor, "n h w c"],
        *,
        seed: int,
        epoch: int,
        step: int,
        batch: int,
        offset: int = 0,
        aspect: Float[Tensor, "n"] | None = None,
    ) -> list[Float[Tensor, "n c _ _"]]:
        """Contiguous views of the images at positions `offset` to `offset + n` of a global batch of `batch`.

        `step` counts within the epoch. `aspect`: width/height of images before they were squashed, on the CPU.
        """
        n, height, width, channels = images.shape
        if channels != len(self.mean):
            raise InputError(
                f"images of {channels} channel{'s' * (channels > 1)}, and mean has {len(self.mean)} values: give mean "
                "and std of as many as the images have channels"
            )
        assert offset + n <= batch, f"positions {offset} to {offset + n} in a batch of {batch}"
        made: dict[int, Float[Tensor, "n c _ _"]] = {}
        for (size, interpolation), places in self.alike.items():
            several = []
            for index in places:
                generator = np.random.Generator(np.random.PCG64(hashed("view", seed, epoch, step, index)))
                uniform = generator.random((batch, sum(UNIFORM)))[offset : offset + n]
                several.append(draw(self.specs[index], uniform, height, width, aspect))
            how = (size, self.mean, self.std, interpolation, self.value_range)
            made |= zip(places, apply_all(images, several, *how), strict=True)
        return [made[index] for index in range(len(self.specs))]


def centre(
    images: Shaped[Tensor, "n h w c"],
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    aspect: Float[Tensor, "n"] | None = None,
    value_range: ValueRange = EIGHT_BITS,
) -> Float[Tensor, "n c s s"]:
    """The view for evaluation: the largest central square, resized with antialiasing and normalised."""
    n, height, width, _ = images.shape
    plain = View(crop=None, flip=0, jitter_p=0, gray=0)
    params = draw(plain, np.zeros((n, sum(UNIFORM))), height, width, aspect)
    return apply(images, params, size, mean, std, plain.interpolation, value_range)


@dataclass(frozen=True)
class Params:
    """What happens to each of n samples."""

    box: Float[Array, "n 4"]  # top, left, height, width in stored pixels, whole numbers
    flip: Bool[Array, "n"]
    jitter: Bool[Array, "n"]
    order: Int[Array, "n 4"]  # the operation at each place of the jitter
    factor: Float[Array, "n 4"]  # by operation; for the hue a shift in turns
    gray: Bool[Array, "n"]
    blur: Bool[Array, "n"]
    sigma: Float[Array, "n"]  # of the blur, in pixels of the view
    solarize: Bool[Array, "n"]

    def __getitem__(self, rows: Int[Array, "m"]) -> "Params":
        return Params(*(value[rows] for value in vars(self).values()))

    @classmethod
    def of_all(cls, several: Sequence["Params"]) -> "Params":
        """Of several views, one after the other."""
        return cls(*(np.concatenate(values) for values in zip(*(vars(p).values() for p in several), strict=True)))


def draw(
    spec: View,
    uniform: Float[Array, "n u"],
    height: int,
    width: int,
    aspect: Float[Tensor, "n"] | None = None,
) -> Params:
    """Maps uniform numbers, a row per sample, to parameters for stored images of height x width."""
    n = len(uniform)
    tries, place, chance, order, factor, sigma = np.split(uniform, np.cumsum(UNIFORM)[:-1], axis=1)
    full = np.array([height, width])
    aspects = np.full(n, width / height) if aspect is None else aspect.cpu().double().numpy()
    if spec.crop is None:
        box = square_box(full, aspects)
    else:
        box = random_box(tries.reshape(n, TRIES, 2), place, spec.crop, full, aspects)
    chances = np.array([spec.flip, spec.jitter_p, spec.gray, spec.blur, spec.solarize])
    flip, jitter, gray, blur, solarize = (chance < chances).T
    neutral, strength = np.array([1, 1, 1, 0]), np.array(spec.jitter)
    low = np.maximum(neutral - strength, [0, 0, 0, -1])
    factor = low + factor * (neutral + strength - low)
    sigma = 0.1 + 1.9 * sigma[:, 0]
    return Params(box, flip, jitter, order.argsort(1), factor, gray, blur, sigma, solarize)


def random_box(
    tries: Float[Array, "n t 2"],
    place: Float[Array, "n 2"],
    area: tuple[float, float],
    full: Int[Array, "2"],
    aspect: Float[Array, "n"],
) -> Float[Array, "n 4"]:
    """Boxes of random resized crops: the first try that fits, else the largest central box of a legal ratio.

    The share of the area and the logarithm of the ratio are uniform. Sizes are chosen in the geometry of the
    original, whose width/height is `aspect`, and rounded to the `full` = (height, width) stored pixels.
    """
    share = area[0] + (area[1] - area[0]) * tries[..., 0]
    ratio = RATIO[0] * (RATIO[1] / RATIO[0]) ** tries[..., 1] / aspect[:, None]
    sizes = np.rint(full * np.sqrt(np.stack([share / ratio, share * ratio], 2)))
    fits = np.all((sizes > 0) & (sizes <= full), axis=2)
    central = np.rint(full * np.minimum(1, np.stack([aspect / RATIO[0], RATIO[1] / aspect], 1)))
    fitting = np.any(fits, axis=1, keepdims=True)
    size = np.where(fitting, sizes[np.arange(len(sizes)), fits.argmax(1)], np.maximum(1, central))
    start = np.where(fitting, np.floor(place * (full - size + 1)), (full - size) // 2)
    return np.concatenate([start, size], 1)


def square_box(full: Int[Array, "2"], aspect: Float[Array, "n"]) -> Float[Array, "n 4"]:
    """The largest central square of the original geometry, in stored pixels."""
    size = np.maximum(1, np.rint(full * np.minimum(1, np.stack([aspect, 1 / aspect], 1))))
    return np.concatenate([(full - size) // 2, size], 1)


def apply(
    images: Shaped[Tensor, "n h w c"],
    params: Params,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str,
    value_range: ValueRange = EIGHT_BITS,
) -> Float[Tensor, "n c s s"]:
    """Crops and flips, jitters, grays, blurs, solarizes and normalises, in this order."""
    return apply_all(images, [params], size, mean, std, interpolation, value_range)[0]


@torch.no_grad()
def apply_all(
    images: Shaped[Tensor, "n h w c"],
    several: Sequence[Params],
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str,
    value_range: ValueRange = EIGHT_BITS,
) -> list[Float[Tensor, "n c s s"]]:
    """`apply` of several views, which a GPU makes as one batch.

    Samples are sorted so that those with the same operations are neighbours: each operation works on slices. A GPU has
    as few of them as can be; a processor has small ones, which stay in its cache.
    """
    (n, _, _, channels), device = images.shape, images.device
    params = Params.of_all(several)
    small = small_runs(device)
    if small and len(several) > 1:
        return [apply(images, params, size, mean, std, interpolation, value_range) for params in several]
    keys = (params.solarize, params.gray, hue_places(params), params.blur)
    sort = np.lexsort(keys if small else keys[2:3])
    chunk = max(1, (CHUNK if small else MANY) // (channels * size * size))
    out = torch.zeros(len(sort), channels, size, size, device=device)
    with torch.autocast(device.type, enabled=False):
        for start in range(0, len(sort), chunk):
            rows, parcel = sort[start : start + chunk], Parcel()
            p, shape = params[rows], (len(rows), *images.shape[1:])
            # bytes are scaled once they are small
            plain = images.dtype == torch.uint8 and value_range == EIGHT_BITS
            operations = [] if plain else [plan_unit(parcel, value_range)]
            operations.append(plan_crop(parcel, shape, p.box, size, interpolation, p.flip, not small))
            operations.append(plan_jitter(parcel, p, channels, small))
            finish, order = plan_rest(parcel, p, channels, max(1, size // 20), small)
            given = [
                parcel.add(numbers) for numbers in (rows % n, rows[order], np.array(mean, float), np.array(std, float))
            ]
            parcel.send(device)
            of_images, of_views, shift, scale = (numbers() for numbers in given)
            x = images.index_select(0, of_images)
            for operation in (*operations, finish):
                x = operation(x)
            x.sub_(shift.view(-1, 1, 1)).div_(scale.view(-1, 1, 1))
            out.index_add_(0, of_views, x)  # several times faster than index_copy_
    # `data`: each view counts its changes by itself, as a network may change its input in place
    return [view.data for view in out.split(n)]


def small_runs(device: torch.device) -> bool:
    """Whether operations work best on a few samples at a time."""
    return device.type == "cpu"


def hue_places(params: Params) -> Int[Array, "n"]:
    """Which operation of the jitter is the hue; 4 where there is no jitter."""
    return np.where(params.jitter, (params.order == HUE).argmax(1), 4)


def plan_jitter(parcel: Parcel, p: Params, channels: int, small: bool) -> Operation:
    """The jitter of samples that are sorted by the place of the hue: in one run, or in one for each place."""
    plan, places = plan_color_jitter if channels == 3 else plan_intensity_jitter, hue_places(p)
    some = [run for place in range(4) for run in runs(places == place)] if small else runs(p.jitter)
    steps = [(run, plan(parcel, p.order[run], p.factor[run])) for run in some]
    return lambda x: on_runs(x, steps)


def on_runs(x: Tensor, steps: Sequence[tuple[slice, Operation]]) -> Tensor:
    """Operations in place, each on a run of samples."""
    for run, operation in steps:
        operation(x[run])
    return x


def plan_rest(parcel: Parcel, p: Params, channels: int, radius: int, small: bool) -> tuple[Operation, Int[Array, "n"]]:
    """What follows the jitter; where runs are to be long, of samples in an order of its own, which is given too."""
    order = np.arange(len(p.gray))
    if not small:  # each key turns round where the one before it does: so those with one operation are neighbours
        order = np.lexsort((p.solarize ^ p.gray ^ p.blur, p.gray ^ p.blur, p.blur))
    again = None if (np.diff(order) == 1).all() else parcel.add(order)
    p = p[order]
    steps: list[tuple[slice, Operation]] = [(run, plan_gray(parcel)) for run in runs(p.gray)]
    steps += [(run, plan_blur(parcel, p.sigma[run], radius, channels)) for run in runs(p.blur)]
    steps += [(run, solarize_) for run in runs(p.solarize)]

    return lambda x: on_runs(x if again is None else x.index_select(0, again()), steps), order


def runs(chosen: Bool[Array, "n"]) -> list[slice]:
    """The runs of neighbours that are chosen."""
    edges = np.flatnonzero(np.diff(chosen.astype(int), prepend=0, append=0))
    return [slice(*pair) for pair in edges.reshape(-1, 2).tolist()]
