"""Images as rows of patches, places as vectors, and where in a ViT tokens begin to be a set."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from twinblock.nn.modes import evaluating

FEW = 3  # patches that are tried alone
NEAR = 1e-4  # as sums in another order differ


def patchify(images: Float[Tensor, "n c h w"], side: int) -> Float[Tensor, "n p d"]:
    """The patches of images row by row, each as its pixels (side, side, c) in a row."""
    n, c, h, w = images.shape
    parts = images.reshape(n, c, h // side, side, w // side, side)
    return parts.permute(0, 2, 4, 3, 5, 1).reshape(n, (h // side) * (w // side), side * side * c)


def unpatchify(patches: Float[Tensor, "n p d"], side: int) -> Float[Tensor, "n c h w"]:
    """The square images whose patches these are."""
    n, count, d = patches.shape
    grid, c = round(count**0.5), d // side**2
    parts = patches.reshape(n, grid, grid, side, side, c)
    return parts.permute(0, 5, 1, 3, 2, 4).reshape(n, c, grid * side, grid * side)


def sine_places(width: int, grid: int) -> Float[Tensor, "p d"]:
    """A vector for each place of a square grid, row by row: half of it by the column, half by the row.

    Each half is sin(x w_i), then cos(x w_i), with w_i = 10000^(-i / k) for i from 0 to k - 1, k = width / 4. Vaswani
    et al. 2017, arXiv 1706.03762, section 3.5, in two dimensions. `width` is a multiple of 4.
    """
    k = width // 4
    angles = np.outer(np.arange(grid), 10_000.0 ** (-np.arange(k) / k))
    waves = np.concatenate([np.sin(angles), np.cos(angles)], 1)
    by_column, by_row = np.tile(waves, (grid, 1)), np.repeat(waves, grid, 0)
    return torch.from_numpy(np.concatenate([by_column, by_row], 1)).float()


def steps_of(blocks: nn.Module) -> list[nn.Module]:
    """The modules that blocks of an encoder run one after the other."""
    if type(blocks) is not nn.Sequential:
        return [blocks]
    return [step for block in blocks for step in steps_of(block)]


@torch.no_grad()
def first_step_of_tokens(steps: Sequence[nn.Module], shape: Sequence[int], prefix: int, grid: int) -> int:
    """The first step from which on tokens are a set: any may be left out, in any order. All steps where there is none.

    Found by trial. What comes before it makes a token of each patch, after the first `prefix`, of that patch alone;
    where it does not, there is none. `shape`: of what the first step is given, images (c, h, w) or tokens (t, d).
    """
    from twinblock.nn.cuts import probe_images  # so late, as it imports timm, which takes a second

    dtype = next(p.dtype for step in steps for p in step.parameters())
    x = torch.sin(40 * probe_images(tuple(shape)).to(dtype))
    kept = [*range(prefix), *range(prefix, prefix + grid**2 - 1, max(1, grid**2 // FEW))]  # fewer than all
    turned = [*range(prefix), *reversed(range(prefix, len(kept)))]
    with evaluating(nn.ModuleList(steps)):
        values = [x]
        for step in steps:
            values.append(step(values[-1]))
        first = len(steps)
        while first and _is_of_sets(steps[first - 1], values[first - 1], kept, turned, prefix + grid**2):
            first -= 1
        if first in (0, len(steps)):
            return first
        side = shape[-1] // grid
        place = grid**2 // 2
        row, column = (i * side for i in divmod(place, grid))
        x[:, :, row : row + side, column : column + side] += 1
        for step in steps[:first]:
            x = step(x)
        changed = (x != values[first]).any(2).any(0)  # however little: layers may begin with a scale of next to nothing
    return first if changed.nonzero().flatten().tolist() == [prefix + place] else len(steps)


def _is_of_sets(step: nn.Module, x: Tensor, kept: Sequence[int], turned: Sequence[int], count: int) -> bool:
    if x.ndim != 3 or x.shape[1] != count:
        return False
    some = x[:, kept]
    try:
        return torch.allclose(step(some[:, turned]), step(some)[:, turned], rtol=NEAR, atol=NEAR)
    except Exception:  # whatever it raises for fewer tokens than it was made for
        return False
