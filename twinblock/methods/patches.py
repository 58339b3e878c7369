"""What the learners that predict patches of an image from others have in common."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from twinblock.core.distributed import gather
from twinblock.core.errors import InputError, first_line
from twinblock.core.seeding import uniform
from twinblock.methods.learner import Batch, Signal
from twinblock.methods.learners.alone import Alone
from twinblock.nn.modes import evaluating
from twinblock.nn.pooling import average


def patches_of(images: Float[Tensor, "n c h w"], size: int, stride: int) -> Float[Tensor, "m c s s"]:
    """All patches of `size` pixels a side, `stride` apart, image by image, row by row."""
    cut = images.unfold(2, size, stride).unfold(3, size, stride)
    return cut.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)


class Patches(Alone):
    """Base of learners that cut an image into a grid of patches and encode each as a small image of its own.

    z is the mean of a patch's map; `loss(z, key)` compares those of all images of all processes. What is kept, and
    measured as features, is the encoder on whole images.
    """

    family = "contrast"
    loss: Callable[[Float[Tensor, "n y x d"], tuple[int, ...]], Tensor]
    size: int
    stride: int
    steps: int
    skip: int

    def __init__(
        self,
        blocks: nn.Module,
        shapes: tuple[tuple[int, ...], ...],
        number: int,
        grid: tuple[int, int, int, int],
        autocast: torch.dtype | None,
    ):
        """`shapes`: of an image, of what blocks are given and give for it; `grid`: size, stride, steps, skip."""
        super().__init__()
        image, given, shape = shapes
        self.blocks, self.number, self.autocast = blocks, number, autocast
        self.size, self.stride, self.steps, self.skip = grid
        self.rows = (image[1] - self.size) // self.stride + 1
        ahead = self.steps + self.skip
        if self.rows <= ahead:
            rows = max(self.rows, 0)
            raise InputError(
                f"{rows} rows of patches of {image[1]} px are too few to look {ahead} ahead: learner.patch"
            )
        if len(shape) != 3:
            raise InputError("it encodes patches as small images, and these blocks give no maps; take a ResNet or vgg6")
        self.width = shape[0]
        side = max(1, self.size * given[1] // image[1])
        try:
            with evaluating(blocks), torch.no_grad():
                blocks(torch.zeros(1, given[0], side, side, dtype=next(blocks.parameters()).dtype))
        except RuntimeError as error:
            raise InputError(
                f"patches of {self.size} px are too small for block {number + 1}: {first_line(error)}"
            ) from None

    def predictions(self) -> nn.ModuleList:
        """A linear map without bias for each step that is looked ahead."""
        return nn.ModuleList(nn.Linear(self.width, self.width, bias=False) for _ in range(self.steps))

    def forward(self, signal: Signal, batch: Batch) -> tuple[Tensor, Signal]:
        maps = self.encoded(signal)
        z = gather(self.grid_of(maps))
        return self.loss(z, batch.key), Signal({0: maps.detach()}, {0: maps.detach()})

    def encoded(self, signal: Signal) -> Tensor:
        x = signal.online[0]
        with self.precision(x.device):
            return self.blocks(x if self.number else patches_of(x, self.size, self.stride))

    def grid_of(self, maps: Tensor) -> Float[Tensor, "n y x d"]:
        """z of each patch, in float32 or wider."""
        z = average(maps.to(torch.promote_types(maps.dtype, torch.float32)))
        return z.unflatten(0, (-1, self.rows, self.rows))

    def ahead(self, z: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Contexts, and what lies `skip` + k rows below them, k from 1 on."""
        by = k + self.skip
        return z[:, :-by], z[:, by:]

    def draws(self, key: tuple[int | str, ...], count: int, width: int, of: int, device: torch.device) -> Tensor:
        """Whole numbers below `of`, (count, width), by block, key and place in the global batch."""
        numbers = torch.from_numpy(uniform(("negatives", self.number, *key), 0, count, width))
        return (numbers * of).long().to(device)

    @torch.no_grad()
    def pass_on(self, signal: Signal, batch: Batch) -> Signal:
        maps = self.encoded(signal)
        return Signal({0: maps}, {0: maps})

    @torch.no_grad()
    def outputs(self, x: Any) -> tuple[dict[str, Tensor], Any]:
        """Features of whole images, and the mean z of their patches. `x`: images, or maps of these and of patches."""
        whole, parts = (x, patches_of(x, self.size, self.stride)) if isinstance(x, Tensor) else x
        with evaluating(self), self.precision(whole.device):
            whole, parts = self.blocks(whole), self.blocks(parts)
        rows = {"encoder": average(whole), "patches": self.grid_of(parts).mean((1, 2))}
        return {name: row.float() for name, row in rows.items()}, (whole, parts)
