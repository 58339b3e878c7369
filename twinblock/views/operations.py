"""Image operations with parameters per sample, equal to torchvision's on the same parameters.

Images are floats in [0, 1], parameters are arrays on the CPU. A trailing underscore means in place.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from numpy import ndarray as Array
from torch import Tensor

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # operations of the colour jitter
LUMA = np.array([0.2989, 0.587, 0.114], np.float32)  # gray from red, green and blue
BLOCK = 16  # outputs that share a window of inputs, where images are much larger than a window


def tensor(values: Shaped[Array, "..."], like: Tensor) -> Tensor:
    """To the device of `like`, which is not waited for; floats become float32."""
    values = values.astype(np.float32) if values.dtype == np.float64 else values
    return torch.from_numpy(values).to(like.device, non_blocking=True)


# the values that become 0 and 1: of all channels, or of each
ValueRange = tuple[float, float] | tuple[tuple[float, float], ...]


def unit(images: Shaped[Tensor, "n h w c"], value_range: ValueRange) -> Float[Tensor, "n h w c"]:
    """Values of which `value_range` becomes 0 to 1; what lies beyond is cut off, and NaN becomes 0."""
    x, (low, high) = images.float(), np.transpose(value_range)
    if np.ndim(low):
        low, high = tensor(low, x), tensor(high, x)
        x = torch.where(x.isnan(), low, x)
    elif images.is_floating_point():
        x = x.nan_to_num(float(low), float(high), float(low))
    return ((x - low) / (high - low)).clamp_(0, 1)


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
    n, h, w, c = images.shape
    top, left, height, width = box.T
    cubic = interpolation == "bicubic"
    x = resample(images.reshape(n, 1, h, w * c), top, height, size, cubic)
    rows, row = x.shape[1], x.shape[3]
    x = resample(x.view(n, rows, w, c * row), left, width, size, cubic, flip)
    columns, column = x.shape[1], x.shape[3]
    x = x.view(n, columns, rows, c, row, column).permute(0, 3, 2, 4, 1, 5)
    x = x.reshape(n, c, rows * row, columns * column)[:, :, :size, :size].contiguous()
    x = x.div_(255) if images.dtype == torch.uint8 else x
    return x.clamp_(0, 1) if cubic else x


def resample(
    x: Shaped[Tensor, "n g k m"],
    start: Float[Array, "n"],
    length: Float[Array, "n"],
    size: int,
    cubic: bool,
    flip: Bool[Array, "n"] | None = None,
) -> Float[Tensor, "n b gm o"]:
    """Resizes start to start + length of axis k to `size` outputs, in b blocks of o (the last one overfull).

    Output i has its middle at start + (i + 1/2) length / size and weighs the inputs around it by a triangle,
    or by the Keys cubic with a = -1/2, widened where the image shrinks, cut off at the ends of the box and
    normalised. The outputs of a block share a window of inputs: this is a batch of small matrix products.
    """
    n, groups, k, m = x.shape
    count = math.ceil(size / BLOCK) if k > 4 * BLOCK else 1
    block = math.ceil(size / count)
    output = np.arange(count * block).reshape(count, block)
    if flip is not None:
        output = np.where(flip[:, None, None], size - 1 - output, output)
    start, stop, scale = (value[:, None, None] for value in (start, start + length, length / size))
    spread, reach = np.maximum(scale, 1), 2 if cubic else 1
    middle = start + (output.clip(0, size - 1) + 0.5) * scale - 0.5
    pooling = min(k, math.ceil((block - 1 + 2 * reach) * max(k / size, 1)) + 1)  # enough for any box
    first = np.floor(middle.min(2, keepdims=True) - reach * spread).clip(0, k - pooling).astype(np.int64)
    index = first + np.arange(pooling)
    place = np.where((index >= start) & (index < stop), index, -1e6)  # outside the box: beyond any reach
    # whole pixels and fractions apart: so the distance keeps the precision of float32
    distance = tensor(place, x)[..., None] - tensor(np.floor(middle), x)[..., None, :]
    distance.sub_(tensor(middle % 1, x)[..., None, :]).div_(tensor(spread, x)[..., None])
    weight = cubic_(distance) if cubic else triangle_(distance)
    weight.div_(weight.sum(2, keepdim=True))
    if pooling < k or groups > 1:
        rows = index[..., None] + k * np.arange(n * groups).reshape(n, 1, 1, groups)
        x = x.reshape(n * groups * k, m).index_select(0, tensor(rows.ravel(), x))
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
    """The operations in each sample's `order`, in which the hue must have the same place for all.

    Brightness, contrast and saturation are clip(f x + (1 - f) a) with a = 0, the mean of gray(x), or gray(x).
    """
    n, _, h, w = x.shape
    f = np.take_along_axis(factor, order, 1).T[..., None, None]
    kind = order.T[..., None, None]
    flat = tensor((1 - f) * (kind == CONTRAST) * LUMA, x)
    local = tensor((1 - f) * (kind == SATURATION) * LUMA, x)
    f = tensor(f, x)
    planes = x.view(n, 3, h * w)
    for place, first in enumerate(order[0]):
        if first == HUE:
            adjust_hue_(x, factor[:, HUE])
        else:
            anchor = torch.bmm(flat[place], planes.mean(2, keepdim=True))
            anchor = torch.baddbmm(anchor, local[place], planes)
            torch.addcmul(anchor, planes, f[place], out=planes).clamp_(0, 1)
    return x


def intensity_jitter_(
    x: Float[Tensor, "n c h w"], order: Int[Array, "n p"], factor: Float[Array, "n 4"]
) -> Float[Tensor, "n c h w"]:
    """Brightness and contrast in each sample's `order`, for channels that are no colours.

    clip(f x + (1 - f) a) with a = 0, and with a = the mean of the channel.
    """
    f = np.take_along_axis(factor, order, 1)
    for place, kind in enumerate(order.T):
        here = np.where(kind <= CONTRAST, f[:, place], 1.0)
        brighter, anchored = (tensor(value, x).view(-1, 1, 1, 1) for value in (here, (1 - here) * (kind == CONTRAST)))
        mean = x.mean((2, 3), keepdim=True)
        x.mul_(brighter).add_(mean.mul_(anchored)).clamp_(0, 1)
    return x


def adjust_hue_(x: Float[Tensor, "n 3 h w"], shift: Float[Array, "n"]) -> Float[Tensor, "n 3 h w"]:
    """Shifts the hue of HSV by `shift` turns, keeping the largest channel V and the smallest m.

    Thirds of a turn permute the channels. A further p <= 1 sixths of a turn takes R to
    clip(R - G + (m + p (V - m) if B >= G else V - p (V - m)), m, V), and so on in the cycle R, G, B;
    backwards the cycle is R, B, G. This equals the way through HSV, without its divisions and cases.
    """
    n, _, h, w = x.shape
    thirds = np.rint(3 * shift)
    rest = 6 * shift - 2 * thirds
    step = np.where(rest < 0, -1, 1)
    cycle = np.stack([-thirds, step - thirds, step]).astype(np.int64)
    index = (cycle[..., None] + np.arange(3)) % 3 + 3 * np.arange(n)[:, None]
    here, ahead, after = tensor(index.reshape(3, 3 * n), x)
    part = tensor(np.abs(rest), x).view(n, 1, 1, 1)
    high, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    planes = x.view(3 * n, h * w)
    slope = planes.index_select(0, ahead)
    torch.sub(planes.index_select(0, here) if thirds.any() else planes, slope, out=slope)
    falls = slope.index_select(0, after).le_(0).view(x.shape)
    level = torch.lerp(torch.lerp(high, low, part), torch.lerp(low, high, part), falls)
    return torch.clamp(level.add_(slope.view(x.shape)), low, high, out=x)


def grayscale_(x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """Three equal channels of luma."""
    n, _, h, w = x.shape
    return x.copy_((tensor(LUMA, x) @ x.view(n, 3, h * w)).view(n, 1, h, w))


def gaussian_blur(x: Float[Tensor, "n c h w"], sigma: Float[Array, "n"], radius: int) -> Float[Tensor, "n c h w"]:
    """Blurs with weights exp(-d^2 / (2 sigma^2)) for |d| <= radius, normalised; the border is reflected."""
    n, c, h, w = x.shape
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma[:, None]) ** 2)
    kernel = tensor((kernel / kernel.sum(1, keepdims=True)).repeat(c, 0), x)
    x = F.pad(x, (radius,) * 4, mode="reflect").view(1, n * c, h + 2 * radius, w + 2 * radius)
    x = F.conv2d(x, kernel[:, None, None, :], groups=n * c)
    return F.conv2d(x, kernel[:, None, :, None], groups=n * c).view(n, c, h, w)


def solarize_(x: Float[Tensor, "n c h w"], threshold: float = 0.5) -> Float[Tensor, "n c h w"]:
    """1 - x where x >= threshold."""
    bright = torch.ge(x, threshold, out=torch.empty_like(x))
    return x.lerp_(1 - x, bright)
