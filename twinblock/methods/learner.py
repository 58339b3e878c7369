"""The Learner trains one run of consecutive blocks; the Signal is what flows from Learner to Learner."""

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from twinblock.core.distributed import gather
from twinblock.methods.objectives.objective import HALF, Objective
from twinblock.methods.stacks import Stack, joined, parted
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

    Maps in; of each view, in order, the map that the next Learner begins with and the embedding out. That map is what
    the first block gives: of a Learner with one block its only one, of overlapping Learners the place where the next
    one begins. The views of a stack go through the blocks together, those of all stacks through the projector.
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

    def forward(self, stacks: Sequence[Stack], embed: bool = True) -> list[tuple[Tensor, ...]]:
        """(map, embedding) of each view; without `embed` the map alone."""
        if not embed:
            return [(x,) for stack in stacks for x in parted(self.maps(stack)[0], len(stack.keys))]
        firsts, pooled = zip(*[self.in_parts(stack) for stack in stacks], strict=True)
        maps = [x for first, stack in zip(firsts, stacks, strict=True) for x in parted(first, len(stack.keys))]
        return list(zip(maps, parted(self.projector(joined(pooled)), len(maps)), strict=True))

    def in_parts(self, stack: Stack) -> tuple[Tensor, Tensor]:
        """`vectors`, of a micro batch at a time."""
        if self.micro_batch is None or len(stack.x) <= self.micro_batch:
            return self.vectors(stack)
        pairs = [computed_again(_Vectors(self), *part) for part in stack.parts(self.micro_batch)]
        first, pooled = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        return first, pooled

    def vectors(self, stack: Stack) -> tuple[Tensor, Tensor]:
        """The map that the next Learner begins with, and what the projector is given."""
        maps = self.maps(stack)
        return maps[0], self.pooling(maps[-1])

    def maps(self, stack: Stack) -> list[Tensor]:
        """What each block gives."""
        maps, x = [], stack.x
        with dropping(stack.keys, stack.offset):
            for number, block in enumerate(self.blocks, start=self.number):
                x = self.noised(stack._replace(x=block(x)), number)
                maps.append(x)
        return maps

    def noised(self, stack: Stack, number: int) -> Tensor:
        """With noise of each view's own."""
        if len(stack.keys) > 1 and not self.noise.sigma:
            return stack.x
        return joined([self.noise(x, (*key, number), offset) for x, (key,), offset, _ in stack.views()])


class _Vectors(nn.Module):
    """`Network.vectors` as a module."""

    def __init__(self, network: Network):
        super().__init__()
        self.network = network

    def forward(self, *inputs: Any) -> tuple[Tensor, Tensor]:
        return self.network.vectors(Stack(*inputs))


class Learner(nn.Module):
    """A siamese Learner: blocks, pooling, projector and predictor, a target network and an objective.

    `forward(signal, batch) -> (loss, next signal, targets)`; the next signal is detached, so backward frees this
    Learner's graph before the next one runs. End-to-end training is one Learner that holds all blocks. The loss is the
    sum, or the mean where the objective is `averaged`, of `objective(z of view i, t of view j)` over the objective's
    pairs (i, j), times `scale`. `sizes`: the side of each view. `later`: the passes that the Learners after this one
    need.
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
        self.sizes, self.pairs = tuple(sizes), pairs_of(objective, target, predictor, sizes)
        self.compared = Passes.of(self.pairs)
        self.asks_for_batch, self.in_two_steps = asks_for_batch(objective), hasattr(objective, "made_of")
        self.compares_labels = any(j is None for _, j in self.pairs)
        self.passes = self.compared | later

    def forward(self, signal: Signal, batch: Batch) -> tuple[Tensor, Signal, dict[int, Tensor]]:
        with self.precision(_device(signal)):
            online, target = self.streams(signal, batch)
            z = {i: gather(predicted) for i, predicted in self.predictions(online).items()}
        t = {j: gather(target[j][1]) for j in sorted(self.compared.target)}
        made = {j: self.made_of(embeddings) for j, embeddings in t.items()}
        batch = self.gathered(batch, loss_on=next(iter(z.values())).device)
        losses = [self.compare(z[i], batch.labels if j is None else made[j], batch) for i, j in self.pairs]
        loss = torch.stack(losses)
        loss = loss.mean() if getattr(self.objective, "averaged", False) else loss.sum()
        loss = loss if self.scale == 1 else loss * self.scale
        return loss, _detached(online, target), {j: embeddings.detach() for j, embeddings in t.items()}

    def streams(self, signal: Signal, batch: Batch, embed: bool = True):
        """Run both streams: (map, embedding) by view. Without a separate target they are one."""
        views = self.passes.online if self.target.separate else self.passes.online | self.passes.target
        as_target = partial(self.target, self.network)
        online: dict[int, tuple[Tensor, ...]] = {}
        for together in self.passes_of(views):
            network = as_target if self.target.sees(together[0][0]) else self.network
            online |= _run(network, together, signal.online, batch, embed)
        if not self.target.separate:
            return online, online
        target: dict[int, tuple[Tensor, ...]] = {}
        with all_kept():
            for together in self.passes_of(self.passes.target):
                target |= _run(as_target, together, signal.target, batch, embed)
        return online, target

    def passes_of(self, views: Iterable[int]) -> list[list[list[int]]]:
        """The views of each pass, in stacks. Each view is a pass of its own where all have one size.

        Else, with multi-crop, one pass has all that meet the same network, and a stack those of one size: batch norms
        of the encoder see a size at once, those of the heads all views, as in Caron et al. 2020 (SwAV) and 2021 (DINO).
        """
        if len({*self.sizes}) == 1:
            return [[[i]] for i in sorted(views)]
        passes: dict[bool, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        for i in sorted(views):
            passes[self.target.sees(i)][self.sizes[i]].append(i)
        return [list(stacks.values()) for stacks in passes.values()]

    def predictions(self, online: Mapping[int, tuple[Tensor, ...]]) -> dict[int, Tensor]:
        """What the predictor gives for each view that is compared."""
        predicted: dict[int, Tensor] = {}
        for together in self.passes_of(self.compared.online):
            views = [i for stack in together for i in stack]
            z = self.predict(joined([online[i][1] for i in views]))
            predicted |= zip(views, parted(z, len(views)), strict=True)
        return predicted

    def gathered(self, batch: Batch, loss_on: torch.device) -> Batch:
        """The batch with what the objective asks for of all processes, where it compares embeddings."""
        if not (self.compares_labels or self.asks_for_batch):
            return batch
        labels = None if batch.labels is None else gather(batch.labels)
        index = batch.index
        if index is not None and self.asks_for_batch:
            return replace(batch, labels=labels, index=gather(index.to(loss_on)), offset=0)
        return replace(batch, labels=labels, index=None)

    def made_of(self, t: Tensor) -> Tensor:
        """What the objective compares with, once for each target, however many views meet it; in float32 or wider."""
        t = _wide(t)
        return self.objective.made_of(t) if self.in_two_steps else t  # pyright: ignore[reportCallIssue]

    def compare(self, z: Tensor, t: Any, batch: Batch) -> Tensor:
        """The loss of one pair on the global batch, in float32 or wider."""
        z, t = _wide(z), _wide(t)
        if self.in_two_steps:
            return self.objective.compare(z, t)  # pyright: ignore[reportCallIssue]
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

    def after_step(self, step: int, total: int, targets: Mapping[int, Tensor]) -> None:
        """Move what is not trained: the target network, a queue. Only after the optimizer step, given its `targets`."""
        self.target.after_step(self.network, step, total)
        if hasattr(self.objective, "after_step"):
            self.objective.after_step(targets, step, total)  # pyright: ignore[reportCallIssue]

    def embedded(self, x: Tensor) -> tuple[Tensor, ...]:
        """What the target network makes of one view: the map that the next Learner begins with, and the embedding."""
        network = partial(self.target, self.network) if self.target.separate else self.network
        with self.precision(x.device), all_kept():
            return network([Stack(x, [(0,)])])[0]

    @torch.no_grad()
    def outputs(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """What there is to diagnose, in evaluation mode, by name; and what the next Learner is given."""
        with evaluating(self), self.precision(x.device):
            maps = self.network.maps(Stack(x, [(0,)]))
            z = self.network.projector(self.network.pooling(maps[-1]))
            outputs = {"encoder": average(maps[-1], self.network.pooling.prefix), "projector": z}
            if self.predictor is not None:
                outputs["predictor"] = self.predict(z)
        return {name: output.float() for name, output in outputs.items()}, maps[0]


def shares_of(learner: Any, z: Tensor) -> Tensor | None:
    """How a Learner's objective shares the outputs of its projector out among prototypes; None: it has none."""
    shares = getattr(getattr(learner, "objective", None), "shares", None)
    return None if shares is None else shares(z)


def parts_of(learner: Any) -> Sequence[Any]:
    """The Learners that train as this one: itself, or those that share blocks."""
    return getattr(learner, "parts", None) or (learner,)


def pairs_of(objective: Any, target: Any, predictor: Any, sizes: Sequence[int]) -> tuple[tuple[int, int | None], ...]:
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


def _run(
    network: Callable[..., list[tuple[Tensor, ...]]],
    together: Sequence[Sequence[int]],
    maps: Mapping[int, Tensor],
    batch: Batch,
    embed: bool,
) -> dict[int, tuple[Tensor, ...]]:
    """One pass: what the network gives for each view of these stacks."""
    stacks = [
        Stack(joined([maps[i] for i in views]), [(*batch.key, i) for i in views], batch.offset, batch.labels)
        for views in together
    ]
    return dict(zip([i for views in together for i in views], network(stacks, embed), strict=True))


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in HALF else x


def _device(signal: Signal) -> torch.device:
    return next(iter(signal.online.values())).device


def _detached(online: Mapping[int, tuple[Tensor, ...]], target: Mapping[int, tuple[Tensor, ...]]) -> Signal:
    maps = {i: x.detach() for i, (x, *_) in online.items()}
    return Signal(maps, maps if target is online else {j: x.detach() for j, (x, *_) in target.items()})
