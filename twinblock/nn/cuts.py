"""Where a network is cut: its modules as a row of units, checked against its own forward, and grouped into blocks."""

import copy
from collections.abc import Sequence

import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from twinblock.core.errors import InputError, nearest, one_line
from twinblock.nn.modes import evaluating

CONTAINERS = (
    "stages",
    "features",
    "blocks",
    "layers",
    "trunk_output",
)  # modules whose children are the stages
HEADS = ("global_pool", "avgpool", "fc", "head", "classifier", "head_drop", "flatten")
EMBEDDING = "embedding"  # of a ViT: everything before its first layer, a row of steps that is no module of timm's

Cuts = str | Sequence[str]  # stages, blocks, or the names of the modules that begin a block


def cut_network(model: nn.Module, kind: str, size: int, cuts: Cuts) -> tuple[list[list[str]], list[tuple[int, ...]]]:
    """The units of each block, and the shape it gives; checked: the units in a row are the network."""
    fine = cuts != "stages" or isinstance(model, VisionTransformer)
    probe = torch.linspace(-1, 1, 3 * size * size).view(1, 3, size, size)
    with evaluating(model), torch.no_grad():
        try:
            units, shapes, last = _row(model, probe, fine)
            if fine and (cut_open := _cut_open(model, units)):
                units, shapes, last = _row(model, probe, fine, cut_open)
            same = torch.equal(last, _final_map(model, probe))
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, AssertionError) as error:
            raise InputError(
                f"encoder.kind={kind} cannot be cut into blocks at {size} px ({one_line(error)}); "
                "choose a ResNet, ConvNeXt, ViT or another network whose stages follow each other"
            ) from error
    if any(len(shape) != 2 and (len(shape) != 3 or shape[1] != shape[2]) for shape in shapes):
        raise InputError(
            f"encoder.kind={kind} gives no maps (channels, height, width); choose a ResNet, ConvNeXt or ViT"
        )
    if not same:
        raise InputError(
            f"encoder.kind={kind} is not a plain row of stages; choose a ResNet- or ConvNeXt-like network or a ViT"
        )
    if not isinstance(cuts, str):
        first = _named(units, cuts)
    elif fine:
        ends = [i for i, unit in enumerate(units) if unit != EMBEDDING and _is_block(_module(model, unit))]
        if not ends:
            raise InputError(f"scope.cuts={cuts}: {kind} has no residual blocks; name the modules that begin a block")
        first = [0, *(i + 1 for i in ends[:-1])]
    else:
        first = [i for i in range(len(units)) if i == 0 or shapes[i][-1] != shapes[i - 1][-1]]
        stem = units[: first[1]] if len(first) > 1 else []
        if stem and not any(_holds_blocks(model.get_submodule(path)) for path in stem):
            del first[1]
        stops = [*first[1:], len(units)]  # what has nothing to learn, as a last pooling, goes with what is before it
        first = [i for i, stop in zip(first, stops, strict=True) if i == 0 or _learns(model, units[i:stop])]
    for i in first[1:]:  # an activation that works in place would change what the block before it gave
        begins = _module(model, units[i])
        if getattr(begins, "inplace", False):
            begins.inplace = False  # pyright: ignore[reportArgumentType]
    stops = [*first[1:], len(units)]
    return [units[i:j] for i, j in zip(first, stops, strict=True)], [shapes[j - 1] for j in stops]


def _row(
    model: nn.Module, x: Tensor, fine: bool, closed: frozenset[type] = frozenset()
) -> tuple[list[str], list[tuple[int, ...]], Tensor]:
    """The units, the shape that each gives, and what the last one gives; modules of the `closed` classes stay whole."""
    units: list[str] = []
    shapes: list[tuple[int, ...]] = []
    for unit in _units(model):
        for path in _unfold(unit, _module(model, unit), x, closed) if fine else [unit]:
            x = _module(model, path)(x)
            units.append(path)
            shapes.append(tuple(x.shape[1:]))
    return units, shapes, x


def _cut_open(model: nn.Module, units: Sequence[str]) -> frozenset[type]:
    """Classes of blocks of which some were unfolded: without a shortcut, as between stages, one is a plain row."""
    blocks = [m for m in (_module(model, unit) for unit in units) if _is_block(m)]
    opened = {unit.rpartition(".")[0] for unit in units} - {""}
    opened |= {path.rsplit(".", i)[0] for path in opened for i in range(1, path.count(".") + 1)}
    return frozenset(map(type, blocks)) & {type(model.get_submodule(path)) for path in opened}


def _units(model: nn.Module) -> list[str]:
    """The stages, and what lies between them, by name."""
    if isinstance(model, VisionTransformer):
        return [EMBEDDING, *(f"blocks.{i}" for i, _ in model.blocks.named_children()), "norm"]
    units = []
    for name, child in model.named_children():
        if name not in HEADS:
            inner = name in CONTAINERS and isinstance(child, nn.Sequential)
            units += [f"{name}.{i}" for i, _ in child.named_children()] if inner else [name]
    return units


def _module(model: nn.Module, path: str) -> nn.Module:
    if path == EMBEDDING:
        assert isinstance(model, VisionTransformer)
        return embedding(model)
    return model.get_submodule(path)


def _unfold(path: str, module: nn.Module, x: Tensor, closed: frozenset[type]) -> list[str]:
    """The modules that a unit is a row of, down to residual blocks and single layers, which are no row of theirs."""
    if not _is_block(module) or type(module) in closed:
        return [path]
    y = x.clone()  # layers that work in place must not change what the module itself is given
    try:
        for child in module.children():
            y = child(y)
        if not torch.equal(y, module(x)):
            return [path]
    except Exception:  # whatever the children say: they are no row
        return [path]
    paths = []
    for name, child in module.named_children():
        paths += _unfold(f"{path}.{name}", child, x, closed)
        x = child(x)
    return paths


def _is_block(module: nn.Module) -> bool:
    """Layers within; what is left of these after unfolding is a residual block."""
    return any(True for child in module.children() for _ in child.parameters())


def _learns(model: nn.Module, units: Sequence[str]) -> bool:
    return any(True for unit in units for _ in _module(model, unit).parameters())


def _named(units: Sequence[str], names: Sequence[str]) -> list[int]:
    """Where the named modules begin."""
    first = {0}
    for name in names:
        found = [i for i, unit in enumerate(units) if unit == name or unit.startswith(name + ".")]
        if not found:
            known = list(dict.fromkeys(part for unit in units for part in (unit.rpartition(".")[0], unit) if part))
            near = nearest(name, known)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise InputError(f"scope.cuts: no block can begin at {name!r}; {hint}")
        first.add(found[0])
    return sorted(first)


def embedding(model: VisionTransformer) -> nn.Module:
    """A ViT without its layers: patches, position and class token. It shares its parameters with the ViT."""
    part = copy.copy(model)
    part._parameters, part._modules = dict(model._parameters), dict(model._modules)
    part.blocks, part.norm = nn.Sequential(), nn.Identity()
    part.forward = part.forward_features
    for name in [name for name, _ in part.named_children()]:
        if name not in ("patch_embed", "pos_drop", "patch_drop", "norm_pre", "blocks", "norm"):
            setattr(part, name, nn.Identity())
    return part


def _final_map(model: nn.Module, images: Tensor) -> Tensor:
    """The map before pooling, from the network's own forward."""
    if hasattr(model, "forward_features"):
        return model.forward_features(images)  # pyright: ignore[reportCallIssue]
    seen: list[Tensor] = []
    pool = model.get_submodule("avgpool")
    handle = pool.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        model(images)
    finally:
        handle.remove()
    return seen[0]


def _holds_blocks(unit: nn.Module) -> bool:
    """A stage holds blocks that hold convolutions; the convolutions of a stem lie flat."""
    return any("." in path for path, module in unit.named_modules() if isinstance(module, nn.Conv2d))
