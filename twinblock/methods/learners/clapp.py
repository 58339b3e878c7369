"""CLAPP, contrastive, local and predictive plasticity (Illing et al. 2021, arXiv 2010.08262)."""

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from twinblock.methods.patches import Patches

Count = Annotated[int, Field(ge=1, le=1024)]
Skip = Annotated[int, Field(ge=0, le=1024)]


class CLAPP(Patches):
    """Each patch says whether another lies below it: `relu(1 - u)` for those that do, `relu(1 + u)` for others.

    u = c W_k z', with c = z of a patch and z' that of the one `skip` + k rows below; the losses are means over places,
    images and steps. `either`: an image takes one of the two alone, by chance; each is the mean over those that take
    it. `negatives`: so many of all places and images; null: the same place of one image. `mirrored`: the loss without
    gradient to c, and once more with other W without gradient to z', so that no weight is used in both directions. All
    draws follow from seed and step.
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
        steps: Annotated[Count, Field(description="How many rows below are predicted, each by a map of its own.")] = 5,
        skip: Annotated[Skip, Field(description="Rows between a patch and the first that it predicts.")] = 1,
        negatives: Annotated[
            Count | None, Field(description="Others for each patch; null: the same place of one image.")
        ] = None,
        either: Annotated[bool, Field(description="Whether an image is pulled or pushed, not both.")] = True,
        mirrored: Annotated[bool, Field(description="Whether each side has weights of its own.")] = True,
    ):
        super().__init__(blocks, (image_shape, input_shape, shape), number, (patch, stride, steps, skip), autocast)
        self.negatives, self.either = negatives, either
        self.maps = self.predictions()
        self.mirror = self.predictions() if mirrored else None

    @classmethod
    def chance(cls, fields: Any, batch: int) -> float:
        """The hinges are convex, and 1 each where scores are 0."""
        return 4.0 if fields.mirrored else 2.0

    def loss(self, z: Float[Tensor, "n y x d"], key: tuple[int, ...]) -> Tensor:
        if self.mirror is None:
            return self.hinges(z, z, self.maps, (*key, 0))
        return self.hinges(z, z.detach(), self.maps, (*key, 0)) + self.hinges(z.detach(), z, self.mirror, (*key, 1))

    def hinges(self, below: Tensor, contexts: Tensor, maps: nn.ModuleList, key: tuple[int, ...]) -> Tensor:
        """The loss of a set of maps; `below` and `contexts` are z, one of them perhaps without gradient."""
        n = len(below)
        pulled = pushed = torch.ones(n, dtype=torch.bool, device=below.device)
        if self.either:
            pulled = self.draws((*key, "either"), n, 1, 2, below.device)[:, 0] == 0
            pushed = ~pulled
        losses = []
        for k, step in enumerate(maps, start=1):
            c, predicted = self.ahead(contexts, k)[0], step(self.ahead(below, k)[1])
            pull = F.relu(1 - (c * predicted).sum(3)).mean((1, 2))
            push = F.relu(1 + self.scores_of_others(c, predicted, (*key, k))).flatten(1).mean(1)
            losses += [part[taken].mean() for part, taken in ((pull, pulled), (push, pushed)) if taken.any()]
        return torch.stack(losses).sum() / len(maps)

    def scores_of_others(self, c: Tensor, predicted: Tensor, key: tuple[int, ...]) -> Tensor:
        """c W z' of what lies elsewhere, (n, y, x) or (n, y, x, negatives)."""
        n = len(c)
        if self.negatives is None:
            return (c * predicted[self.draws(key, n, 1, n, c.device)[:, 0]]).sum(3)
        flat = predicted.flatten(0, 2)
        others = flat[self.draws(key, len(flat), self.negatives, len(flat), c.device)]
        return (others.view(*c.shape[:3], self.negatives, -1) @ c[..., None])[..., 0]
