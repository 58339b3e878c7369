"""Everything that knows about ranks: this file and `stages` alone import torch.distributed.

Objectives are single-process mathematics on the global batch. `gather` makes that exact: each process holds its own
shard live and the others' detached, and its own gradient is multiplied by the number of processes, so that the mean
over processes which data-parallel training takes is the gradient of the global batch. A plain all_gather or all_reduce
trains at 1/W of the truth without a sign of it.
"""

import math
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from twinblock.core.errors import InputError, one_line

LOOK_UP = 10.0  # seconds for the address of a machine
SAY_AFTER = 5.0  # seconds of waiting before a person is told


_group: Any = None  # the processes that share a batch; None: all


def share_batch_within(group: Any) -> None:
    """From here on the processes of this group share a batch, for ranks and collectives of this file; None: all."""
    global _group
    _group = group


def rank() -> int:
    """The place of this process among those that share a batch."""
    return dist.get_rank(_group) if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """How many processes share a batch."""
    return dist.get_world_size(_group) if dist.is_available() and dist.is_initialized() else 1


def gather(x: Shaped[Tensor, "n *rest"]) -> Shaped[Tensor, "wn *rest"]:
    """The global batch in rank order; gradients reach the own shard, multiplied by the number of processes."""
    if world_size() == 1:
        return x
    shards = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(shards, x.detach().contiguous(), group=_group)
    shards[rank()] = _scale_gradient(x, world_size())
    return torch.cat(shards)


def largest(value: float, device: torch.device | str = "cpu") -> float:
    """The largest value of any process of the run; every process must ask."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return value
    shared = torch.tensor(float(value), device=device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return shared.item()


def share_buffers(module: torch.nn.Module) -> None:
    """Give every process the first one's buffers: batch statistics that are not synchronised differ between them."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, group=_group, group_src=0)


def meet(address: str, port: int, rank: int, world: int, seconds: float) -> object:
    """Wait until all processes of a run are at the first one's port, where their group will form; hold it till then.

    Raises InputError where they cannot meet, or do not within `seconds`; a process group would wait for half an hour.
    None where they are a group already.
    """
    if dist.is_initialized():
        return None
    place, until = f"MASTER_ADDR={address}, MASTER_PORT={port}", time.monotonic() + seconds
    _look_up(address, place)
    if rank == 0:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError as error:
                raise InputError(
                    f"{place}: the port cannot be used ({error.strerror}); set another MASTER_PORT"
                ) from None
    else:
        _await_first(address, port, place, until)
    try:
        left = max(1.0, until - time.monotonic())
        store = _within(left + 1, partial(_store, address, port, rank, world, timedelta(seconds=left)))
        if store.add(f"twinblock/{rank}", 1) > 1:
            raise InputError(f"two processes have RANK={rank}: start them with torchrun, or with srun")
        keys = [f"twinblock/{i}" for i in range(world)]
        _wait(lambda: store.check(keys), f"the {world} processes of the run at {place}", until)
        missing = [str(i) for i, key in enumerate(keys) if not store.check([key])]
    except (RuntimeError, TimeoutError) as error:  # of torch's stores; what listens there may be none
        raise InputError(f"{place}: the processes of the run cannot meet there ({one_line(error)})") from None
    if missing:
        raise InputError(
            f"{place}: of {world} processes, rank {', '.join(missing[:8])} did not come within {seconds:.0f} seconds: "
            "start all of them with torchrun or srun; for one process unset WORLD_SIZE (or SLURM_STEP_NUM_TASKS)"
        )
    return store


def _store(address: str, port: int, rank: int, world: int, patience: timedelta) -> Any:
    return dist.TCPStore(address, port, world, rank == 0, patience, wait_for_workers=False, multi_tenant=True)  # pyright: ignore


def _look_up(address: str, place: str) -> None:
    try:
        _within(LOOK_UP, lambda: socket.getaddrinfo(address, None))
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or one_line(error)
        raise InputError(f"{place}: no machine of that name is found ({why}); give the one where RANK=0 runs") from None


def _within(seconds: float, work: Callable[[], Any]) -> Any:
    """The result of work that may not come back, such as a look-up at a silent server. Raises TimeoutError then."""
    done = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except Exception as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()  # a thread of a pool would be waited for when the process ends
    try:
        return done.result(seconds)
    except TimeoutError:
        raise TimeoutError(f"no answer within {seconds:.0f} seconds") from None


def _await_first(address: str, port: int, place: str, until: float) -> None:
    last = "no answer"

    def answers() -> bool:
        nonlocal last
        try:
            socket.create_connection((address, port), timeout=2).close()
        except OSError as error:
            last = error.strerror or one_line(error)
            return False
        return True

    if not _wait(answers, f"the first process at {place}", until):
        raise InputError(
            f"{place}: the first process (RANK=0) is not there ({last}): start all of them with torchrun or srun; for "
            "one process unset WORLD_SIZE (or SLURM_STEP_NUM_TASKS)"
        )


def await_all(name: str) -> None:
    """Wait until each process of the run is here, as long as it takes: a collective gives up after some minutes.

    `name`: of the place in the program, once in a run.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    store, keys = dist.distributed_c10d._get_default_store(), [f"{name}/{i}" for i in range(dist.get_world_size())]
    store.set(keys[dist.get_rank()], "")
    _wait(lambda: store.check(keys), "the other processes of the run", math.inf)


def _wait(come: Callable[[], bool], what: str, until: float) -> bool:
    """Ask again and again, and say on the error stream what is waited for; False where it does not come in time."""
    say_at = time.monotonic() + SAY_AFTER
    while not come():
        now = time.monotonic()
        if now > until:
            return False
        if now > say_at:
            limit = f": {until - now:.0f} seconds more" if until < math.inf else ""
            print(f"waiting for {what}{limit}", file=sys.stderr, flush=True)
            say_at = until
        time.sleep(0.1)
    return True


def lost_peer(error: Exception) -> bool:
    """Whether a collective failed because another process of the group is gone."""
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in ("by peer", "gloo", "nccl"))


def _scale_gradient(x: Tensor, factor: int) -> Tensor:
    return x.detach() + factor * (x - x.detach()) if x.requires_grad else x


class _SumOverRanks(torch.autograd.Function):
    """A sum over processes whose gradient is summed over processes too."""

    @staticmethod
    def forward(ctx, x):
        total = x.contiguous().clone()
        dist.all_reduce(total, group=_group)
        return total

    @staticmethod
    def backward(ctx, gradient):
        total = gradient.contiguous().clone()
        dist.all_reduce(total, group=_group)
        return total


def sum_over_ranks(x: Tensor) -> Tensor:
    """Differentiable sum over processes."""
    return x if world_size() == 1 else _SumOverRanks.apply(x)


class NormaliseBatch(torch.autograd.Function):
    """`(x - mean) / sqrt(variance + eps) * weight + bias`, mean and variance of the global batch, for (n, c, ...).

    Gives the result, the mean and the variance; at least in float32. For backward it keeps `x` and nothing else of its
    size: with h = (x - mean) / std and g the gradient times the weight, that of x is (g - mean(g) - h mean(g h)) / std.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        dims, shape = [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        count = x.numel() // x.shape[1] * world_size()
        mean = _total(wide.sum(dims)) / count
        centred = wide - mean.view(shape)
        variance = _total(centred.square().sum(dims)) / count
        rstd = torch.rsqrt(variance + eps)
        scale = rstd if weight is None else rstd * weight
        out = centred.mul_(scale.view(shape))
        if bias is not None:
            out = out.add_(bias.view(shape))
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.count, ctx.dims, ctx.shape = count, dims, shape
        ctx.mark_non_differentiable(mean, variance)
        return out.to(x.dtype), mean, variance

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient, *_):
        x, weight, mean, rstd = ctx.saved_tensors
        dims, shape = ctx.dims, ctx.shape
        g = gradient.to(mean.dtype)
        h = (x.to(mean.dtype) - mean.view(shape)).mul_(rstd.view(shape))
        sums = torch.stack([g.sum(dims), (g * h).sum(dims)])
        of_bias, of_weight = sums.clone()
        mean_g, mean_gh = _total(sums) / ctx.count
        scale = rstd if weight is None else rstd * weight
        of_x = (g - mean_g.view(shape)).sub_(h.mul_(mean_gh.view(shape))).mul_(scale.view(shape))
        return of_x.to(x.dtype), *((None, None) if weight is None else (of_weight, of_bias)), None


class FusedNormaliseBatch(torch.autograd.Function):
    """The same by torch's kernels, of which each pass reads what it needs once: on a GPU, in float32 or half of it.

    torch's own SyncBatchNorm asks the GPU how many images each process has, and waits; here all have as many.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        x = _dense(x)
        mean, rstd = torch.batch_norm_stats(x, eps)
        counts = mean.new_full((world_size(),), x.numel() // x.shape[1])
        means, rstds = gather(torch.stack([mean, rstd])[None]).unbind(1)
        mean, rstd = torch.batch_norm_gather_stats_with_counts(x, means, rstds, None, None, 0.0, eps, counts)
        ctx.save_for_backward(x, weight, mean, rstd, counts.to(torch.int32))
        variance = rstd.pow(-2) - eps
        ctx.mark_non_differentiable(mean, variance)
        return torch.batch_norm_elemt(x, weight, bias, mean, rstd, eps), mean, variance

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient, *_):
        x, weight, mean, rstd, counts = ctx.saved_tensors
        g = _dense(gradient)
        learns = weight is not None
        *sums, of_weight, of_bias = torch.batch_norm_backward_reduce(g, x, mean, rstd, weight, True, learns, learns)
        sums = _total(torch.stack(sums))
        of_x = torch.batch_norm_backward_elemt(g, x, mean, rstd, weight, *sums, counts)
        return of_x, *((of_weight, of_bias) if learns else (None, None)), None


def _dense(x: Tensor) -> Tensor:
    """In one of the two layouts that the kernels take."""
    return x if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()


class SyncBatchNorm(_BatchNorm):
    """Batch normalisation over the global batch, exact in value and gradient, on CPU and GPU, for vectors and maps.

    torch's own SyncBatchNorm has no CPU implementation. On one process this is torch's batch normalisation.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        assert input.dim() >= 2, f"batch normalisation needs (n, c, ...), got {tuple(input.shape)}"

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(input)
        fused = input.is_cuda and input.dtype != torch.float64
        normalise = FusedNormaliseBatch if fused else NormaliseBatch
        out, mean, variance = normalise.apply(input, self.weight, self.bias, self.eps)  # pyright: ignore
        if self.track_running_stats:
            assert self.running_mean is not None and self.running_var is not None
            with torch.no_grad():
                momentum = 0.1 if self.momentum is None else self.momentum
                count = input.numel() // input.shape[1] * world_size()
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
                self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), momentum)
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked.add_(1)
        return out


def _total(x: Tensor) -> Tensor:
    """The sum over processes, in place."""
    if world_size() > 1:
        dist.all_reduce(x, group=_group)
    return x
