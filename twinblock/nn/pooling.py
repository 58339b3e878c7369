"""What a block shows to its head: pooling, an optional 1x1 expansion, and noise on the block's output."""

from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from twinblock.core.distributed import sum_over_ranks, world_size
from twinblock.core.seeding import generator
from twinblock.nn.norms import make_norm

Pool = Literal["gap", "local", "l2"]
Over = Literal["all", "hw", "c"]
CHUNK = 16  # samples whose noise is drawn at once
SLICE, PART = 64, 2**21  # channels of an expansion that there are at once, or as many as have so many values


def average(x: Tensor, prefix: int = 0) -> Float[Tensor, "n d"]:
    """Mean of a map (n, d, h, w) over its places, of tokens (n, t, d) after the first `prefix`; a vector as it is."""
    return Average(prefix)(x)


class Average(nn.Module):
    """`average` as a module, in words that torch.jit.script compiles."""

    def __init__(self, prefix: int = 0):
        super().__init__()
        self.prefix = prefix

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 2:
            return x
        return x.mean((2, 3)) if x.ndim == 4 else x[:, self.prefix :].mean(1)


class Pooling(nn.Module):
    """Map -> vector: [1x1 convolution to `expand` channels, norm, ReLU], then pooling over `grid` x `grid` windows.

    `gap` averages the whole map; `local` averages each window; `l2` takes the root of its sum of squares. Windows of
    a side that `grid` does not divide overlap by one place, as in torch's adaptive pooling. Tokens (n, t, d) are
    averaged after the first `prefix`; they know no windows and no expansion.
    Blockwise Self-Supervised Learning at Scale, section 3 (conv-based expansion with global spatial pooling).
    """

    def __init__(
        self,
        channels: int,
        pool: Pool = "gap",
        grid: int = 1,
        expand: int | None = None,
        norm: str = "batch",
        prefix: int = 0,
    ):
        super().__init__()
        assert grid == 1 or pool != "gap", "global pooling has one window"
        self.pool, self.grid, self.prefix = pool, grid, prefix
        self.width = (expand or channels) * grid**2
        self.expansion = None if expand is None else Expansion(channels, expand, norm)

    def forward(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n d"]:
        return self.pooled(x) if self.expansion is None else self.expansion.pooled(x, self.pooled)

    def pooled(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n d"]:
        if self.pool == "gap":
            return average(x, self.prefix)
        rows, columns = (_windows(side, self.grid) for side in x.shape[2:])
        windows = [x[:, :, row, column] for row in rows for column in columns]
        if self.pool == "local":
            return torch.stack([window.mean((2, 3)) for window in windows], 2).flatten(1)
        squares = torch.stack([window.square().sum((2, 3)) for window in windows], 2)
        # the gradient of a root at zero is infinite; an all-zero window has none
        return torch.where(squares > 0, squares, 1).sqrt().mul(squares > 0).flatten(1)


def _windows(side: int, grid: int) -> list[slice]:
    return [slice(i * side // grid, -(-(i + 1) * side // grid)) for i in range(grid)]


class Expansion(nn.Sequential):
    """1x1 convolution to `width` channels, norm, ReLU.

    `pooled(x, pool)` is `pool(self(x))` for a pooling of each channel by itself, and holds only `x` for backward:
    maps of so many channels would be more than all that the block holds. They are made some channels at a time, and
    again in backward. A norm over several channels needs them all, so `layer` and `group` are not divided.
    """

    def __init__(self, channels: int, width: int, norm: str):
        super().__init__(nn.Conv2d(channels, width, 1, bias=False), make_norm(norm, width, spatial=True), nn.ReLU())

    def pooled(
        self, x: Float[Tensor, "n c h w"], pool: Callable[[Tensor], Float[Tensor, "n d"]]
    ) -> Float[Tensor, "n d"]:
        weight, norm = self.get_parameter("0.weight"), self[1]
        parameters, buffers = dict(norm.named_parameters()), dict(norm.named_buffers())
        batches = buffers.pop("num_batches_tracked", None)
        uncounted = {} if batches is None else {"num_batches_tracked": torch.zeros_like(batches)}

        def part(x: Tensor, statistics: dict[str, Tensor], weight: Tensor, *of_norm: Tensor) -> Tensor:
            # the tensors are given: those of a pruned network lie in the modules in forward alone
            tensors = dict(zip(parameters, of_norm, strict=True)) | statistics | uncounted
            return pool(F.relu(functional_call(norm, tensors, F.conv2d(x, weight)), inplace=True))

        places = x.numel() // x.shape[1]
        size = len(weight) if isinstance(norm, nn.GroupNorm) else max(SLICE, PART // places)
        slices = zip(*(tensor.split(size) for tensor in (weight, *parameters.values())), strict=True)
        parts = []
        for k, given in enumerate(slices):
            statistics = {name: buffer[k * size : (k + 1) * size] for name, buffer in buffers.items()}
            parts.append(
                checkpoint(
                    part,
                    x,
                    statistics,
                    *given,
                    use_reentrant=False,
                    preserve_rng_state=False,
                    context_fn=lambda: (nullcontext(), _statistics_kept(norm)),
                )
            )
        if batches is not None and norm.training:
            batches += 1
        return torch.cat(parts, 1)


@contextmanager
def _statistics_kept(norm: Any):
    """Without a second step of the running statistics, where a forward is repeated."""
    momentum, norm.momentum = getattr(norm, "momentum", None), 0.0
    try:
        yield
    finally:
        norm.momentum = momentum


class Noise(nn.Module):
    """x + sigma std(x) N(0, 1), in training only; the std is over the whole tensor, each map (`hw`) or place (`c`).

    The draws are a function of `key` and the position of the sample in the global batch, so they do not depend on
    the number of processes, and are made again in backward rather than held. Blockwise Self-Supervised Learning at
    Scale, section on noise; best there: `all`, 0.25.
    """

    def __init__(self, sigma: float, over: Over = "all"):
        super().__init__()
        self.sigma, self.over = sigma, over

    def forward(self, x: Float[Tensor, "n *shape"], key: tuple[int, ...], offset: int = 0) -> Float[Tensor, "n *shape"]:
        if not self.training or self.sigma == 0:
            return x
        return checkpoint(self.added, x, key, offset, use_reentrant=False, preserve_rng_state=False)  # pyright: ignore

    def added(self, x: Tensor, key: tuple[int, ...], offset: int) -> Tensor:
        return x + (self.sigma * self.std(x)).to(x.dtype) * self.draws(x, key, offset)

    def draws(self, x: Tensor, key: tuple[int, ...], offset: int) -> Tensor:
        """Standard normal numbers of the shape of `x`. A generator serves `CHUNK` samples of the global batch."""
        channels_last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
        # of the places in order of memory: a CPU draws five times as fast into a tensor that is contiguous
        rows = torch.empty_like(x.permute(0, 2, 3, 1) if channels_last else x, memory_format=torch.contiguous_format)
        for number in range(offset // CHUNK, (offset + len(x) - 1) // CHUNK + 1):
            start = number * CHUNK - offset
            own = rows[max(start, 0) : start + CHUNK]
            whole = len(own) == CHUNK
            chunk = own if whole else rows.new_empty((CHUNK, *rows.shape[1:]))
            chunk.normal_(generator=generator(*key, number, device=x.device))
            if not whole:
                own.copy_(chunk[max(-start, 0) :][: len(own)])
        return rows.permute(0, 3, 1, 2) if channels_last else rows

    def std(self, x: Tensor) -> Tensor:
        places, channels = ((2, 3), 1) if x.ndim == 4 else (1, 2)
        if self.over == "hw":
            return x.std(places, keepdim=True)
        if self.over == "c":
            return x.std(channels, keepdim=True)
        wide, count = torch.promote_types(x.dtype, torch.float32), x.numel() * world_size()
        with torch.no_grad():
            mean = sum_over_ranks(x.sum(dtype=wide)) / count
        variance = sum_over_ranks(_Deviations.apply(x, mean)) / (count - 1)  # pyright: ignore
        return variance.clamp(min=torch.finfo(wide).tiny).sqrt()  # the gradient of a root at zero is infinite


class _Deviations(torch.autograd.Function):
    """`sum (x - mean)^2` about the mean of all processes, in the precision of `mean`.

    Mean of squares less square of mean would cancel, x.std() is slow in bfloat16, and without a backward of its own
    a wide copy of `x` would be held. The mean's own gradient is none, as deviations add up to zero.
    """

    @staticmethod
    def forward(ctx, x, mean):
        ctx.save_for_backward(x, mean)
        parts = [(part.to(mean.dtype) - mean).square_().sum() for part in x.split(CHUNK)]
        return torch.stack(parts).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        x, mean = ctx.saved_tensors
        of_x = torch.empty_like(x)
        for part, out in zip(x.split(CHUNK), of_x.split(CHUNK), strict=True):
            out.copy_((part.to(mean.dtype) - mean).mul_(2 * gradient))
        return of_x, None
