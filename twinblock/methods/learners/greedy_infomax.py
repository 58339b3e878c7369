"""Greedy InfoMax (Löwe, O'Connor and Veeling 2019, arXiv 1905.11786)."""

import math
from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from twinblock.methods.patches import Patches

TINY = 1e-11  # beside a probability whose logarithm is taken

Count = Annotated[int, Field(ge=1, le=1024)]
Skip = Annotated[int, Field(ge=0, le=1024)]


class GreedyInfoMax(Patches):
    """Each patch tells those below it from others: the mean over steps k and places of

    `-log softmax over {z', n others} of c W_k z'`, with c = z of a patch, z' that of the one `skip` + k rows below, and
    the others drawn, by seed and step, from all places and images that step k looks at.
    """

    def __init__(
        self,
        blocks: nn.Module,
        image_shape: tuple[int, ...],
        input_shape: tuple[int, ...],
        shape: tuple[int, ...],
        number: int,
        autocast: torch.dtype | None = None,
        patch: Annotated[Count, Field(description="Side of a patch in pixels.")] = 16,
        stride: Annotated[Count, Field(description="Pixels from one patch to the next.")] = 8,
        steps: Annotated[Count, Field(description="How many rows below are told, each by a map of its own.")] = 5,
        skip: Annotated[Skip, Field(description="Rows between a patch and the first that it tells.")] = 1,
        negatives: Annotated[Count, Field(description="Others that a patch is told from.")] = 16,
    ):
        super().__init__(blocks, (image_shape, input_shape, shape), number, (patch, stride, steps, skip), autocast)
        self.negatives, self.maps = negatives, self.predictions()

    @classmethod
    def chance(cls, fields: Any, batch: int) -> float:
        """One candidate is as likely as any other, by Jensen's inequality."""
        return math.log(1 + fields.negatives)

    def loss(self, z: Float[Tensor, "n y x d"], key: tuple[int, ...]) -> Tensor:
        losses = []
        for k, step in enumerate(self.maps, start=1):
            contexts, below = (part.flatten(0, 2) for part in self.ahead(z, k))
            predicted = step(below)
            others = predicted[self.draws((*key, k), len(predicted), self.negatives, len(predicted), z.device)]
            right = (contexts * predicted).sum(1, keepdim=True)
            scores = torch.cat([right, (others @ contexts[:, :, None])[:, :, 0]], 1)
            losses.append(-(scores.softmax(1)[:, 0] + TINY).log().mean())
        return torch.stack(losses).mean()
