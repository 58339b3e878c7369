"""Normalisation layers by name, for vectors and for maps, and weight standardisation."""

import re
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from twinblock.core.distributed import SyncBatchNorm
from twinblock.core.errors import InputError

GROUPS = 32
KNOWN = "'batch', 'sync', 'layer', 'group', 'rms', 'standard', 'none'"
TINY = 1e-8  # beside the length of a sample


def parse_norm(text: str) -> tuple[str, int, bool]:
    """Kind, number of groups, and whether weights are standardised, of `group`, `group8`, `batch+ws` and so on."""
    match = re.fullmatch(r"(batch|sync|layer|group|rms|standard|none)((?<=group)[1-9]\d{0,4})?(\+ws)?", text)
    if match is None:
        raise InputError(
            f"norm {text!r} should be {KNOWN}, 'group8' for 8 groups, "
            f"or one of them with '+ws' for standardised weights"
        )
    return match[1], int(match[2] or GROUPS), match[3] is not None


def make_norm(norm: str, width: int, affine: bool = True, spatial: bool = False) -> nn.Module:
    """A norm for vectors (n, width), or for maps (n, width, h, w) where `spatial`.

    `sync` is batch norm over the global batch, `group` has 32 groups and `group8` 8, `layer` on maps is one group
    over channels and places; `rms` and `standard` are `PerSample`, without weights. InputError where the groups do not
    divide the width, or would leave a vector one value a group, whose normalised value is always 0.
    """
    kind, groups, _ = parse_norm(norm)
    match kind:
        case "batch":
            return (nn.BatchNorm2d if spatial else nn.BatchNorm1d)(width, affine=affine)
        case "sync":
            return SyncBatchNorm(width, affine=affine)
        case "layer" if spatial:
            return nn.GroupNorm(1, width, affine=affine)
        case "layer":
            return nn.LayerNorm(width, elementwise_affine=affine)
        case "group":
            smallest = groups if spatial else 2 * groups
            if width % groups or width < smallest:
                most = min(groups, width if spatial else width // 2)
                fits = next((f"group{g}" for g in range(most, 1, -1) if width % g == 0), "layer")
                raise InputError(
                    f"norm {norm!r} has {groups} groups, which do not fit a width of {width}; "
                    f"take a multiple of {groups} from {smallest} on, or another norm, such as {fits}"
                )
            return nn.GroupNorm(groups, width, affine=affine)
        case "rms" | "standard":
            return PerSample(kind == "standard")
        case _:
            return nn.Identity()


class PerSample(nn.Module):
    """Each sample divided by the root mean square of its values, once their mean is taken away where `centred`.

    What follows cannot tell how long the sample was. Hinton 2022, arXiv 2212.13345, section 2.
    """

    def __init__(self, centred: bool):
        super().__init__()
        self.centred = centred

    def forward(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n *shape"]:
        places = tuple(range(1, x.dim()))
        x = x - x.mean(places, keepdim=True) if self.centred else x
        return x / (x.square().mean(places, keepdim=True) + TINY**2).sqrt()  # a root has no gradient at zero


def standardise(weight: Float[Tensor, "out *fan_in"]) -> Float[Tensor, "out *fan_in"]:
    """`(w - mean) / (std + 1e-5)` over the inputs of each output unit; std is the unbiased one."""
    std, mean = torch.std_mean(weight, dim=tuple(range(1, weight.dim())), keepdim=True)
    return (weight - mean) / (std + 1e-5)


class WSLinear(nn.Linear):
    """A linear layer with standardised weights; state dict names as in nn.Linear."""

    def forward(self, input: Float[Tensor, "*n d_in"]) -> Float[Tensor, "*n d_out"]:
        return F.linear(input, standardise(self.weight), self.bias)


class WSConv2d(nn.Conv2d):
    """A convolution with standardised weights; state dict names as in nn.Conv2d.

    `kept` is None, or what a pruned network multiplies the standardised weights by: zeros among the weights themselves
    would not stay zero.
    """

    kept: Tensor | None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.register_buffer("kept", None, persistent=False)

    def effective(self) -> Float[Tensor, "out *fan_in"]:
        weight = standardise(self.weight)
        return weight if self.kept is None else weight * self.kept

    def forward(self, input: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c_out h_out w_out"]:
        return self._conv_forward(input, self.effective(), self.bias)


def convert_norms(model: nn.Module, norm: str) -> nn.Module:
    """Replaces every BatchNorm2d of an encoder, in place, by another norm; weight, bias and names stay.

    `+ws`, as in `group+ws`, also standardises the weights of all convolutions. `none` drops weight and bias with the
    norm. InputError where a layer is more than a norm or a convolution (timm fuses activations into some
    norms), since the rest of it would be lost, and where there is no batch norm to replace.
    """
    kind, _, standardised = parse_norm(norm)
    if kind != "batch":
        olds = _layers(model, nn.BatchNorm2d, norm)
        if not olds and kind != "sync":
            raise InputError(f"encoder norm {norm!r}: this encoder has no batch norm to replace; keep norm 'batch'")
        for name, old in olds.items():
            if kind == "sync":
                old.__class__ = SyncBatchNorm  # the same tensors, another forward
            else:
                model.set_submodule(name, _replacement(old, norm))
    if standardised:
        for name, conv in _layers(model, nn.Conv2d, norm).items():
            if conv.weight[0].numel() == 1:
                raise InputError(f"encoder norm {norm!r}: layer {name} has one weight a unit, which has no spread")
            conv.__class__ = WSConv2d
            conv.register_buffer("kept", None, persistent=False)
    return model


def _replacement(old: nn.BatchNorm2d, norm: str) -> nn.Module:
    new = make_norm(norm, old.num_features, old.affine, spatial=True)
    if isinstance(new, nn.GroupNorm):
        new.eps, new.weight, new.bias = old.eps, old.weight, old.bias
    return new.train(old.training)


def _layers(model: nn.Module, cls: type[nn.Module], kind: str) -> dict[str, Any]:
    layers = {name: module for name, module in model.named_modules() if isinstance(module, cls)}
    for name, layer in layers.items():
        if type(layer) is not cls:
            raise InputError(
                f"encoder norm {kind!r}: layer {name} is a {type(layer).__name__}, which does more than a "
                f"{cls.__name__} and cannot be converted; keep norm 'batch' or choose another encoder"
            )
    return layers
