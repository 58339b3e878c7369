"""What the learners that judge a block by its goodness have in common. Hinton 2022, arXiv 2212.13345."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from twinblock.core.errors import InputError
from twinblock.methods.learners.alone import Alone
from twinblock.nn.modes import evaluating
from twinblock.nn.norms import PerSample
from twinblock.nn.pooling import average
from twinblock.nn.tokens import steps_of


class Goodness(Alone):
    """Base of learners whose goodness is the mean square of a block's activities; the next block must not see it.

    The activities are those behind the block's last layer that learns. Raises InputError unless each block begins with
    a norm of each sample, `rms` or `standard`: else its length would tell the next block what the goodness was.
    """

    family = "goodness"
    scopes = ("blockwise",)

    def __init__(self, blocks: nn.Module, autocast: torch.dtype | None):
        super().__init__()
        self.blocks, self.autocast = blocks, autocast
        self._norm, *steps = steps_of(blocks)
        learning = [i for i, step in enumerate(steps) if any(True for _ in step.parameters())]
        if not isinstance(self._norm, PerSample) or not learning:
            raise InputError(
                "a block has to begin with a norm of each sample; take encoder.kind=mlp or convs with encoder.norm=rms"
            )
        self._layers, self._after = steps[: learning[-1] + 1], steps[learning[-1] + 1 :]  # of `blocks`

    def activities(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """For inputs that are normalised: the activities, in float32 or wider, and what is passed on, detached."""
        with self.precision(x.device):
            for step in self._layers:
                x = step(x)
            passed = x.detach()
            for step in self._after:
                passed = step(passed)
        return F.relu(x.to(torch.promote_types(x.dtype, torch.float32))), passed

    @torch.no_grad()
    def outputs(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        with evaluating(self):
            y, passed = self.activities(self._norm(x))
        goodness = y.square().flatten(1).mean(1)
        return {"encoder": average(passed).float(), "goodness": goodness.float()}, passed


def overlaid(images: Float[Tensor, "n c h w"], labels: Tensor, classes: int) -> Float[Tensor, "n c h w"]:
    """Images that show a label in their first `classes` pixels, row by row: that of the label is as bright as the
    brightest value of the image, the others as dark as its darkest. Hinton 2022, section 3.3.
    """
    flat = images.flatten(2).clone()
    flat[:, :, :classes] = flat.amin((1, 2))[:, None, None]
    flat[torch.arange(len(flat), device=flat.device), :, labels] = images.flatten(1).amax(1)[:, None]
    return flat.view_as(images)
