"""Plain convolutional networks that local learning rules are compared by: VGG-6, VGG-8b, the convolutions of VGG-11."""

from collections import OrderedDict
from typing import NamedTuple

from torch import nn

from twinblock.core.errors import InputError


class Layout(NamedTuple):
    """`blocks`: channels of each convolution; M before or after them is a 2 x 2 max pooling of the same block.

    `norm`: whether batch norm follows a convolution. `full`: width of a last layer that sees the whole map, after a
    pooling.
    """

    blocks: str
    norm: bool = False
    full: int | None = None


LAYOUTS = {
    # Illing et al. 2021 (CLAPP), arXiv 2010.08262
    "vgg6": Layout("128 256M 256 512M 1024M 1024M"),
    # Nokland and Eidnes 2019, arXiv 1901.06656: a loss sees the map before it is pooled
    "vgg8b": Layout("128 256 M256 512 M512 M512", norm=True, full=1024),
    # Halvagal and Zenke 2023 (LPL), github.com/fmi-basel/latent-predictive-learning
    "vgg11_conv": Layout("64M 128M 256 256M 512 512M 512 512M"),
}


def vgg(kind: str, width: int | None, size: int, channels: int) -> nn.Sequential:
    """Modules `block1`, `block2` and so on: each a 3 x 3 convolution, batch norm in some, ReLU, and its pooling.

    `width`: channels of the first convolution, the others in proportion; None: as published. `size`: side of the
    images in pixels; `channels`: theirs. Weights are drawn as torch draws them. Raises InputError where images are too
    small.
    """
    layout = LAYOUTS[kind]
    words = layout.blocks.split()
    times = layout.blocks.count("M") + (layout.full is not None)
    side, first = size >> times, int(words[0].strip("M"))
    if not side:
        raise InputError(f"encoder.kind={kind} halves its maps {times} times, too often for {size} px; set data.size")

    def scaled(count: int) -> int:
        return count if width is None else count * width // first

    blocks, given = [], channels
    for word in words:
        out = scaled(int(word.strip("M")))
        blocks.append(_block(nn.Conv2d(given, out, 3, padding=1), layout.norm, word[0] == "M", word[-1] == "M"))
        given = out
    if layout.full is not None:
        blocks.append(_block(nn.Conv2d(given, scaled(layout.full), side), layout.norm, True, False))
    return nn.Sequential(OrderedDict((f"block{number}", block) for number, block in enumerate(blocks, start=1)))


def _block(conv: nn.Conv2d, norm: bool, before: bool, after: bool) -> nn.Sequential:
    """A convolution with what belongs to it, pooled before or after."""
    parts: dict[str, nn.Module] = {"pool": nn.MaxPool2d(2)} if before else {}
    parts["conv"] = conv
    if norm:
        parts["norm"] = nn.BatchNorm2d(conv.out_channels)
    parts["relu"] = nn.ReLU()
    if after:
        parts["pool"] = nn.MaxPool2d(2)
    return nn.Sequential(OrderedDict(parts))
