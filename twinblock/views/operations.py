"""Image operations with parameters per sample, equal to torchvision's on the same parameters.

Images are floats in [0, 1], parameters are arrays on the CPU. A trailing underscore means in place. Of most operations
there is a `plan_...`: it puts what the operation needs into a parcel, and gives the function that carries it out once
the parcel is sent. So one copy serves many operations.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from numpy import ndarray as Array
from torch import Tensor

from twinblock.views.parcel import Parcel

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # operations of the colour jitter
LUMA = np.array([0.2989, 0.587, 0.114], np.float32)  # gray from red, green and blue
BLOCK = 16  # outputs that share a window of inputs, where images are much larger than a window

Operation = Callable[[Tensor], Tensor]


def alone(plan: Callable[..., Operation], x: Tensor, *args: Any) -> Tensor:
    """One operation by itself: planned, sent and carried out."""
    parcel = Parcel()
    operation = plan(parcel, *args)
    parcel.send(x.device)
    return operation(x)


# the values that become 0 and 1: of all channels, or of each
ValueRange = tuple[float, float] | tuple[tuple[float, float], ...]


def unit(images: Shaped[Tensor, "n h w c"], value_range: ValueRange) -> Float[Tensor, "n h w c"]:
    """Values of which `value_range` becomes 0 to 1; what lies beyond is cut off, and NaN becomes 0."""
    return alone(plan_unit, images, value_range)


def plan_unit(parcel: Parcel, value_range: ValueRange) -> Operation:
    low, high = np.transpose(value_range)
    ends = [parcel.add(end) for end in (low.astype(float), high.astype(float))] if np.ndim(low) else None

    def scaled(images: Tensor) -> Tensor:
        x, (first, last) = images.float(), (low, high)
        if ends is not None:
            first, last = (end() for end in ends)
            x = torch.where(x.isnan(), first, x)
        elif images.is_floating_point():
            x = x.nan_to_num(float(low), float(high), float(low))
        return ((x - first) / (last - first)).clamp_(0, 1)

    return scaled


def resized_crop(
    images: Shaped[Tensor, "n h w c"],
    box: Float[Array, "n 4"],
    size: int,
    interpolation: str = "bilinear",
    flip: Bool[Array, "n"] | None = None,
) -> Float[Tensor, "n c s s"]:
    """Crops to a box (top, left, height, width), resizes with antialiasing, mirrors where `flip` says so.

    Images are bytes, or floats in [0, 1].
    """
    flip = np.zeros(len(box), bool) if flip is None else flip
    return alone(plan_crop, images, images.shape, box, size, interpolation, flip)


def plan_crop(
    parcel: Parcel,
    shape: Sequence[int],
    box: Float[Array, "n 4"],
    size: int,
    interpolation: str,
    flip: Bool[Array, "n"],
    together: bool = False,
) -> Operation:
    """`resized_crop` of images (n, h, w, c); `together`: both axes of square images have their weights at once."""
    n, h, w, c = shape
    cubic = interpolation == "bicubic"
    start, length, mirrored = box[:, :2].T, box[:, 2:].T, np.stack([np.zeros(n, bool), flip])
    axes = [[0, 1]] if together and h == w else [[0], [1]]
    planned = [
        plan_weights(parcel, start[a].ravel(), length[a].ravel(), mirrored[a].ravel(), shape[1 + a[0]], size, cubic)
        for a in axes
    ]
    index = [part for windows, _ in planned for part in np.split(windows, len(windows) // n)]
    down = plan_windows(parcel, index[0], h, 1)
    across = plan_windows(parcel, index[1], w, index[0].shape[1])

    def crop(images: Tensor) -> Tensor:
        of_rows, of_columns = (part for _, weights in planned for part in weights().split(n))
        x = resample(images.reshape(n, 1, h, w * c), down, of_rows)
        rows, row = x.shape[1], x.shape[3]
        x = resample(x.view(n, rows, w, c * row), across, of_columns)
        columns, column = x.shape[1], x.shape[3]
        x = x.view(n, columns, rows, c, row, column).permute(0, 3, 2, 4, 1, 5)
        x = x.reshape(n, c, rows * row, columns * column)[:, :, :size, :size].contiguous()
        x = x.div_(255) if images.dtype == torch.uint8 else x
        return x.clamp_(0, 1) if cubic else x

    return crop


def plan_weights(
    parcel: Parcel,
    start: Float[Array, "n"],
    length: Float[Array, "n"],
    flip: Bool[Array, "n"],
    k: int,
    size: int,
    cubic: bool,
) -> tuple[Int[Array, "n b p"], Callable[[], Float[Tensor, "n b p o"]]]:
    """How start to start + length of an axis of k inputs becomes `size` outputs, in b blocks of o (the last overfull).

    Output i has its middle at start + (i + 1/2) length / size and weighs the inputs around it by a triangle,
    or by the Keys cubic with a = -1/2, widened where the image shrinks, cut off at the ends of the box and
    normalised. The outputs of a block share a window of p inputs. Given are the windows and, once sent, the weights.
    """
    count = math.ceil(size / BLOCK) if k > 4 * BLOCK else 1
    block = math.ceil(size / count)
    output = np.arange(count * block).reshape(count, block)
    output = np.where(flip[:, None, None], size - 1 - output, output)
    start, stop, scale = (value[:, None, None] for value in (start, start + length, length / size))
    spread, reach = np.maximum(scale, 1), 2 if cubic else 1
    middle = start + (output.clip(0, size - 1) + 0.5) * scale - 0.5
    pooling = min(k, math.ceil((block - 1 + 2 * reach) * max(k / size, 1)) + 1)  # enough for any box
    first = np.floor(middle.min(2, keepdims=True) - reach * spread).clip(0, k - pooling).astype(np.int64)
    index = first + np.arange(pooling)
    place = np.where((index >= start) & (index < stop), index, -1e6)  # outside the box: beyond any reach
    # whole pixels and fractions apart: so the distance keeps the precision of float32
    given = [parcel.add(value) for value in (place, np.floor(middle), middle % 1, spread)]

    def weights() -> Tensor:
        place, whole, part, spread = (value() for value in given)
        distance = place[..., None] - whole[..., None, :]
        distance.sub_(part[..., None, :]).div_(spread[..., None])
        weight = cubic_(distance) if cubic else triangle_(distance)
        return weight.div_(weight.sum(2, keepdim=True))

    return index, weights


def plan_windows(parcel: Parcel, index: Int[Array, "n b p"], k: int, groups: int) -> Callable[[], Tensor] | None:
    """Which of n * groups rows of k inputs are in the windows, sample by sample; None: all of them, in order.

    A row of each sample and one of each group are sent, and their sums made there: they are many.
    """
    n, _, pooling = index.shape
    if pooling == k and groups == 1:
        return None
    first = parcel.add(index + k * groups * np.arange(n)[:, None, None])
    if groups == 1:
        return lambda: first().view(-1)
    more = parcel.add(k * np.arange(groups))
    return lambda: (first()[..., None] + more()).view(-1)


def resample(
    x: Shaped[Tensor, "n g k m"], windows: Callable[[], Tensor] | None, weight: Float[Tensor, "n b p o"]
) -> Float[Tensor, "n b gm o"]:
    """Weighs the inputs along axis k, window by window: a batch of small matrix products."""
    n, groups, k, m = x.shape
    _, count, pooling, block = weight.shape
    if windows is not None:
        x = x.reshape(n * groups * k, m).index_select(0, windows())
    x = x.float().view(n * count, pooling, groups * m)
    return torch.bmm(x.mT, weight.view(n * count, pooling, block)).view(n, count, groups * m, block)


def triangle_(t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """max(0, 1 - |t|)."""
    return t.abs_().neg_().add_(1).clamp_(min=0)


def cubic_(t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Keys (1981) for u = |t|: (2 - u)^2 (1 - u) / 2 where u < 2, and (1 - u)^2 (2u - 1) more where u < 1."""
    u = t.abs_().clamp_(max=2)
    near = (1 - u).clamp_(min=0).square_().mul_(2 * u - 1)
    return near.addcmul_((2 - u).square_(), 1 - u, value=0.5)


def color_jitter_(
    x: Float[Tensor, "n 3 h w"], order: Int[Array, "n p"], factor: Float[Array, "n 4"]
) -> Float[Tensor, "n 3 h w"]:
    """The operations in each sample's `order`; the place of the hue in it must not fall from sample to sample.

    Brightness, contrast and saturation are clip(f x + (1 - f) a) with a = 0, the mean of gray(x), or gray(x).
    """
    return alone(plan_color_jitter, x, order, factor)


def plan_color_jitter(parcel: Parcel, order: Int[Array, "n p"], factor: Float[Array, "n 4"]) -> Operation:
    """The hue is turned of all samples at once: those of which it is the last wait, the others have the rest after it.

    So any place of the hue needs one turn, and one operation for each place before it and after it.
    """
    (n, p), hue = order.shape, order == HUE
    place = np.where(hue.any(1), hue.argmax(1), p)
    assert (place[1:] >= place[:-1]).all(), "samples are sorted by the place of the hue"
    until = np.searchsorted(place, np.arange(p + 1)).tolist()  # how many have the hue before each place
    # (rows, place) of the operations before the hue, then of those after it
    before = [(np.arange(until[j + 1], n), np.full(n - until[j + 1], j)) for j in range(p) if until[j + 1] < n]
    after = [(np.arange(until[j]), place[: until[j]] + p - j) for j in range(p - 1, 0, -1) if until[j]]
    blend = plan_blends(parcel, order, factor, before + after)
    turn = plan_hue(parcel, factor[: until[p], HUE]) if until[p] else None

    def jitter(x: Tensor) -> Tensor:
        blends = blend()
        for _ in before:
            next(blends)(x)
        if turn is not None:
            turn(x[: until[p]])
        for one in blends:
            one(x)
        return x

    return jitter


def plan_blends(
    parcel: Parcel,
    order: Int[Array, "n p"],
    factor: Float[Array, "n 4"],
    steps: list[tuple[Int[Array, "_"], Int[Array, "_"]]],
) -> Callable[[], Iterator[Operation]]:
    """Brightness, contrast or saturation: in each step of neighbouring rows, of each row that at its place."""
    rows, places = (np.concatenate([np.zeros(0, int), *parts]) for parts in ([s[i] for s in steps] for i in (0, 1)))
    kind = order[rows, places]
    f = factor[rows, kind][:, None, None]
    anchors = [(1 - f) * (kind == which)[:, None, None] * LUMA for which in (CONTRAST, SATURATION)]
    given = [parcel.add(value) for value in (*anchors, f)]

    def blends() -> Iterator[Operation]:
        sizes = [len(of_rows) for of_rows, _ in steps]
        for (of_rows, _), *numbers in zip(steps, *(value().split(sizes) for value in given), strict=True):
            yield partial(blend_, slice(of_rows[0], of_rows[-1] + 1), *numbers)

    return blends


def blend_(rows: slice, flat: Tensor, local: Tensor, f: Tensor, x: Tensor) -> Tensor:
    """Times f, plus the mean of the image and the pixel, each weighed by channel."""
    planes = x[rows].flatten(2)
    anchor = torch.bmm(flat, planes.mean(2, keepdim=True))
    anchor = torch.baddbmm(anchor, local, planes)
    torch.addcmul(anchor, planes, f, out=planes).clamp_(0, 1)
    return x


def plan_intensity_jitter(parcel: Parcel, order: Int[Array, "n p"], factor: Float[Array, "n 4"]) -> Operation:
    """Brightness and contrast in each sample's `order`, for channels that are no colours.

    clip(f x + (1 - f) a) with a = 0, and with a = the mean of the channel.
    """
    f, given = np.take_along_axis(factor, order, 1), []
    for place, kind in enumerate(order.T):
        here = np.where(kind <= CONTRAST, f[:, place], 1.0)
        given.append([parcel.add(value) for value in (here, (1 - here) * (kind == CONTRAST))])

    def jitter(x: Tensor) -> Tensor:
        for values in given:
            brighter, anchored = (value().view(-1, 1, 1, 1) for value in values)
            mean = x.mean((2, 3), keepdim=True)
            x.mul_(brighter).add_(mean.mul_(anchored)).clamp_(0, 1)
        return x

    return jitter


def adjust_hue_(x: Float[Tensor, "n 3 h w"], shift: Float[Array, "n"]) -> Float[Tensor, "n 3 h w"]:
    """Shifts the hue of HSV by `shift` turns, keeping the largest channel V and the smallest m.

    Thirds of a turn permute the channels. A further p <= 1 sixths of a turn takes R to
    clip(R - G + (m + p (V - m) if B >= G else V - p (V - m)), m, V), and so on in the cycle R, G, B;
    backwards the cycle is R, B, G. This equals the way through HSV, without its divisions and cases.
    """
    return alone(plan_hue, x, shift)


def plan_hue(parcel: Parcel, shift: Float[Array, "n"]) -> Operation:
    n, thirds = len(shift), np.rint(3 * shift)
    rest = 6 * shift - 2 * thirds
    step = np.where(rest < 0, -1, 1)
    cycle = np.stack([-thirds, step - thirds, step]).astype(np.int64)
    index = (cycle[..., None] + np.arange(3)) % 3 + 3 * np.arange(n)[:, None]
    indices, parts = parcel.add(index.reshape(3, 3 * n)), parcel.add(np.abs(rest))

    def turn(x: Tensor) -> Tensor:
        (here, ahead, after), part = indices(), parts().view(n, 1, 1, 1)
        high, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
        planes = x.view(3 * n, x.shape[2] * x.shape[3])
        slope = planes.index_select(0, ahead)
        torch.sub(planes.index_select(0, here) if thirds.any() else planes, slope, out=slope)
        falls = slope.index_select(0, after).le_(0).view(x.shape)
        level = torch.lerp(torch.lerp(high, low, part), torch.lerp(low, high, part), falls)
        return torch.clamp(level.add_(slope.view(x.shape)), low, high, out=x)

    return turn


def grayscale_(x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """Three equal channels of luma."""
    return alone(plan_gray, x)


def plan_gray(parcel: Parcel) -> Operation:
    luma = parcel.add(LUMA)

    def gray(x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        return x.copy_((luma() @ x.view(n, 3, h * w)).view(n, 1, h, w))

    return gray


def gaussian_blur(x: Float[Tensor, "n c h w"], sigma: Float[Array, "n"], radius: int) -> Float[Tensor, "n c h w"]:
    """Blurs with weights exp(-d^2 / (2 sigma^2)) for |d| <= radius, normalised; the border is reflected."""
    return alone(plan_blur, x.clone(), sigma, radius, x.shape[1])


def plan_blur(parcel: Parcel, sigma: Float[Array, "n"], radius: int, channels: int) -> Operation:
    """`gaussian_blur` in place."""
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma[:, None]) ** 2)
    kernels = parcel.add((kernel / kernel.sum(1, keepdims=True)).repeat(channels, 0))

    def blur(x: Tensor) -> Tensor:
        (n, c, h, w), kernel = x.shape, kernels()
        wide = F.pad(x, (radius,) * 4, mode="reflect").view(1, n * c, h + 2 * radius, w + 2 * radius)
        wide = F.conv2d(wide, kernel[:, None, None, :], groups=n * c)
        return x.copy_(F.conv2d(wide, kernel[:, None, :, None], groups=n * c).view(n, c, h, w))

    return blur


def solarize_(x: Float[Tensor, "n c h w"], threshold: float = 0.5) -> Float[Tensor, "n c h w"]:
    """1 - x where x >= threshold."""
    bright = torch.ge(x, threshold, out=torch.empty_like(x))
    return x.lerp_(1 - x, bright)
