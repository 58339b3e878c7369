"""Learners on processes of their own: `train.parallel=blocks`. Maps go forward only, so no process waits for another.

The weights are those of simultaneous training to the bit: a Learner needs, at a step, only the signal that those before
it made before they were updated.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from twinblock.core.distributed import share_batch_within
from twinblock.core.stages import Stages
from twinblock.methods.learner import Signal


class Spread:
    """The Learners of a run over the stages of its processes; `own` are trained by this one."""

    def __init__(self, learners: Sequence[nn.Module], fabric: Any):
        self.learners, self.device = learners, fabric.device
        self.stages = Stages(len(learners))
        self.own = self.stages.own
        share_batch_within(self.stages.row)
        fabric.strategy._ddp_kwargs["process_group"] = self.stages.row  # Fabric has no other way to name a group
        self.begun: set[bool] = set()  # whether this process has sent and received yet

    @property
    def first(self) -> bool:
        """Whether this process makes the views."""
        return self.stages.stage == 0

    def receive(self, k: int, steps: int) -> Signal:
        """The signal of the stage before, at step `k` of a phase of so many."""
        shared, online = self.stages.receive(self.device, self._begins(k, sending=False), last=k + 1 == steps)
        names, maps = shared
        found = dict(zip(names, online, strict=True))
        of = [{i: x for (stream, i), x in found.items() if stream == wanted} for wanted in (0, 1)]
        return Signal(of[0], of[0] if maps else of[1])

    def send(self, signal: Signal, k: int) -> None:
        """Hand the signal on, at step `k` of a phase; called before backward, so that the next stage begins at once."""
        shared = signal.target is signal.online
        streams = [signal.online] if shared else [signal.online, signal.target]
        maps = {(stream, i): x for stream, views in enumerate(streams) for i, x in views.items()}
        self.stages.send([*maps.values()], ([*maps], shared), self._begins(k, sending=True))

    def _begins(self, k: int, sending: bool) -> bool:
        """Whether shapes are told: they may differ between phases."""
        first = k == 0 or sending not in self.begun
        self.begun.add(sending)
        return first

    def losses(self, of_steps: Tensor) -> Tensor:
        """The losses of all Learners, where each stage has its own and zeros."""
        return self.stages.sum(of_steps.double())

    def tell(self) -> None:
        """Give all processes the weights and buffers of every Learner."""
        for i, learner in enumerate(self.learners):
            self.stages.tell(i, learner.state_dict().values())

    @contextmanager
    def whole(self, optimizers: Sequence[torch.optim.Optimizer]) -> Iterator[None]:
        """Within, all processes have the whole state of the training."""
        self.tell()
        for i, optimizer in enumerate(optimizers):
            state = self.stages.tell_object(i, optimizer.state_dict() if i in self.own else None)
            if i not in self.own:
                optimizer.load_state_dict(state)
        yield
        self.forget(optimizers)

    def forget(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Free what only the other stages need."""
        for i, optimizer in enumerate(optimizers):
            if i not in self.own:
                optimizer.state.clear()
