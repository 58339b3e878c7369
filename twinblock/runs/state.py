"""The state of a training as one dictionary of tensors: how it is written, and how it is read back."""

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twinblock.assembly.build import Objects, encoder_of, make_learners
from twinblock.config.schema import Config
from twinblock.core.errors import InputError
from twinblock.methods import objectives, targets
from twinblock.methods.learner import parts_of
from twinblock.methods.objectives.objective import Objective
from twinblock.methods.targets.shared import Shared
from twinblock.nn.encoders import Encoder
from twinblock.runs import checkpoint

# names of 0.1, and what they are now
_RENAMED = (
    (re.compile(r"\.branch\.target\."), ".target.average."),
    (re.compile(r"\.branch\."), ".target."),
    (re.compile(r"\.network\.tap\."), ".network.pooling."),
    (re.compile(r"\.average\.tap\."), ".average.pooling."),
    (re.compile(r"\.norms\.tap/"), ".norms.pooling/"),
)


def state_of(
    encoder: Encoder, learners: Sequence[Any], optimizers: Sequence[torch.optim.Optimizer]
) -> dict[str, Tensor]:
    """Every tensor of a training by name; what a Learner shares with the encoder once, as the encoder's."""
    tensors = {f"encoder.{name}": t for name, t in encoder.state_dict().items()}
    for i, (learner, optimizer) in enumerate(zip(learners, optimizers, strict=True)):
        shared = _shared(encoder, learner)
        tensors |= {f"learners.{i}.{name}": t for name, t in learner.state_dict().items() if name not in shared}
        tensors |= {f"optimizers.{i}.{name}": t for name, t in checkpoint.flatten_optimizer(optimizer).items()}
    return tensors


def snapshot(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy on the CPU, which further steps do not change."""
    return {name: t.detach().to("cpu", copy=True) for name, t in state.items()}


def _shared(encoder: Encoder, learner: nn.Module) -> set[str]:
    """The names of a Learner's tensors that are the encoder's own."""
    of_encoder = {id(t) for t in encoder.state_dict(keep_vars=True).values()}
    return {name for name, t in learner.state_dict(keep_vars=True).items() if id(t) in of_encoder}


def restore_state(
    encoder: Encoder,
    learners: Sequence[Any],
    optimizers: Sequence[torch.optim.Optimizer],
    tensors: Mapping[str, Tensor],
    file: Path,
) -> None:
    """Give a training the state that `state_of` took and `file` holds. Raises InputError for that of another config."""
    tensors = _current(tensors)
    checkpoint.fill(encoder, tensors, file, "encoder.")
    for i, (learner, optimizer) in enumerate(zip(learners, optimizers, strict=True)):
        checkpoint.fill(learner, tensors, file, f"learners.{i}.", _shared(encoder, learner))
        try:
            checkpoint.restore_optimizer(optimizer, checkpoint.below(f"optimizers.{i}.", tensors))
        except ValueError as error:
            raise InputError(f"{file} holds the state of another optimizer: {error}") from None


def restored(
    config: Config,
    file: Path,
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    objects: Objects | None = None,
) -> tuple[Encoder, list[Any]]:
    """Encoder and Learners, on the CPU, from what `checkpoint.read(file)` gave; they share the encoder's blocks.

    A Learner that the file holds nothing of stays untrained. An objective or target network of the caller's own that
    `objects` does not hold is left out: nothing is compared any more. Raises InputError for another architecture.
    """
    absent = _absent(config, objects or {})
    encoder = encoder_of(config, objects)
    tensors = {n: t for n, t in _current(tensors).items() if not re.match(r"learners\.", n) or not _of(n, absent)}
    checkpoint.fill(encoder, tensors, file, "encoder.")
    classes, epoch_steps = meta.get("classes"), meta.get("epoch_steps", 1)
    images = (meta.get("data") or {}).get("images", 0)
    learners = make_learners(config, encoder, classes, None, epoch_steps, {**(objects or {}), **absent}, images)
    for i, learner in enumerate(learners):
        prefix = f"learners.{i}."
        if any(name.startswith(prefix) for name in tensors):
            checkpoint.fill(learner, tensors, file, prefix, _shared(encoder, learner))
    return encoder, learners


def encoder_to_keep(encoder: Encoder, learners: Sequence[Any]) -> Encoder:
    """What a run gives in the end: the encoder, or a copy with the weights of the target network that is `kept`."""
    names = {id(t): name for name, t in encoder.state_dict(keep_vars=True).items()}
    averages: dict[str, Tensor] = {}
    for part in (part for learner in learners for part in parts_of(learner)):
        if getattr(getattr(part, "target", None), "kept", False):
            of_target = part.target.average.state_dict()
            shared = part.network.state_dict(keep_vars=True).items()
            averages |= {names[id(t)]: of_target[name] for name, t in shared if id(t) in names}
    if not averages:
        return encoder
    kept = copy.deepcopy(encoder)
    kept.load_state_dict({**encoder.state_dict(), **averages})
    return kept


def _absent(config: Config, objects: Objects) -> dict[str, nn.Module]:
    """What stands in for parts that are not ours and were not given."""
    parts = (("objective", objectives.KINDS, _Nothing()), ("target", targets.KINDS, Shared()))
    chosen = ((name, getattr(config, name), kinds, instead) for name, kinds, instead in parts)
    return {name: x for name, part, kinds, x in chosen if part and part.kind not in kinds and name not in objects}


class _Nothing(Objective):
    """Compares nothing."""

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        return z.mean()


def _of(name: str, parts: Mapping[str, Any]) -> bool:
    """Whether a tensor is of one of these parts of a Learner."""
    return any(f".{part}." in name for part in parts)


def _current(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file of an earlier version by the names that they have now."""
    current = {}
    for name, tensor in tensors.items():
        for old, new in _RENAMED:
            name = old.sub(new, name)
        current[name] = tensor
    return current
