"""Networks by name: those of timm and torchvision, ResNets and plain networks of any width, and small stems."""

from typing import Any

import timm
import torchvision
from timm.models import VisionTransformer, is_model_in_modules
from torch import nn

from twinblock.core.errors import InputError, first_line, nearest
from twinblock.nn.plain import PLAIN, Plain, plain_network
from twinblock.nn.vgg import LAYOUTS, vgg

BASIC_RESNETS = ("resnet10", "resnet18", "resnet34")  # of blocks that follow the width of their stage
RESNETS = (*BASIC_RESNETS, "resnet50", "resnet101", "resnet152")


def create(
    kind: str,
    width: int | tuple[int, ...] | None,
    size: int,
    channels: int,
    drop_path: float,
    several_sizes: bool = False,
    patch: int | None = None,
) -> nn.Module:
    dropped: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}  # not every network takes it
    if patch is not None and (kind.startswith("torchvision/") or not is_vit(kind)):
        raise InputError(f"encoder.patch is for the ViTs of timm; leave it out for encoder.kind={kind}")
    if kind in PLAIN:
        if not isinstance(width, tuple):
            raise InputError(f"encoder.width: encoder.kind={kind} needs the width of each layer, as [512,512]")
        return plain_network(kind, width, size, channels)
    if isinstance(width, tuple):
        raise InputError(f"encoder.width={list(width)}: only {', '.join(PLAIN)} have a width for each layer")
    if kind in LAYOUTS:
        return vgg(kind, width, size, channels)
    if kind in BASIC_RESNETS or (kind in RESNETS and width is None):
        name = "resnet18" if kind == "resnet10" else kind
        # timm starts residual targets at zero, torchvision does not: a shallow ResNet learns sooner without
        fields = {**_shape(kind, width), **dropped}
        model = timm.create_model(name, num_classes=0, zero_init_last=False, in_chans=channels, **fields)
        if width is not None:
            _thin_stem(model, width, channels)
        return model
    library, _, name = kind.rpartition("/")
    ours = [*PLAIN, *LAYOUTS, *timm.list_models()]
    names = torchvision.models.list_models(torchvision.models) if library == "torchvision" else ours
    if name not in names or library not in ("", "timm", "torchvision"):
        near = nearest(name, names, 3)
        near = [f"torchvision/{other}" for other in near] if library == "torchvision" else near
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise InputError(f"encoder.kind: no backbone named {kind!r} in {library or 'timm'}{hint}")
    if width is not None:
        raise InputError(
            f"encoder.width is for {', '.join((*BASIC_RESNETS, *LAYOUTS))}; leave it out for encoder.kind={kind}"
        )
    if library == "torchvision":
        return _of_channels(_of_torchvision(name, size, drop_path), channels, kind)
    return _of_timm(name, size, channels, dropped, several_sizes, patch)


def _of_torchvision(name: str, size: int, drop_path: float) -> nn.Module:
    options: dict[str, Any] = {"image_size": size} if is_vit(f"torchvision/{name}") else {}
    if drop_path:
        options["stochastic_depth_prob"] = drop_path
    try:
        return torchvision.models.get_model(name, weights=None, **options)
    except TypeError:
        if not drop_path:
            raise
        return _of_torchvision(name, size, 0)  # it has no paths to drop, which is said then
    except AssertionError as error:
        raise InputError(
            f"encoder.kind=torchvision/{name} cannot be built for {size} px ({first_line(error)}); set data.size"
        ) from error


def _of_timm(
    name: str, size: int, channels: int, dropped: dict[str, Any], several_sizes: bool, patch: int | None
) -> nn.Module:
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    of_one_size = cfg is not None and cfg.fixed_input_size and size != cfg.input_size[-1]
    options: dict[str, Any] = {"img_size": size} if is_vit(name) or of_one_size else {}
    if is_vit(name) and several_sizes:
        options["dynamic_img_size"] = True  # its position embeddings are interpolated
    if channels != 3:
        options["in_chans"] = channels
    if patch is not None:
        options["patch_size"] = patch
    try:
        model: Any = timm.create_model(name, num_classes=0, **options, **dropped)
    except (RuntimeError, ValueError, TypeError, AssertionError, AttributeError) as error:
        if dropped:
            return _of_timm(
                name, size, channels, {}, several_sizes, patch
            )  # it has no paths to drop, which is said then
        if not options:
            raise
        raise InputError(
            f"encoder.kind={name} cannot be built for {channels} x {size} x {size} ({first_line(error)})"
        ) from error
    if is_vit(name) and size % (side := model.patch_embed.patch_size[0]):
        raise InputError(f"encoder.kind={name} takes patches of {side} px: set data.size to a multiple, not {size}")
    return model


def _of_channels(model: nn.Module, channels: int, kind: str) -> nn.Module:
    """A network with a first convolution of so many channels, of weights that give as much variance as before."""
    if channels == 3:
        return model
    path, old = next(((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d)), ("", None))
    if old is None or old.in_channels != 3 or old.groups != 1:
        raise InputError(f"encoder.kind={kind} has no first convolution to give {channels} channels; take one of timm")
    how: Any = (old.kernel_size, old.stride, old.padding, old.dilation)
    new = nn.Conv2d(channels, old.out_channels, *how, bias=old.bias is not None)
    nn.init.normal_(new.weight, std=float(old.weight.detach().std()) * (3 / channels) ** 0.5)
    model.set_submodule(path, new)
    return model


def _shape(kind: str, width: int | None) -> dict[str, Any]:
    layers: dict[str, Any] = {"layers": (1, 1, 1, 1)} if kind == "resnet10" else {}
    return layers if width is None else {**layers, "channels": tuple(width * 2**i for i in range(4))}


def _thin_stem(model: nn.Module, width: int, channels: int) -> None:
    """timm's stem has 64 channels whatever the stages have; give it those of the first stage."""
    first = model.get_submodule("layer1.0")
    model.conv1 = nn.Conv2d(channels, width, 7, 2, 3, bias=False)
    model.bn1 = nn.BatchNorm2d(width)
    first.conv1 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
    first.downsample = None  # pyright: ignore[reportArgumentType]
    for conv in (model.conv1, first.conv1):
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")


def has_a_stem(kind: str) -> bool:
    """Whether a network of this name has a stem to choose."""
    return ":" not in kind and kind not in (*LAYOUTS, *PLAIN) and not is_vit(kind)


def is_vit(kind: str) -> bool:
    """Whether a name is that of a vision transformer of timm or torchvision, which have no stem to choose."""
    if kind.startswith("torchvision/"):
        return kind.startswith("torchvision/vit_")
    return is_model_in_modules(kind.removeprefix("timm/"), ["vision_transformer", "deit"])


def small_stem(model: nn.Module, kind: str, stride: int) -> None:
    path = next((name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)), None)
    if path is None or isinstance(model, VisionTransformer | Plain) or kind in LAYOUTS:
        raise InputError(f"encoder.stem: {kind} has no stem to replace; use encoder.stem=standard")
    old = model.get_submodule(path)
    assert isinstance(old, nn.Conv2d)
    new = nn.Conv2d(old.in_channels, old.out_channels, 3, stride, padding=1, bias=old.bias is not None)
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    model.set_submodule(path, new)
    if isinstance(getattr(model, "maxpool", None), nn.Module):
        model.maxpool = nn.Identity()
