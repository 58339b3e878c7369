"""What the learners that are not siamese have in common."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn


class Alone(nn.Module):
    """Base of the learners without projector, predictor, target network and objective; the facts say what suits them.

    `family`: what it rests on, in a word. `views`: how many of an image they see. `scopes`: in which they can train.
    `labelled`: they learn from labels. The constructor may ask for what the run knows (`parts.FROM_RUN`); its other
    arguments are fields of a recipe. Each has methods of its own, and is refused without:

    - `forward(signal, batch)`: the loss of the global batch, and the detached signal of the next learner;
    - `pass_on(signal, batch)`: the next signal of a learner that is no longer trained;
    - `outputs(x)`: the vectors to diagnose by name, in evaluation mode, at least `encoder`; and the next one's input.
      What has one number for each image is averaged.
    """

    family = "reconstruction"
    views = 1
    scopes: Sequence[str] = ("end_to_end", "blockwise")
    labelled = False
    autocast: torch.dtype | None = None

    @classmethod
    def chance(cls, fields: Any, batch: int) -> float | None:
        """The least loss of a block that tells nothing apart; None: not known. `fields`: of the learner."""
        return None

    def after_step(self, step: int, total: int) -> None:
        """Move what the optimizer does not; most have nothing to move."""

    def precision(self, device: torch.device) -> AbstractContextManager[Any]:
        """In which the network runs."""
        return nullcontext() if self.autocast is None else torch.autocast(device.type, self.autocast)
