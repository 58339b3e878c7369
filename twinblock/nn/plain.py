"""Networks of plain layers, each a block of its own: a norm, a linear map or a convolution, an activation."""

from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from twinblock.core.errors import InputError

PLAIN = ("mlp", "sigmoid_mlp", "convs")


class Triangle(nn.Module):
    """`max(0, x - mean of x over channels)`: the units above the average of their place. Coates et al. 2011."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return F.relu(x - x.mean(1, keepdim=True))


class Plain(nn.Sequential):
    """Layers in a row. `begins`: the modules at which blocks begin where `scope.cuts` names none: at each layer."""

    def __init__(self, layers: Sequence[nn.Module]):
        super().__init__(OrderedDict((f"layer{i}", layer) for i, layer in enumerate(layers, start=1)))
        self.begins = tuple(f"layer{i}" for i in range(2, len(layers) + 1))


def plain_network(kind: str, widths: Sequence[int], size: int, channels: int) -> Plain:
    """`mlp`, `sigmoid_mlp` or `convs`, one layer for each width, for images of `size` pixels a side.

    Each layer begins with a batch norm, which `encoder.norm` replaces. `mlp`: linear layers, ReLU; they are
    convolutions over whole images, so that they give maps of one place. `sigmoid_mlp`: the same with sigmoids; its
    weights begin small, with a standard deviation of 0.01, as those of RBMs do (Hinton 2010, A Practical Guide to
    Training Restricted Boltzmann Machines). `convs`: 3 x 3, the first 5 x 5, reflected at the edges; then, but for the
    last, `Triangle` and the maximum of 4 x 4 places at every second; the last has ReLU. With 96, 384 and 1536 channels
    it is the network of Chen et al. 2025 (SCFF), which averages once more at the end.
    """
    if kind == "convs" and size < 4 * 2 ** (len(widths) - 1):
        raise InputError(f"encoder.kind=convs: {len(widths)} layers halve {size} px too often; leave layers out")
    layers = []
    for i, width in enumerate(widths):
        first, last = i == 0, i == len(widths) - 1
        if kind == "convs":
            side = 5 if first else 3
            how = {"padding": side // 2, "padding_mode": "reflect"}
            after = [nn.ReLU()] if last else [Triangle(), nn.MaxPool2d(4, 2, 1)]
        else:
            side, how = size if first else 1, {}
            after = [nn.Sigmoid() if kind == "sigmoid_mlp" else nn.ReLU()]
        linear = nn.Conv2d(channels, width, side, **how)
        if kind == "sigmoid_mlp":
            nn.init.normal_(linear.weight, std=0.01)
            nn.init.zeros_(linear.bias)  # pyright: ignore[reportArgumentType]
        layers.append(nn.Sequential(nn.BatchNorm2d(channels), linear, *after))
        channels = width
    return Plain(layers)
