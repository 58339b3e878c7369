"""The state of a training as one dictionary of tensors: encoder, Learners, optimizers."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from twinblock import checkpoint
from twinblock.encoders import Encoder
from twinblock.errors import InputError
from twinblock.learner import Learner
from twinblock.overlapping import Overlapping

Parts = Sequence[Learner | Overlapping]
ELSEWHERE = "network.blocks."  # of a Learner: the encoder's state holds them


def state_of(encoder: Encoder, learners: Parts, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Every tensor of a training by name."""
    tensors = {f"encoder.{name}": t for name, t in encoder.state_dict().items()}
    for i, (learner, optimizer) in enumerate(zip(learners, optimizers, strict=True)):
        tensors |= {f"learners.{i}.{name}": t for name, t in learner.state_dict().items() if ELSEWHERE not in name}
        tensors |= {f"optimizers.{i}.{name}": t for name, t in checkpoint.flatten_optimizer(optimizer).items()}
    return tensors


def take_over(
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
