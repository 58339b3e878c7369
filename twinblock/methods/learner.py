"""The Learner trains one run of consecutive blocks; the Signal is what flows from Learner to Learner."""

import inspect
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from twinblock.core.distributed import gather
from twinblock.methods.objectives.objective import HALF, Objective
from twinblock.nn.droppath import all_kept, dropping
from twinblock.nn.modes import computed_again, evaluating
from twinblock.nn.pooling import Noise, Pooling, average


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
    index: Int[Tensor, " n"] | None = None  # which image of the data each sample is


@dataclass(frozen=True)
class Passes:
    """The views that go through the online network, and those that the target network embeds."""

    online: frozenset[int]
    target: frozenset[int]

    @classmethod
    def of(cls, pairs: Sequence[tuple[int, int | None]]) -> "Passes":
        return cls(frozenset(i for i, _ in pairs), frozenset(j for _, j in pairs if j is not None))

    def __or__(self, other: "Passes") -> "Passes":
        return Passes(self.online | other.online, self.target | other.target)


class Network(nn.Module):
    """Blocks, pooling and projector: what a target network averages or prunes.

    Map in; the map that the next Learner begins with and the embedding out. That map is what the first block gives:
    of a Learner with one block its only one, of overlapping Learners the place where the next one begins.
    More than `micro_batch` images go through blocks and pooling in parts, which backward computes again one by one:
    the gradient of the whole batch in the memory of a part. Gao et al. 2021 (GradCache), arXiv 2101.06983.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        pooling: Pooling,
        projector: nn.Module,
        noise: Noise,
        number: int = 0,
        micro_batch: int | None = None,
    ):
        super().__init__()
        self.blocks, self.pooling, self.projector, self.noise = nn.ModuleList(blocks), pooling, projector, noise
        self.number = number  # of the first block, so that each block has noise of its own
        self.micro_batch = micro_batch

    def forward(self, x: Tensor, key: tuple[int, ...], offset: int, embed: bool = True) -> tuple[Tensor, ...]:
        if not embed:
            return (self.maps(x, key, offset)[0],)
        if self.micro_batch is None or len(x) <= self.micro_batch:
            first, pooled = self.vectors(x, key, offset)
        else:
            starts = range(0, len(x), self.micro_batch)
            parts = zip(starts, x.split(self.micro_batch), strict=True)
            pairs = [computed_again(_Vectors(self), part, key, offset + start) for start, part in parts]
            first, pooled = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        return first, self.projector(pooled)

    def vectors(self, x: Tensor, key: tuple[int, ...], offset: int) -> tuple[Tensor, Tensor]:
        """The map that the next Learner begins with, and what the projector is given."""
        maps = self.maps(x, key, offset)
        return maps[0], self.pooling(maps[-1])

    def maps(self, x: Tensor, key: tuple[int, ...], offset: int) -> list[Tensor]:
        """What each block gives."""
        maps = []
        with dropping(key, offset):
            for number, block in enumerate(self.blocks, start=self.number):
                x = self.noise(block(x), (*key, number), offset)
                maps.append(x)
        return maps


class _Vectors(nn.Module):
    """`Network.vectors` as a module."""

    def __init__(self, network: Network):
        super().__init__()
        self.network = network

    def forward(self, *inputs: Any) -> tuple[Tensor, Tensor]:
        return self.network.vectors(*inputs)


class Learner(nn.Module):
    """A siamese Learner: blocks, pooling, projector and predictor, a target network and an objective.

    `forward(signal, batch) -> (loss, next signal, targets)`; the next signal is detached, so backward frees this
    Learner's graph before the next one runs. End-to-end training is one Learner that holds all blocks. The loss is the
    sum of `objective(z of view i, t of view j)` over the objective's pairs (i, j), times `scale`. `sizes`: the side of
    each view. `later`: the passes that the Learners after this one need.
    """

    def __init__(
        self,
        network: Network,
        predictor: nn.Module | None,
        target: Any,
        objective: Any,
        sizes: Sequence[int],
        *,
        scale: float = 1.0,
        autocast: torch.dtype | None = None,
        later: Passes = Passes(frozenset(), frozenset()),
    ):
        super().__init__()
        self.network, self.predictor, self.target, self.objective = network, predictor, target, objective
        self.scale, self.autocast = scale, autocast
        self.pairs = pairs_of(objective, target, predictor, sizes)
        self.compared = Passes.of(self.pairs)
        self.asks_for_batch = asks_for_batch(objective)
        self.compares_labels = any(j is None for _, j in self.pairs)
        self.passes = self.compared | later

    def forward(self, signal: Signal, batch: Batch) -> tuple[Tensor, Signal, Tensor | None]:
        with self.precision(_device(signal)):
            online, target = self.streams(signal, batch)
            z = {i: gather(self.predict(online[i][1])) for i in sorted(self.compared.online)}
        t = {j: gather(target[j][1]) for j in sorted(self.compared.target)}
        batch = self.gathered(batch, loss_on=next(iter(z.values())).device)
        losses = [self.compare(z[i], batch.labels if j is None else t[j], batch) for i, j in self.pairs]
        loss = torch.stack(losses).sum() * self.scale
        return loss, _detached(online, target), torch.cat([*t.values()]).detach() if t else None

    def streams(self, signal: Signal, batch: Batch, embed: bool = True):
        """Run both streams: (map, embedding) by view. Without a separate target they are one."""
        views = self.passes.online if self.target.separate else self.passes.online | self.passes.target
        online = {}
        for i in sorted(views):
            inputs = signal.online[i], (*batch.key, i), batch.offset, embed
            online[i] = self.target(self.network, *inputs) if self.target.sees(i) else self.network(*inputs)
        if not self.target.separate:
            return online, online
        with all_kept():
            target = {
                j: self.target(self.network, signal.target[j], (*batch.key, j), batch.offset, embed)
                for j in sorted(self.passes.target)
            }
        return online, target

    def gathered(self, batch: Batch, loss_on: torch.device) -> Batch:
        """The batch with what the objective asks for of all processes, where it compares embeddings."""
        if not (self.compares_labels or self.asks_for_batch):
            return batch
        labels = None if batch.labels is None else gather(batch.labels)
        index = batch.index
        if index is not None and self.asks_for_batch:
            return replace(batch, labels=labels, index=gather(index.to(loss_on)), offset=0)
        return replace(batch, labels=labels, index=None)

    def compare(self, z: Tensor, t: Any, batch: Batch) -> Tensor:
        """The loss of one pair on the global batch, in float32 or wider."""
        z, t = (x.float() if x.dtype in HALF else x for x in (z, t))
        return self.objective(z, t, batch) if self.asks_for_batch else self.objective(z, t)

    def predict(self, z: Tensor) -> Tensor:
        return z if self.predictor is None else self.predictor(z)

    def precision(self, device: torch.device):
        return nullcontext() if self.autocast is None else torch.autocast(device.type, self.autocast)

    @torch.no_grad()
    def pass_on(self, signal: Signal, batch: Batch) -> Signal:
        """The next signal of a Learner that is no longer trained."""
        with self.precision(_device(signal)):
            return _detached(*self.streams(signal, batch, embed=False))

    def after_step(self, step: int, total: int, targets: Tensor | None = None) -> None:
        """Move what is not trained: the target network, a queue. Only after the optimizer step, given its `targets`."""
        self.target.after_step(self.network, step, total)
        if targets is not None and hasattr(self.objective, "after_step"):
            self.objective.after_step(targets)  # pyright: ignore[reportCallIssue]

    @torch.no_grad()
    def outputs(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """What there is to diagnose, in evaluation mode, by name; and what the next Learner is given."""
        with evaluating(self), self.precision(x.device):
            maps = self.network.maps(x, (0,), 0)
            z = self.network.projector(self.network.pooling(maps[-1]))
            outputs = {"encoder": average(maps[-1], self.network.pooling.prefix), "projector": z}
            if self.predictor is not None:
                outputs["predictor"] = self.predict(z)
        return {name: output.float() for name, output in outputs.items()}, maps[0]


def parts_of(learner: Any) -> Sequence[Any]:
    """The Learners that train as this one: itself, or those that share blocks."""
    return getattr(learner, "parts", None) or (learner,)


def pairs_of(
    objective: Any, target: Any, predictor: nn.Module | None, sizes: Sequence[int]
) -> tuple[tuple[int, int | None], ...]:
    """The pairs (online view, target view) that are compared; None stands for the labels.

    Those that the objective names, and their mirror images where views meet networks of their own, so that every view
    trains the network that sees it. Of two mirror images one is enough if both have the same loss and gradient.
    """
    pairs = objective.pairs(sizes) if hasattr(objective, "pairs") else Objective.pairs(objective, sizes)
    if any(target.sees(i) for i in range(len(sizes))):
        pairs = [*pairs, *((j, i) for i, j in pairs if j is not None and (j, i) not in pairs)]
    if getattr(objective, "symmetric", False) and target.differentiable and predictor is None:
        pairs = [(i, j) for k, (i, j) in enumerate(pairs) if (j, i) not in pairs[:k]]
    return tuple(pairs)


def asks_for_batch(objective: Any) -> bool:
    """Whether an objective's forward has a third argument, `batch`."""
    forward = getattr(objective, "forward", objective)
    return "batch" in inspect.signature(forward).parameters


def _device(signal: Signal) -> torch.device:
    return next(iter(signal.online.values())).device


def _detached(online: Mapping[int, tuple[Tensor, ...]], target: Mapping[int, tuple[Tensor, ...]]) -> Signal:
    maps = {i: x.detach() for i, (x, *_) in online.items()}
    return Signal(maps, maps if target is online else {j: x.detach() for j, (x, *_) in target.items()})
