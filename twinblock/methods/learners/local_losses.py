"""Local classification losses: prediction and similarity matching (Nokland and Eidnes 2019, arXiv 1901.06656)."""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from twinblock.core.distributed import gather
from twinblock.core.errors import InputError
from twinblock.core.types import Probability
from twinblock.methods.learner import Batch, Signal
from twinblock.methods.learners.alone import Alone
from twinblock.methods.objectives import Supervised
from twinblock.nn.modes import evaluating
from twinblock.nn.pooling import average

EPS = 1e-8  # added to a length


class LocalLosses(Alone):
    """Each block has two losses with the labels: `(1 - b) L_pred + b L_sim`, with b the field `similarity`.

    `L_pred` is the cross entropy of a linear classifier of the block's map, averaged over windows until at most
    `inputs` numbers are left; it begins at zero. `L_sim = mean_ij (S(g(h))_ij - S(Y)_ij)^2` compares how alike the
    images of a batch are with whether they share a class: g is a 3 x 3 convolution, taken as the standard deviation of
    each channel over its places, Y are labels one-hot, and S(x) holds the cosines of rows less their own mean. Images
    without a label have no part.
    """

    family = "labels"
    labelled = True

    def __init__(
        self,
        blocks: nn.Module,
        shape: tuple[int, ...],
        classes: int | None,
        autocast: torch.dtype | None = None,
        similarity: Annotated[
            Probability, Field(description="Weight of similarity matching; prediction has the rest.")
        ] = 0.99,
        inputs: Annotated[int, Field(ge=1, description="The most numbers that a block's classifier sees.")] = 2048,
    ):
        super().__init__()
        if classes is None:
            raise InputError("learner.kind=local_losses needs labels, and this data has none")
        if len(shape) != 3:
            gives = "tokens" if len(shape) == 2 else "vectors"
            raise InputError(f"learner.kind=local_losses compares maps, and these blocks give {gives}; take vgg8b")
        self.blocks, self.autocast, self.similarity, self.classes = blocks, autocast, similarity, classes
        self.windows = windows_of(shape, inputs)
        self.classifier = nn.Linear(shape[0] * math.prod(self.windows), classes)
        nn.init.zeros_(self.classifier.weight)
        self.expansion = nn.Conv2d(shape[0], shape[0], 3, padding=1, bias=False)
        self.predicted = Supervised()

    def forward(self, signal: Signal, batch: Batch) -> tuple[Tensor, Signal]:
        assert batch.labels is not None, "labels are asked for when a run begins"
        x = signal.online[0]
        with self.precision(x.device):
            y = self.blocks(x)
            scores = self.classifier(F.adaptive_avg_pool2d(y, self.windows).flatten(1))
            spread = spread_of(self.expansion(y))
        labels = gather(batch.labels)
        scores, spread = (gather(_wide(values)) for values in (scores, spread))
        with torch.autocast(x.device.type, enabled=False):
            loss = (1 - self.similarity) * self.predicted(scores, labels)
            loss = loss + self.similarity * similarity_loss(spread, labels, self.classes)
        y = y.detach()
        return loss, Signal({0: y}, {0: y})

    @torch.no_grad()
    def pass_on(self, signal: Signal, batch: Batch) -> Signal:
        with self.precision(signal.online[0].device):
            maps = {0: self.blocks(signal.online[0])}
        return Signal(maps, maps)

    @torch.no_grad()
    def outputs(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        with evaluating(self), self.precision(x.device):
            y = self.blocks(x)
        return {"encoder": average(y).float()}, y


def windows_of(shape: tuple[int, ...], inputs: int) -> tuple[int, int]:
    """How many windows a map (c, h, w) is averaged over: halved in rows, then columns, until c of each fit."""
    channels, rows, columns = shape
    down = across = 1
    while channels * rows * columns > inputs and down < shape[1]:
        down *= 2
        rows = math.ceil(shape[1] / down)
        if channels * rows * columns > inputs:
            across *= 2
            columns = math.ceil(shape[2] / across)
    return rows, columns


def spread_of(maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
    """The standard deviation of each channel over its places; maps of one row, or of 3 channels or fewer, as they are.

    A channel that is the same everywhere has no gradient, where that of the root is infinite.
    """
    if maps.shape[1] <= 3 or maps.shape[2] == 1:
        return maps.flatten(1)
    variance = _wide(maps).flatten(2).var(2)
    return torch.where(variance > 0, variance, 1).sqrt() * (variance > 0)


def similarity_loss(x: Float[Tensor, "n d"], labels: Int[Tensor, " n"], classes: int) -> Float[Tensor, ""]:
    """`mean_ij (S(x)_ij - S(Y)_ij)^2` over the labelled images; 0 where there is none."""
    known = labels >= 0
    x, one_hot = x[known], F.one_hot(labels[known], classes).to(x.dtype)
    differences = similarities(x) - similarities(one_hot)
    return differences.square().sum() / max(1, differences.numel())


def similarities(x: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    """The cosines of all rows, each less its own mean."""
    centred = x - x.mean(1, keepdim=True)
    length = centred.square().sum(1, keepdim=True)
    length = torch.where(length > 0, length, 1).sqrt() * (length > 0)  # the gradient of a root at zero is infinite
    unit = centred / (length + EPS)
    return (unit @ unit.T).clamp(-1, 1)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
