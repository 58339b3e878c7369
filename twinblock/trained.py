"""The encoder and the Learners of a run as one of its files has them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from twinblock import checkpoint
from twinblock.config import Config
from twinblock.encoders import Encoder
from twinblock.learner import Learner
from twinblock.overlapping import Overlapping
from twinblock.run import encoder_of
from twinblock.scope import make_learners


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
            checkpoint.fill(learner, tensors, file, prefix, elsewhere="network.blocks.")
    return encoder, learners
