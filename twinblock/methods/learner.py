"""The Learner trains one run of consecutive blocks; the Signal is what flows from Learner to Learner."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from twinblock.core.distributed import gather
from twinblock.methods.objectives.objective import Objective
from twinblock.methods.targets import Target
from twinblock.nn.pooling import Noise, Pooling


@dataclass
class Signal:
    """Feature maps by view, of the online and the target stream; the very same tensors where the target is shared."""

    online: dict[int, Tensor]
    target: dict[int, Tensor]

    @classmethod
    def from_views(cls, views: Sequence[Tensor]) -> "Signal":
        maps = dict(enumerate(views))
        return cls(maps, maps)


@dataclass
class Batch:
    """What a Learner may know of a batch besides its images: labels, and what makes random draws repeatable."""

    labels: Int[Tensor, " n"] | None
    key: tuple[int, ...]  # (seed, step)
    offset: int = 0  # position of the first sample in the global batch


class Network(nn.Module):
    """Blocks, pooling and projector: what a target averages or prunes.

    Map in; the map that the next Learner begins with and the embedding out. That map is what the first block gives:
    of a Learner with one block its only one, of overlapping Learners the place where the next one begins.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], pooling: Pooling, projector: nn.Module, noise: Noise, number: int = 0
    ):
        super().__init__()
        self.blocks, self.pooling, self.projector, self.noise = nn.ModuleList(blocks), pooling, projector, noise
        self.number = number  # of the first block, so that each block has noise of its own

    def forward(self, x: Tensor, key: tuple[int, ...], offset: int, embed: bool = True) -> tuple[Tensor, ...]:
        maps = self.maps(x, key, offset)
        return (maps[0], self.projector(self.pooling(maps[-1]))) if embed else (maps[0],)

    def maps(self, x: Tensor, key: tuple[int, ...], offset: int) -> list[Tensor]:
        """What each block gives."""
        found = []
        for number, block in enumerate(self.blocks, start=self.number):
            x = self.noise(block(x), (*key, number), offset)
            found.append(x)
        return found


class Learner(nn.Module):
    """Blocks + pooling + projector + predictor + target + objective + its own optimizer.

    `forward(signal, batch) -> (loss, next signal)`; the next signal is detached, so backward frees this Learner's graph
    before the next one runs. End-to-end training is one Learner that holds all blocks. The loss is the sum of
    `objective(z of view i, t of view j)` over the directions (i, j) that the objective needs, times `scale`.
    """

    def __init__(
        self,
        network: Network,
        predictor: nn.Module | None,
        target: Target,
        objective: Objective,
        views: int,
        scale: float = 1.0,
        autocast: torch.dtype | None = None,
    ):
        super().__init__()
        self.network, self.predictor = network, predictor
        self.target: Target = target
        self.objective: Objective = objective
        self.scale, self.autocast = scale, autocast
        self.directions = directions(objective, target, predictor, views)
        self.views = {i for i, _ in self.directions}, {j for _, j in self.directions if j is not None}
        self.passes = self.views  # and those that only later Learners need
        self._targets: Tensor | None = None

    @property
    def parts(self) -> Sequence["Learner"]:
        return (self,)

    def forward(self, signal: Signal, batch: Batch) -> tuple[Tensor, Signal]:
        with self.precision(next(iter(signal.online.values())).device):
            online, target = self.streams(signal, batch)
            z = {i: gather(self.predict(online[i][1])) for i in self.views[0]}
        t = {j: gather(target[j][1]) for j in self.views[1]}
        labels = gather(batch.labels) if self.objective.labelled and batch.labels is not None else None
        losses = [self.objective(z[i], labels if j is None else t[j]) for i, j in self.directions]
        loss = torch.stack(losses).sum() * self.scale
        self._targets = torch.cat([t[j] for j in self.views[1]]).detach() if t else None
        return loss, _detached(online, target)

    def streams(self, signal: Signal, batch: Batch, embed: bool = True):
        """Run both streams: (map, embedding) by view. A shared target needs no pass of its own."""
        online_views, target_views = self.passes
        if not self.target.own_pass:
            online_views = online_views | target_views
        online = {}
        for i in online_views:
            inputs = signal.online[i], (*batch.key, i), batch.offset, embed
            online[i] = self.target(self.network, *inputs) if self.target.by_view and i else self.network(*inputs)
        if not self.target.own_pass:
            return online, online
        target = {
            j: self.target(self.network, signal.target[j], (*batch.key, j), batch.offset, embed) for j in target_views
        }
        return online, target

    def predict(self, z: Tensor) -> Tensor:
        return z if self.predictor is None else self.predictor(z)

    def precision(self, device: torch.device):
        return nullcontext() if self.autocast is None else torch.autocast(device.type, self.autocast)

    @torch.no_grad()
    def pass_on(self, signal: Signal, batch: Batch) -> Signal:
        """The next signal of a Learner that is no longer trained."""
        with self.precision(next(iter(signal.online.values())).device):
            return _detached(*self.streams(signal, batch, embed=False))

    def after_step(self, step: int, total: int) -> None:
        """Move the state that is not trained: target network, queue. Only after the optimizer step."""
        self.target.after_step(self.network, step, total)
        if self._targets is not None:
            self.objective.after_step(self._targets)
            self._targets = None


def directions(
    objective: Objective, target: Target, predictor: nn.Module | None, views: int
) -> tuple[tuple[int, int | None], ...]:
    """The pairs (online view, target view) that an objective compares.

    One pair is enough where swapping the views gives the same loss and gradient, and where a queue holds the
    negatives (MoCo) unless each view has a network of its own; else both, so that every view trains the network that
    sees it. A labelled objective compares no views.
    """
    if objective.labelled:
        return tuple((i, None) for i in range(views))
    if (objective.one_way and not target.by_view) or (objective.symmetric and target.live and predictor is None):
        return ((0, 1),)
    return ((0, 1), (1, 0))


def _detached(online: Mapping[int, tuple[Tensor, ...]], target: Mapping[int, tuple[Tensor, ...]]) -> Signal:
    maps = {i: x.detach() for i, (x, *_) in online.items()}
    return Signal(maps, maps if target is online else {j: x.detach() for j, (x, *_) in target.items()})
