"""The values of a set of images: which of them become 0 and 1, and the mean and spread of each channel."""

import math
from typing import Any

import numpy as np
from jaxtyping import Shaped
from numpy import ndarray as Array

from twinblock.config.data import Data
from twinblock.config.schema import Config
from twinblock.core.errors import InputError
from twinblock.data import Images
from twinblock.nn.imagenet import MEAN, STD
from twinblock.views import EIGHT_BITS, ValueRange

SAMPLED, VALUES = 256, 2**24  # images, and values of all channels, that are looked at
FULL = (255, 1023, 4095, 16383, 65535)  # usual values of white, of whole numbers
FULL_FLOAT = (1, 255, 65535)
USED = 1 / 8  # a smaller part of the full range, and the range is that of the values
FEW = 1 / 64  # a channel that fills a smaller part of the range would be of a few levels: each has a range of its own
PERCENTILES = (0.1, 99.9)
MOSTLY = 0.5  # a larger share of values that a run does not see, and images are refused


def sample(images: Images) -> Shaped[Array, "n h w c"]:
    """Some of the images, spread over all; the same ones each time."""
    count = max(1, min(len(images), SAMPLED, VALUES // max(1, math.prod(images.pixels.shape[1:]))))
    return images.batch(np.linspace(0, len(images) - 1, count).astype(int)).numpy()


def fitted(data: Data, images: Images) -> Data:
    """The fields `channels`, `range`, `mean` and `std` with what these images make of them.

    Raises InputError where they do not fit the images.
    """
    channels = images.channels
    if data.channels not in ("auto", channels):
        raise InputError(f"data.channels={data.channels}, but the images have {channels}; leave data.channels out")
    for name, default in (("mean", MEAN), ("std", STD)):
        given = getattr(data, name)
        wanted = len(default) if given == "imagenet" else channels if isinstance(given, str) else len(given)
        if wanted != channels:
            raise InputError(f"data.{name} has {wanted} values, and the images have {channels} channels: give as many")
    if not isinstance(data.range, str) and np.ndim(data.range) == 2 and len(data.range) != channels:
        raise InputError(
            f"data.range has {len(data.range)} pairs, and the images have {channels} channels: give one of each "
            "channel, or one [low, high] for all"
        )
    some = sample(images) if images.pixels.dtype != np.uint8 or _open(data, channels) else None
    found = EIGHT_BITS if some is None else value_range(some, data.range)
    mean, std = (MEAN, STD) if some is None else moments(some, found)
    photographs = channels == 3 and found in (EIGHT_BITS, (0.0, 1.0))
    pairs = {"mean": (MEAN, mean), "std": (STD, std)}
    update: dict[str, Any] = {"channels": channels, "range": found}
    for name, (published, measured) in pairs.items():
        given = getattr(data, name)
        if isinstance(given, str):
            update[name] = published if given == "imagenet" or (given == "auto" and photographs) else measured
    return data.model_copy(update=update)


def _open(data: Data, channels: int) -> bool:
    """Whether bytes need to be looked at."""
    measured = "measured" in (data.mean, data.std) or (channels != 3 and "auto" in (data.mean, data.std))
    return measured or data.range not in ("auto", "dtype")


def value_range(some: Shaped[Array, "n h w c"], wanted: Any = "auto") -> ValueRange:
    """The values that become 0 and 1, of all channels, or of each.

    `dtype`: all that the type holds, 0 to 1 for floats. `percentile`: 0.1 % and 99.9 % of the values. `auto`: 0 and the
    smallest usual full scale that holds them, of 8, 10, 12, 14 or 16 bits, or 1 for floats; the percentiles where they
    fill less than an eighth of that, and where some are negative. By either word each channel has a range of its own
    where one of them fills less than 1/64 of what all of them have in common.
    """
    if not isinstance(wanted, str):
        return wanted
    kind = some.dtype
    if wanted == "dtype":
        return (0.0, 1.0) if kind.kind == "f" else (float(np.iinfo(kind).min), float(np.iinfo(kind).max))
    if wanted == "auto" and kind == np.uint8:
        return EIGHT_BITS
    if not (values := _finite(some)).size:
        raise InputError("the images hold no values, only NaN: has data.range or the nodata value gone wrong?")
    common = _range_of(values, wanted)
    channels = [_finite(some[..., channel]) for channel in range(some.shape[3])]
    ends = [np.percentile(x, PERCENTILES) for x in channels if x.size and len(channels) > 1]
    if any(0 < high - low < FEW * (common[1] - common[0]) for low, high in ends):
        return tuple(_range_of(x, wanted) if x.size else common for x in channels)
    return common


def _range_of(values: Shaped[Array, "..."], wanted: str) -> tuple[float, float]:
    low, high = (float(value) for value in np.percentile(values, PERCENTILES))
    least, most = float(values.min()), float(values.max())
    whole = values.dtype.kind == "u" or (most > 1 and bool((values == np.rint(values)).all()))
    full = next((top for top in (FULL if whole else FULL_FLOAT) if least >= 0 and most <= top), None)
    if wanted == "auto" and full is not None and high - low >= USED * full:
        return 0.0, float(full)
    if low == high:
        low, high = (least, most) if least < most else (low, low + 1)
    return float(f"{low:.6g}"), float(f"{high:.6g}")


def moments(some: Shaped[Array, "n h w c"], value_range: ValueRange) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel in [0, 1], without missing values; 1 for a channel that is even."""
    means, stds = [], []
    for channel, (low, high) in enumerate(np.broadcast_to(value_range, (some.shape[3], 2))):
        x = ((some[..., channel].astype(np.float64) - low) / (high - low)).clip(0, 1)
        missing = np.isnan(x).all()
        means.append(0.0 if missing else float(f"{np.nanmean(x):.6g}"))
        stds.append(1.0 if missing else float(f"{np.nanstd(x):.6g}") or 1.0)
    return tuple(means), tuple(stds)


def in_words(images: Images, data: Data) -> str | None:
    """What the images hold and how it is seen, for a line of text; None for pictures of 8 bits and three colours."""
    dtype, channels = images.pixels.dtype, images.channels
    if dtype == np.uint8 and channels == 3 and data.range == EIGHT_BITS:
        return None
    some = sample(images)
    seen, limits = _finite(some), data.seen["value_range"]
    beyond = _beyond(some, limits)
    kind = images.kind or {"uint8": "8-bit", "uint16": "16-bit", "int16": "signed 16-bit"}.get(dtype.name, "float")
    words = f"{kind}, {channels} channel{'s' * (channels > 1)}, values {_number(seen.min())} to {_number(seen.max())}: "
    pairs = [f"[{low:.6g}, {high:.6g}]" for low, high in np.reshape(limits, (-1, 2))]
    words += f"range {pairs[0]}" if len(pairs) == 1 else f"ranges {', '.join(pairs)} of the channels"
    if beyond >= 0.0005:
        words += f", {beyond:.1%} of the values lie beyond it and are cut off"
    if seen.size < some.size:
        words += f", {1 - seen.size / some.size:.1%} are missing and become {_low_of(limits)}"
    return f"{words}; data.range=[low, high] changes {'it' if len(pairs) == 1 else 'them'}"


def _low_of(limits: ValueRange) -> str:
    """What missing values become, in words."""
    return f"{limits[0]:.6g}" if np.ndim(limits) == 1 else "the lower end"


def _beyond(some: Shaped[Array, "n h w c"], limits: ValueRange) -> float:
    """The share of the values, without missing ones, that lie beyond their range."""
    low, high = np.transpose(limits).astype(some.dtype if some.dtype.kind == "f" else np.float64)
    beyond, there = (some < low) | (some > high), np.isfinite(some)
    return float(beyond[there].mean()) if there.any() else 0.0


def seen_as(config: Config, data: Data, images: Images, *others: Images) -> Config:
    """The config of a trained run that looks at these images, whose fields are `data`: another range of values where
    they say one, of the first images where it is a word.

    Raises InputError for images that its encoder cannot take, or that it would see as nearly black or white.
    """
    channels, size, _ = config.image_shape
    for some in (images, *others):
        if some.channels != channels:
            raise InputError(
                f"{data.source_name} has images of {some.channels} channels, and the run was trained on {channels}"
            )
    if data.channels != "auto":  # a run of before 0.3 says nothing of values
        data = fitted(data, images)
    seen = config.data.model_copy(update={name: getattr(data, name) for name in ("range", "mean", "std")})
    for some in (images, *others):
        _check_range(some, seen.seen["value_range"], data.source_name)
    return config.model_copy(update={"data": seen.model_copy(update={"size": size})})


def _check_range(images: Images, value_range: ValueRange, source: str) -> None:
    if images.pixels.dtype == np.uint8 and value_range == EIGHT_BITS:
        return
    some = sample(images)
    shares = [_beyond(some[..., [i]], pair) for i, pair in enumerate(value_range) if isinstance(pair, tuple)]
    if max(shares or [_beyond(some, value_range)]) > MOSTLY:
        values = _finite(some)
        raise InputError(
            f"{source} has values from {_number(values.min())} to {_number(values.max())}, and the run sees "
            f"{_number(np.min(value_range))} to {_number(np.max(value_range))}: give data.range=[low, high] of these "
            "images"
        )


def _finite(some: Array) -> Array:
    return some[np.isfinite(some)] if some.dtype.kind == "f" else some


def _number(value: Any) -> str:
    return f"{float(value):.6g}"
