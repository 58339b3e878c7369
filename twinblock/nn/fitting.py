"""Weights of others put into an encoder: their names, the channels of its images, the size of its images."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models import adapt_input_conv
from torch import Tensor, nn

from twinblock.core.errors import InputError
from twinblock.nn.encoders import Encoder
from twinblock.nn.weights import Weights

LISTED = 4  # names in a line
FIRST = re.compile(r"(^|[._])(teacher|ema)([._]|$)")  # of two networks in a file, the average
COUNTER = "num_batches_tracked"


def start_from(encoder: Encoder, weights: Weights, channels: int = 3, stem: str = "standard") -> tuple[str, ...]:
    """Load weights into an encoder. Gives what was taken, what was left out and what was changed, a line each.

    The names may stand below any prefix (`state_dict.module.backbone.`), or be others in the same order. A first
    convolution of other `channels` is summed or repeated, and a position embedding of another size resampled, as timm
    does. A first convolution that the `stem` replaced keeps the weights drawn for it, if those given do not fit.
    Raises InputError, with their names, where tensors are missing, of other shapes or not finite.
    """
    own = encoder.state_dict()
    prefix, named, by_order = _found(own, weights.tensors)
    first = next((f"{path}.weight" for path, m in encoder.named_modules() if isinstance(m, nn.Conv2d)), "")
    taken: dict[str, Tensor] = {}
    notes: list[str] = []
    wrong: list[str] = []
    for name, here in own.items():
        there = named.get(name)
        if there is None:
            wrong += [] if name.endswith(COUNTER) or not here.is_floating_point() else [f"{name} is missing"]
            continue
        fitted, note = _fitted(name, there, here, channels if name == first else 0)
        if fitted is not None:
            taken[name] = fitted.to(here.dtype)
            notes += [note] if note else []
        elif stem != "standard" and name == first:
            notes.append(f"stem={stem}: {name} keeps the weights drawn for it")
        else:
            wrong.append(f"{name} is {tuple(there.shape)}, not {tuple(here.shape)}")
    if wrong:
        raise InputError(
            f"encoder.weights={weights.source} does not fit the encoder: {_some(wrong)}; give its own encoder.kind, "
            "encoder.width and encoder.norm"
        )
    if bad := [name for name, tensor in taken.items() if not tensor.isfinite().all()]:
        raise InputError(f"encoder.weights={weights.source} holds NaN or infinity: {_some(bad)}")
    encoder.load_state_dict({**own, **taken})
    return (_summary(weights, prefix, named, taken, own, by_order), *notes)


def _found(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor], bool]:
    """The prefix below which most names are the encoder's, what stands there by the encoder's names, and whether they
    were told by their order alone.
    """
    below: Counter[str] = Counter()
    for path in given:
        parts = path.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in own:
                below[".".join(parts[:i])] += 1
    if below:
        order = list(below)
        best = max(order, key=lambda prefix: (below[prefix], bool(FIRST.search(prefix)), -order.index(prefix)))
        prefix = f"{best}." if best else ""
        named = {path.removeprefix(prefix): t for path, t in given.items() if path.startswith(prefix)}
        learned = [name for name, t in own.items() if t.is_floating_point()]
        if all(name in named for name in learned):
            return prefix, named, False
    else:
        prefix, named = "", {}
    for other in _prefixes(given):
        if in_order := _in_order(own, {p: t for p, t in given.items() if p.startswith(other)}):
            return other, in_order, True
    if not named:
        raise InputError(
            f"encoder.weights: no tensor has a name of the encoder: {_some(given) or 'there is none'}, in place of "
            f"{_some(own)}"
        )
    return prefix, named, False


def _prefixes(given: Iterable[str]) -> list[str]:
    """All beginnings of names, averages first."""
    parts = (path.split(".") for path in given)
    found = dict.fromkeys(["", *(".".join(some[:i]) + "." for some in parts for i in range(1, len(some)))])
    return sorted(found, key=lambda prefix: not FIRST.search(prefix))


def _in_order(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by the encoder's names where, one by one, they are of the same kind and shape; else none.

    What follows them is left out. So a network whose modules have numbers or other names is read, too.
    """
    if len(given) < len(own):
        return {}
    pairs = [(name, here, path, there) for (name, here), (path, there) in zip(own.items(), given.items(), strict=False)]
    last = lambda name: name.rpartition(".")[2]  # noqa: E731
    same = all(last(name) == last(path) and here.shape == there.shape for name, here, path, there in pairs)
    return {name: there for name, _, _, there in pairs} if same else {}


def _fitted(name: str, there: Tensor, here: Tensor, channels: int) -> tuple[Tensor | None, str]:
    """A tensor in the shape that the encoder has, and what was done to it; None where it has no such shape.

    `channels`: of the images, where this is the first convolution.
    """
    if there.shape == here.shape:
        return there, ""
    if there.ndim == 4 and channels == here.shape[1] and _without(there, 1) == _without(here, 1):
        had = there.shape[1]
        how = "summed to 1" if channels == 1 else f"repeated for {channels}"
        with torch.no_grad():
            return adapt_input_conv(channels, there, base_chans=had), f"{name}: {had} channels {how}, as timm does"
    if re.search(r"(^|\.)pos_embed(ding)?$", name) and there.ndim == here.ndim == 3 and there.shape[2] == here.shape[2]:
        (old, before), (new, after) = (_grid(t.shape[1]) for t in (there, here))
        if before == after:
            with torch.no_grad():
                resampled = resample_abs_pos_embed(there, [new, new], [old, old], num_prefix_tokens=before)
            return resampled, f"{name}: {old} x {old} places resampled to {new} x {new}, as timm does"
    return None, ""


def _grid(tokens: int) -> tuple[int, int]:
    """The side of the square grid that so many tokens hold, and how many stand beside it."""
    side = math.isqrt(tokens)
    return side, tokens - side**2


def _without(tensor: Tensor, axis: int) -> Sequence[int]:
    return [n for i, n in enumerate(tensor.shape) if i != axis]


def _summary(
    weights: Weights,
    prefix: str,
    named: Mapping[str, Tensor],
    taken: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    by_order: bool,
) -> str:
    where = f", below {prefix.removesuffix('.')}" if prefix else ""
    order = ", told by their order, kind and shape, as their names are others" if by_order else ""
    line = f"starts from {weights.source}{where}: {len(taken)} of {len(own)} tensors{order}"
    if by_order:
        count = len(weights.tensors) - len(taken)
        return f"{line}; {count} left out" if count else line
    left = dict.fromkeys(name.rpartition(".")[0] or name for name in named if name not in own)
    beside = dict.fromkeys(path.split(".")[0] for path in weights.tensors if not path.startswith(prefix))
    out = [*left, *(f"{name}.*" for name in beside if not prefix.startswith(f"{name}."))]
    out += [f"{prefix.split('.')[0]}.* beside it"] if prefix and _siblings(weights.tensors, prefix) else []
    return f"{line}; left out: {_some(out)}" if out else line


def _siblings(given: Iterable[str], prefix: str) -> bool:
    top = prefix.split(".")[0] + "."
    return top != prefix and any(path.startswith(top) and not path.startswith(prefix) for path in given)


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
