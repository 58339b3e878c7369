"""Image encoders as ordered blocks: any timm or torchvision network whose stages follow each other, and ViTs."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import timm
import torch
import torchvision
from jaxtyping import Float
from timm.layers.drop import DropPath
from timm.models import VisionTransformer, is_model_in_modules
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from twinblock.core.errors import InputError, nearest, one_line
from twinblock.core.seeding import seeded
from twinblock.nn.cuts import EMBEDDING, Cuts, cut_network, embedding
from twinblock.nn.norms import convert_norms
from twinblock.nn.pooling import average

MEAN, STD = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # what images are normalised by: ImageNet's, as published
BASIC_RESNETS = ("resnet10", "resnet18", "resnet34")  # of blocks that follow the width of their stage
RESNETS = (*BASIC_RESNETS, "resnet50", "resnet101", "resnet152")


class Encoder(nn.Module):
    """A network cut into blocks; images in, globally averaged features of the last block out.

    The parameters keep the names they have in timm or torchvision, so `state_dict()` loads there.
    `cuts` lists for each block the modules it runs, by name; `shapes` what it gives for an image: a map (c, h, w), or
    the tokens (t, d) of a ViT, of which the first `prefix` (class token, registers) show no place and are not averaged.
    """

    def __init__(self, model: nn.Module, cuts: Sequence[Sequence[str]], shapes: Sequence[tuple[int, ...]]):
        super().__init__()
        for name in dict.fromkeys(path.split(".")[0] for cut in cuts for path in cut if path != EMBEDDING):
            self.add_module(name, model.get_submodule(name))
        self.prefix = 0
        if isinstance(model, VisionTransformer):
            self.prefix = model.num_prefix_tokens
            self._embedding = [embedding(model)]  # in a list: its parameters are registered here, under timm's names
            for name, part in self._embedding[0].named_children():
                if name not in self._modules:
                    self.add_module(name, part)
            for name, parameter in model.named_parameters(recurse=False):
                self.register_parameter(name, parameter)
        self.cuts = [list(cut) for cut in cuts]
        self.shapes = list(shapes)

    @property
    def widths(self) -> list[int]:
        return [shape[0] if len(shape) == 3 else shape[-1] for shape in self.shapes]

    @property
    def width(self) -> int:
        return self.widths[-1]

    def as_blocks(self) -> list[nn.Sequential]:
        """The blocks in order; they share their modules with the encoder."""
        return [
            nn.Sequential(OrderedDict((path.replace(".", "_"), self._unit(path)) for path in cut)) for cut in self.cuts
        ]

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        return self.pooled(self.maps(images)[-1])

    def pooled(self, x: Tensor) -> Float[Tensor, "n d"]:
        """The average of what a block gives, in float32 at least: not rounded to the precision of the maps."""
        return average(x.to(torch.promote_types(x.dtype, torch.float32)), self.prefix)

    def maps(self, images: Float[Tensor, "n c h w"]) -> list[Tensor]:
        """What each block gives."""
        x, found = images, []
        for cut in self.cuts:
            for path in cut:
                x = self._unit(path)(x)
            found.append(x)
        return found

    def _unit(self, path: str) -> nn.Module:
        return self._embedding[0] if path == EMBEDDING else self.get_submodule(path)


def build_encoder(
    kind: str, stem: str, norm: str, width: int | None, size: int, seed: int, cuts: Cuts = "stages"
) -> Encoder:
    """Build a network by name with weights drawn from `seed`, and cut it.

    `kind` is a timm name, a torchvision name behind `torchvision/`, or `resnet10` (a ResNet of one basic block a
    stage). `width`: channels of a ResNet's first stage. `stem`: `standard`, `cifar` (3x3, stride 1, no pooling) or
    `cifar_stride2`. `size`: side of the images in pixels. `cuts`: at every change of resolution (`stages`), after every
    residual block or layer (`blocks`; a ViT has no other stages), or before the named modules.
    Raises InputError for names that cannot be built or cut.
    """
    with seeded(seed):
        model = _create(kind, width, size)
        _leave_nothing_to_chance(model)
        if stem != "standard":
            _small_stem(model, kind, stride=2 if stem == "cifar_stride2" else 1)
        if norm != "batch":
            convert_norms(model, norm)
        return Encoder(model, *cut_network(model, kind, size, cuts))


def _create(kind: str, width: int | None, size: int) -> nn.Module:
    if kind in BASIC_RESNETS or (kind in RESNETS and width is None):
        name = "resnet18" if kind == "resnet10" else kind
        # timm starts residual targets at zero, torchvision does not: a shallow ResNet learns sooner without
        model = timm.create_model(name, num_classes=0, zero_init_last=False, **_shape(kind, width))
        if width is not None:
            _thin_stem(model, width)
        return model
    library, _, name = kind.rpartition("/")
    known = torchvision.models.list_models(torchvision.models) if library == "torchvision" else timm.list_models()
    if name not in known or library not in ("", "timm", "torchvision"):
        near = nearest(name, known, 3)
        near = [f"torchvision/{other}" for other in near] if library == "torchvision" else near
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise InputError(f"encoder.kind: no backbone named {kind!r} in {library or 'timm'}{hint}")
    if width is not None:
        raise InputError(f"encoder.width is for resnet10, resnet18 and resnet34; leave it out for encoder.kind={kind}")
    if library == "torchvision":
        return torchvision.models.get_model(name, weights=None)
    if not is_vit(name):
        return timm.create_model(name, num_classes=0)
    try:
        model: Any = timm.create_model(name, num_classes=0, img_size=size)
        patch = model.patch_embed.patch_size[0]
    except (RuntimeError, ValueError, TypeError, AssertionError, AttributeError) as error:
        raise InputError(f"encoder.kind={kind} cannot be built for {size} px ({one_line(error)})") from error
    if size % patch:
        raise InputError(f"encoder.kind={kind} takes patches of {patch} px: set data.size to a multiple, not {size}")
    return model


def _leave_nothing_to_chance(model: nn.Module) -> None:
    """Dropout and stochastic depth, which torchvision's recipes have, draw from the generator that a process shares.

    No run could be repeated, resumed or split over processes with them; in timm they are off, too.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd | StochasticDepth):
            module.p = 0.0
        elif isinstance(module, DropPath):
            module.drop_prob = 0.0


def _shape(kind: str, width: int | None) -> dict[str, Any]:
    layers: dict[str, Any] = {"layers": (1, 1, 1, 1)} if kind == "resnet10" else {}
    return layers if width is None else {**layers, "channels": tuple(width * 2**i for i in range(4))}


def _thin_stem(model: nn.Module, width: int) -> None:
    """timm's stem has 64 channels whatever the stages have; give it those of the first stage."""
    first = model.get_submodule("layer1.0")
    model.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
    model.bn1 = nn.BatchNorm2d(width)
    first.conv1 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
    first.downsample = None  # pyright: ignore[reportArgumentType]
    for conv in (model.conv1, first.conv1):
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")


def is_vit(kind: str) -> bool:
    """Whether a name is that of one of timm's vision transformers, which have no stem to choose."""
    return is_model_in_modules(kind.removeprefix("timm/"), ["vision_transformer", "deit"])


def _small_stem(model: nn.Module, kind: str, stride: int) -> None:
    path = next((name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)), None)
    if path is None or isinstance(model, VisionTransformer):
        raise InputError(f"encoder.stem: {kind} has no stem to replace; use encoder.stem=standard")
    old = model.get_submodule(path)
    assert isinstance(old, nn.Conv2d)
    new = nn.Conv2d(old.in_channels, old.out_channels, 3, stride, padding=1, bias=old.bias is not None)
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    model.set_submodule(path, new)
    if isinstance(getattr(model, "maxpool", None), nn.Module):
        model.maxpool = nn.Identity()
