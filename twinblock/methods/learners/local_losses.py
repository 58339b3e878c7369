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
from twinblock.methods.credit import HandedBack
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

    With `projections` the losses need no label at the layer and no transport of weights (*bio* in the authors' code): Y
    becomes Y P, with P (classes x projections) fixed and uniform within `1 / sqrt(classes)`. `L_pred` is then the
    binary cross entropy of the signs of Y P, whose error goes through fixed random weights in place of the
    classifier's; and `L_sim` compares the windows themselves, without g, with Y P.
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
        projections: Annotated[
            int | None,
            Field(ge=1, description="Random numbers that stand for a label, 128 as published (bio); null: itself."),
        ] = None,
    ):
        super().__init__()
        if classes is None:
            raise InputError("learner.kind=local_losses needs labels, and this data has none")
        if len(shape) != 3:
            gives = "tokens" if len(shape) == 2 else "vectors"
            raise InputError(f"learner.kind=local_losses compares maps, and these blocks give {gives}; take vgg8b")
        self.blocks, self.autocast, self.similarity, self.classes = blocks, autocast, similarity, classes
        self.windows = windows_of(shape, inputs)
        self.classifier = nn.Linear(shape[0] * math.prod(self.windows), projections or classes)
        nn.init.zeros_(self.classifier.weight)
        if projections is None:
            self.expansion = nn.Conv2d(shape[0], shape[0], 3, padding=1, bias=False)
            self.projection = self.feedback = None
        else:
            self.expansion = None
            self.projection = nn.Buffer(_uniform(classes, projections))
            self.feedback = nn.Buffer(_uniform(self.classifier.in_features, projections).T.contiguous())
        self.predicted = Supervised()

    def forward(self, signal: Signal, batch: Batch) -> tuple[Tensor, Signal]:
        assert batch.labels is not None, "labels are asked for when a run begins"
        x = signal.online[0]
        with self.precision(x.device):
            y = self.blocks(x)
            windows = F.adaptive_avg_pool2d(y, self.windows)
            scores = self.scores(windows.flatten(1))
            spread = spread_of(windows if self.expansion is None else self.expansion(y))
        labels = gather(batch.labels)
        scores, spread = (gather(_wide(values)) for values in (scores, spread))
        with torch.autocast(x.device.type, enabled=False):
            loss = self.losses(scores, spread, labels)
        y = y.detach()
        return loss, Signal({0: y}, {0: y})

    def scores(self, x: Float[Tensor, "n k"]) -> Float[Tensor, "n c"]:
        """What the classifier says; its error goes back through the fixed weights, where there are such."""
        if self.feedback is None:
            return self.classifier(x)
        with HandedBack({id(self.classifier.weight): self.feedback}):
            return self.classifier(x)

    def losses(
        self, scores: Float[Tensor, "n c"], spread: Float[Tensor, "n d"], labels: Int[Tensor, " n"]
    ) -> Float[Tensor, ""]:
        """Both losses of all images of a batch."""
        known = labels >= 0
        taught = F.one_hot(labels[known], self.classes).to(scores)
        if self.projection is None:
            prediction = self.predicted(scores, labels)
        else:
            taught = taught @ self.projection.to(taught)
            signs = (taught > 0).to(taught)
            prediction = F.binary_cross_entropy_with_logits(scores[known], signs, reduction="sum")
            prediction = prediction / max(1, signs.numel())
        return (1 - self.similarity) * prediction + self.similarity * similarity_loss(spread[known], taught)

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


def similarity_loss(x: Float[Tensor, "n d"], taught: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
    """`mean_ij (S(x)_ij - S(Y)_ij)^2` with Y what is taught of each image; 0 where there is none."""
    differences = similarities(x) - similarities(taught)
    return differences.square().sum() / max(1, differences.numel())


def similarities(x: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    """The cosines of all rows, each less its own mean."""
    centred = x - x.mean(1, keepdim=True)
    length = centred.square().sum(1, keepdim=True)
    length = torch.where(length > 0, length, 1).sqrt() * (length > 0)  # the gradient of a root at zero is infinite
    unit = centred / (length + EPS)
    return (unit @ unit.T).clamp(-1, 1)


def _uniform(rows: int, columns: int) -> Float[Tensor, "r c"]:
    """As torch draws a linear layer of so many inputs."""
    bound = 1 / math.sqrt(rows)
    return torch.empty(rows, columns).uniform_(-bound, bound)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
