"""The state of a training as one dictionary of tensors: how it is written, and how it is read back."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twinblock.runs import checkpoint
from twinblock.assembly.build import encoder_of, make_learners
from twinblock.config.schema import Config
from twinblock.nn.encoders import Encoder
from twinblock.core.errors import InputError
from twinblock.methods.learner import Learner
from twinblock.methods.overlapping import Overlapping

Parts = Sequence[Learner | Overlapping]
ELSEWHERE = "network.blocks."  # of a Learner: the encoder's state holds them


def state_of(encoder: Encoder, learners: Parts, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Every tensor of a training by name."""
    tensors = {f"encoder.{name}": t for name, t in encoder.state_dict().items()}
    for i, (learner, optimizer) in enumerate(zip(learners, optimizers, strict=True)):
        tensors |= {f"learners.{i}.{name}": t for name, t in learner.state_dict().items() if ELSEWHERE not in name}
        tensors |= {f"optimizers.{i}.{name}": t for name, t in checkpoint.flatten_optimizer(optimizer).items()}
    return tensors


def restore_state(
    encoder: Encoder,
    learners: Parts,
    optimizers: Sequence[torch.optim.Optimizer],
    tensors: Mapping[str, Tensor],
    file: Path,
) -> None:
    """Give a training the state that `state_of` took and `file` holds. Raises InputError for that of another config."""
    checkpoint.fill(encoder, tensors, file, "encoder.")
    for i, (learner, optimizer) in enumerate(zip(learners, optimizers, strict=True)):
        checkpoint.fill(learner, tensors, file, f"learners.{i}.", elsewhere=ELSEWHERE)
        try:
            checkpoint.restore_optimizer(optimizer, checkpoint.below(f"optimizers.{i}.", tensors))
        except ValueError as error:
            raise InputError(f"{file} holds the state of another optimizer: {error}") from None


def restored(
    config: Config, file: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> tuple[Encoder, list[Learner | Overlapping]]:
    """Encoder and Learners, on the CPU, from what `checkpoint.read(file)` gave; they share the encoder's blocks.

    A Learner of which the file holds nothing stays untrained. Raises InputError for tensors of another architecture.
    """
    encoder = encoder_of(config)
    checkpoint.fill(encoder, tensors, file, "encoder.")
    learners = make_learners(config, encoder, meta.get("classes"), None, meta.get("epoch_steps", 1))
    for i, learner in enumerate(learners):
        prefix = f"learners.{i}."
        if any(name.startswith(prefix) for name in tensors):
            checkpoint.fill(learner, tensors, file, prefix, elsewhere=ELSEWHERE)
    return encoder, learners
