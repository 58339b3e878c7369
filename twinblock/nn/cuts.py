"""Where a network is cut: the steps of its forward, checked against that forward, without its head, as blocks."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from twinblock.core.errors import InputError, first_line, nearest
from twinblock.nn.modes import evaluating
from twinblock.nn.rows import Step, functions_joined, is_block, row

Cuts = str | Sequence[str]  # stages, blocks, or the names of the modules that begin a block
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Blocks:
    """For each block its steps, the shape that it gives and whether channels come last there.

    `shapes` are maps (c, h, w), tokens (t, d) or a vector (d,). `head`: modules that learn and are left out. `uncut`:
    why this is one block, the whole network.
    """

    steps: list[list[tuple[str, nn.Module]]]
    paths: list[str]
    shapes: list[Shape]
    channels_last: list[bool]
    head: tuple[str, ...] = ()
    uncut: str | None = None


class Uncut(ValueError):
    """Why a network cannot be cut."""


def probe_images(shape: Shape) -> Tensor:
    """Two images of this shape, (c, h, w)."""
    return torch.linspace(-1, 1, 2 * math.prod(shape)).view(2, *shape)


def cut_network(model: nn.Module, shape: tuple[int, int, int], cuts: Cuts, both_modes: bool = False) -> Blocks:
    """The blocks of a network, or the whole as one where it cannot be cut; what no block needs is taken out of `model`.

    `shape`: that of an image, (c, h, w). A network may say where its blocks begin: `begins`, names of modules.
    Checked: the steps in a row give what the network itself gives, in training mode too where `both_modes`.
    InputError where `cuts` names what is not there.
    """
    images = probe_images(shape)
    try:
        with evaluating(model), torch.no_grad():
            steps, head = _features(model, images, fine=cuts != "stages")
            if both_modes:
                _check_training(model, images, [*steps, *head])
            shapes, last = _shapes(steps, images)
    except Exception as error:  # whatever a network of others raises while it is traced or run
        return _one_block(model, images, cuts, first_line(error))
    names, begins = [step.name for step in steps], getattr(model, "begins", None)
    if not isinstance(cuts, str) or isinstance(begins, tuple):
        first = _named(names, cuts if not isinstance(cuts, str) else begins or ())
    elif cuts == "blocks" or len(shapes[-1]) == 2:
        first = _after_blocks(steps, cuts)
    else:
        first = _resolutions(model, steps, shapes, shape[-1])
    for i in first[1:]:  # an activation that works in place would change what the block before it gave
        if getattr(steps[i].module, "inplace", False):
            steps[i].module.inplace = False  # pyright: ignore[reportArgumentType]
    stops = [*first[1:], len(steps)]
    blocks = [[(step.name, step.module) for step in steps[i:j]] for i, j in zip(first, stops, strict=True)]
    if cuts == "stages" and len(shapes[-1]) == 3:
        blocks = [_folded(model, block) for block in blocks]
    left_out = tuple(path for step in head if step.learns for path in step.paths)
    _keep_only(model, {id(part) for block in blocks for _, module in block for part in module.modules()}, steps)
    paths = [path for step in steps for path in step.paths]
    return Blocks(blocks, paths, [shapes[j - 1] for j in stops], [last[j - 1] for j in stops], left_out)


def _one_block(model: nn.Module, images: Tensor, cuts: Cuts, reason: str) -> Blocks:
    if not isinstance(cuts, str):
        raise InputError(f"scope.cuts: {type(model).__name__} cannot be cut into blocks: {reason}")
    with evaluating(model), torch.no_grad():
        shapes, last = _oriented([tuple(model(images.clone()).shape[1:])])
    return Blocks([[("network", model)]], [], shapes, last, uncut=reason)


def _features(model: nn.Module, images: Tensor, fine: bool) -> tuple[list[Step], list[Step]]:
    """The steps to the last map or tokens, and those of the head."""
    steps = row(model, "", images)
    for x in (images, torch.cat([images, images[:1]])):  # a condition on the number of images is decided in tracing
        if not torch.equal(_run(steps, x)[-1], model(x.clone())):
            raise Uncut("its steps in a row give another output than its own forward")
    while True:
        end = _end(steps, images)
        learning = [i for i, step in enumerate(steps[: end + 1]) if step.learns]
        if len(learning) != 1 or (inner := _inner(steps, learning[0], images)) is None:
            break
        steps[learning[0] : learning[0] + 1] = inner  # a network in a wrapper
    if not any(step.learns for step in steps[:end]):
        raise Uncut("it gives no map and no tokens before its output")
    body, head = functions_joined(steps[:end]), steps[end:]
    if fine or _run(body, images)[-1].ndim == 3:
        opened: set[type] = set()
        units = _unfolded(body, images, frozenset(), opened)
        whole = {type(step.module) for step in units if step.whole and step.holds_layers}
        if whole & opened:  # of these blocks some are a plain row: without a shortcut, as between stages
            units = _unfolded(body, images, frozenset(whole & opened), set())
        body = units
    return body, head


def _inner(steps: list[Step], i: int, images: Tensor) -> list[Step] | None:
    """The steps within the module that step `i` is."""
    step = steps[i]
    if step.whole is None or not is_block(step.module):
        return None
    x = _run(steps[: i + 1], images)
    try:
        inner = row(step.module, f"{step.prefix}{step.whole}.", x[i])
        return inner if torch.equal(_run(inner, x[i])[-1], x[i + 1]) and len(inner) > 1 else None
    except Exception:  # whatever it raises: it is one step
        return None


def _end(steps: list[Step], images: Tensor) -> int:
    """Where the head begins: at what averages a map, or else makes a vector of a map or of tokens."""
    values = _run(steps, images)
    end = next((i for i, y in enumerate(values[1:]) if y.ndim not in (3, 4)), len(steps))
    end = next((i for i in range(end) if not steps[i].learns and _averages(steps[i].module, *values[i : i + 2])), end)
    while end and not steps[end - 1].learns:
        before, after = values[end - 1 : end + 1]
        if before.shape == after.shape or (
            before.ndim == after.ndim == 4 and not _pools(steps[end - 1], before, after)
        ):
            break
        end -= 1  # it flattens a map, averages its parts, or selects tokens
    return end


def _pools(step: Step, x: Tensor, y: Tensor) -> bool:
    """Whether a step averages parts of a map: it is additive, as a maximum is not, and more than another order."""
    total = step.module(x + x.flip(0))
    return x.numel() != y.numel() and torch.allclose(total, y + y.flip(0), rtol=1e-4, atol=1e-5)


def _averages(module: nn.Module, x: Tensor, y: Tensor) -> bool:
    """Whether a step takes the mean over the places of a map."""
    if x.ndim != 4 or y.ndim != 4:
        return False
    places = next((axes for axes in ((2, 3), (1, 2)) if all(y.shape[axis] == 1 for axis in axes)), None)
    if places is None:
        return False
    if x[0].numel() == y[0].numel():  # of one place already: what does it with more?
        x = torch.linspace(0, 1, 4 * x.numel()).view(*(2 if axis in places else n for axis, n in enumerate(x.shape)))
        try:
            y = module(x.clone())
        except Exception:  # made for this size alone
            return False
    mean = x.mean(places, keepdim=True)
    return y.shape == mean.shape and torch.allclose(y, mean, rtol=1e-4, atol=1e-6)


def _unfolded(steps: Sequence[Step], x: Tensor, closed: frozenset[type], opened: set[type]) -> list[Step]:
    """The steps down to residual blocks and single layers; modules of the `closed` classes stay whole."""
    out: list[Step] = []
    for step in steps:
        inner = None
        if step.whole and is_block(step.module) and type(step.module) not in closed:
            inner = _plain_row(step, x)
        if inner:
            opened.add(type(step.module))
            out += _unfolded(inner, x, closed, opened)
        else:
            out.append(step)
        x = step.module(x.clone())
    return out


def _plain_row(step: Step, x: Tensor) -> list[Step] | None:
    try:
        inner = row(step.module, f"{step.prefix}{step.whole}.", x)
        same = torch.equal(_run(inner, x)[-1], step.module(x.clone()))
    except Exception:  # whatever it raises: it is one step
        return None
    return functions_joined(inner) if same and not any(part.residual for part in inner) else None


def _run(steps: Sequence[Step], x: Tensor) -> list[Tensor]:
    """The images, and what each step gives."""
    values = [x]
    for step in steps:
        values.append(step.module(values[-1].clone()))  # a step that works in place changes a copy
    return values


def _check_training(model: nn.Module, images: Tensor, steps: Sequence[Step]) -> None:
    """A traced forward has the mode of its tracing in it: what it does in training must be the same."""
    copied, in_steps = copy.deepcopy((model, [step.module for step in steps]))
    x = images
    copied.train()
    whole = copied(images.clone())
    copied, in_steps = copy.deepcopy((model, [step.module for step in steps]))
    copied.train()
    for module in in_steps:
        x = module.train()(x.clone())
    if not torch.equal(x, whole):
        raise Uncut("its own forward does other things in training than in evaluation")


def _shapes(steps: Sequence[Step], images: Tensor) -> tuple[list[Shape], list[bool]]:
    return _oriented([tuple(y.shape[1:]) for y in _run(steps, images)[1:]])


def _oriented(shapes: list[Shape]) -> tuple[list[Shape], list[bool]]:
    """Maps as (c, h, w), and whether channels come last in them; images are square, and so are maps.

    Where c = h = w, the layout is that of the next map that shows it, or else of the one before.
    """
    shown = [_channels_last(shape) for shape in shapes]
    last: list[bool] = []
    for i in range(len(shapes)):
        fixed = [*(s for s in shown[i:] if s is not None), *(s for s in reversed(shown[:i]) if s is not None), False]
        last.append(len(shapes[i]) == 3 and fixed[0])
    return [(s[2], *s[:2]) if turned else s for s, turned in zip(shapes, last, strict=True)], last


def _channels_last(shape: Shape) -> bool | None:
    if len(shape) != 3 or shape[0] == shape[1] == shape[2]:
        return None
    if shape[1] != shape[2] and shape[0] != shape[1]:
        raise Uncut(f"it gives maps of shape {shape}, which are not square")
    return shape[0] == shape[1]


def prefix_of(model: nn.Module, shape: Shape) -> int:
    """Tokens that show no place: what is left beside a square grid, unless a timm model says it."""
    if len(shape) != 2:
        return 0
    return getattr(model, "num_prefix_tokens", shape[0] - math.isqrt(shape[0]) ** 2)


def _resolutions(model: nn.Module, steps: Sequence[Step], shapes: Sequence[Shape], size: int) -> list[int]:
    """The steps at which stages of another resolution begin; the stem goes with the first stage."""
    sides = [size, *(shape[-1] for shape in shapes)]
    units = _units(model, steps, sides)
    first = [i for i, j, _ in units if i == 0 or sides[j] != sides[i]]
    stem = [unit for unit in units if len(first) > 1 and unit[0] < first[1]]
    if stem and not any(_holds_blocks(unit) for _, _, unit in stem):
        del first[1]
    stops = [*first[1:], len(steps)]  # what has nothing to learn, as a last pooling, goes with what is before it
    return [i for i, j in zip(first, stops, strict=True) if i == 0 or any(step.learns for step in steps[i:j])]


def _units(model: nn.Module, steps: Sequence[Step], sides: Sequence[int]) -> list[tuple[int, int, nn.Module]]:
    """Steps from i to j that are one module: an nn.Sequential of one resolution, a stem, or a step alone."""
    units, i = [], 0
    while i < len(steps):
        parts, j, unit = steps[i].name.split("."), i + 1, steps[i].module
        for depth in range(1, len(parts)):
            parent = ".".join(parts[:depth]) + "."
            if i and steps[i - 1].name.startswith(parent):
                continue
            stop = next((k for k in range(i, len(steps)) if not steps[k].name.startswith(parent)), len(steps))
            changes = sum(sides[k] != sides[k + 1] for k in range(i, stop))
            flat = not any(step.holds_layers for step in steps[i:stop])
            if changes < 2 or (flat and any(step.learns for step in (*steps[:i], *steps[stop:]))):
                j, unit = stop, model.get_submodule(parent[:-1])
                break
        units.append((i, j, unit))
        i = j
    return units


def _after_blocks(steps: Sequence[Step], cuts: Cuts) -> list[int]:
    """After each residual block; of a network without any, before each convolution or the module that has it alone."""
    ends = [i for i, step in enumerate(steps) if step.holds_layers and not step.tensors]
    if ends:
        return [0, *(i + 1 for i in ends[:-1])]
    if cuts == "stages":
        return [0]
    convolutions = [i for i, step in enumerate(steps) if isinstance(step.module, nn.Conv2d)]
    if not convolutions:
        raise InputError(
            f"scope.cuts={cuts}: this encoder has no residual blocks and no convolutions; name the modules that begin "
            "a block"
        )
    return [0, *(_begin(steps, i, convolutions) for i in convolutions[1:])]


def _begin(steps: Sequence[Step], i: int, convolutions: Sequence[int]) -> int:
    """Where the module begins that has convolution `i` alone, as its pooling may come before it; else `i`."""
    parent = steps[i].name.rpartition(".")[0] + "."
    members = [k for k, step in enumerate(steps) if step.name.startswith(parent)]
    return members[0] if len({*members} & {*convolutions}) == 1 else i


def _named(units: Sequence[str], names: Sequence[str]) -> list[int]:
    """Where the named modules begin."""
    first = {0}
    for name in names:
        places = [i for i, unit in enumerate(units) if unit == name or unit.startswith(name + ".")]
        if not places:
            parts = list(dict.fromkeys(part for unit in units for part in (unit.rpartition(".")[0], unit) if part))
            near = nearest(name, parts)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(parts)}"
            raise InputError(f"scope.cuts: no block can begin at {name!r}; {hint}")
        first.add(places[0])
    return sorted(first)


def _folded(model: nn.Module, steps: list[tuple[str, nn.Module]]) -> list[tuple[str, nn.Module]]:
    """The members of an nn.Sequential in a row as that one module."""
    for parent in dict.fromkeys(name.rpartition(".")[0] for name, _ in steps if "." in name):
        module = model.get_submodule(parent)
        members = [(f"{parent}.{name}", child) for name, child in module.named_children()]
        if type(module).forward is nn.Sequential.forward and members[0] in steps:
            i = steps.index(members[0])
            if steps[i : i + len(members)] == members:
                return _folded(model, [*steps[:i], (parent, module), *steps[i + len(members) :]])
    return steps


def _keep_only(module: nn.Module, needed: set[int], steps: Sequence[Step]) -> None:
    """Takes out the modules that no step needs, and the tensors of a module that is not needed as a whole."""
    tensors = {name for step in steps if step.owner is module for name in step.tensors}
    for kept in (module._parameters, module._buffers):
        for name in set(kept) - tensors:
            del kept[name]
    for name, child in list(module.named_children()):
        if id(child) not in needed:
            if any(id(part) in needed for part in child.modules()):
                _keep_only(child, needed, steps)
            else:
                del module._modules[name]


def _holds_blocks(unit: nn.Module) -> bool:
    """A stage holds blocks that hold layers; the layers of a stem lie flat."""
    return any("." in path for path, module in unit.named_modules() if isinstance(module, nn.Conv2d | nn.Linear))
