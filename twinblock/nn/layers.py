"""The layers of an encoder by depth: how fast each learns, and which stay as they are."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from timm.models import group_parameters
from torch import nn

from twinblock.core.errors import InputError, nearest

ALL = "all"


def layers_of(model: nn.Module, blocks: Iterable[Iterable[nn.Module]]) -> dict[str, int]:
    """The layer of each parameter of a network by name, 0 being next to the images.

    A network of timm says it itself, in stem and residual blocks; of another each of the `blocks` is a layer.
    """
    matcher: Any = getattr(model, "group_matcher", None)
    if matcher is not None:
        return dict(group_parameters(model, matcher(coarse=False), reverse=True))  # type: ignore[arg-type]
    numbers: dict[int, int] = {}
    for number, modules in enumerate(blocks):
        for module in modules:
            for p in module.parameters():
                numbers.setdefault(id(p), number)
    return {name: numbers[id(p)] for name, p in model.named_parameters() if id(p) in numbers}


def rate_scales(encoder: nn.Module, layers: Mapping[str, int], learner: nn.Module, decay: float) -> dict[int, float]:
    """By what the learning rate of a parameter is multiplied, by its id: `decay ** (how many layers from the heads)`.

    The last layer that a Learner trains is one away from its heads, which have the whole rate, as in timm's
    `param_groups_layer_decay` and BEiT. Nothing for a decay of 1.
    """
    if decay == 1:
        return {}
    own = {id(p) for p in learner.parameters()}
    depth = {id(p): layers[name] for name, p in encoder.named_parameters() if id(p) in own and name in layers}
    last = max(depth.values(), default=0)
    return {p: decay ** (last + 1 - layer) for p, layer in depth.items()}


def freeze(encoder: nn.Module, names: Sequence[str], for_good: bool) -> set[int]:
    """Mark the modules and parameters of these names, or `all`, as frozen. Gives the ids of the parameters.

    Frozen modules are in evaluation mode, also in copies made later, so that batch norms neither use nor move the
    statistics of batches. `for_good`: the parameters have no gradient at all. Raises InputError for an unknown name.
    """
    modules, parameters = dict(encoder.named_modules()), dict(encoder.named_parameters())
    frozen: set[int] = set()
    for name in names:
        if name not in modules and name not in parameters and name != ALL:
            known = [other for other in (*modules, *parameters) if other]
            near = nearest(name, known, 3) or [other for other in known if "." not in other]
            raise InputError(f"encoder.freeze: the encoder has no {name!r}; did you mean {', '.join(near)}, or {ALL}?")
        if name in parameters:
            frozen.add(id(parameters[name]))
            continue
        root = encoder if name == ALL else modules[name]
        frozen |= {id(p) for p in root.parameters()}
        for part in root.modules():
            if part is not encoder:
                part.frozen = True  # type: ignore[assignment]
                part.training = False
    if for_good:
        for p in parameters.values():
            p.requires_grad_(p.requires_grad and id(p) not in frozen)
    return frozen


def keep_frozen(module: nn.Module, frozen: bool) -> None:
    """Bring the marked parts of a module in training, and of its copies, to evaluation mode or back to training."""
    for part in module.modules():
        if getattr(part, "frozen", False):
            part.training = not frozen
