"""Collectives and the norm of a global batch, in a world of threads: each thread is one process."""

import threading
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
from processes import together

from twinblock.core import distributed
from twinblock.core.distributed import SyncBatchNorm, gather, largest, rank, share_buffers, sum_over_ranks, world_size


class World:
    """What `torch.distributed` does for `size` processes, done for threads of this one."""

    ReduceOp = SimpleNamespace(SUM="sum", MAX="max")
    DistError = torch.distributed.DistError

    def __init__(self, size: int):
        self.size, self.place, self.barrier = size, threading.local(), threading.Barrier(size, timeout=20)
        self.slots: list[torch.Tensor] = [torch.empty(0)] * size

    def is_available(self) -> bool:
        return True

    is_initialized = is_available

    def get_rank(self, group=None) -> int:
        return getattr(self.place, "rank", 0)

    def get_world_size(self, group=None) -> int:
        return self.size

    def shared(self, x: torch.Tensor) -> list[torch.Tensor]:
        self.slots[self.get_rank()] = x.detach().clone()
        self.barrier.wait()
        found = list(self.slots)
        self.barrier.wait()
        return found

    def all_gather(self, out: list[torch.Tensor], x: torch.Tensor, group=None) -> None:
        for place, part in zip(out, self.shared(x), strict=True):
            place.copy_(part)

    def all_reduce(self, x: torch.Tensor, op: str = "sum", group=None) -> None:
        parts = torch.stack(self.shared(x))
        x.copy_(parts.amax(0) if op == "max" else parts.sum(0))

    def broadcast(self, x: torch.Tensor, group=None, group_src: int = 0) -> None:
        x.copy_(self.shared(x)[group_src])

    def run(self, work):
        """What `work(rank)` gives in each process, in order."""
        results: dict[int, object] = {}
        errors: list[BaseException] = []

        def process(number: int) -> None:
            self.place.rank = number
            try:
                results[number] = work(number)
            except BaseException as error:
                errors.append(error)
                self.barrier.abort()

        threads = [threading.Thread(target=process, args=(number,)) for number in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return [results[number] for number in range(self.size)]


@pytest.fixture(params=[2, 3])
def world(request, monkeypatch) -> World:
    found = World(request.param)
    monkeypatch.setattr(distributed, "dist", found)
    return found


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_one_process_is_a_world_of_its_own():
    x, module = draw(3, 2), SyncBatchNorm(2)
    assert (rank(), world_size(), gather(x) is x, sum_over_ranks(x) is x, largest(2.5)) == (0, 1, True, True, 2.5)
    share_buffers(module)


def test_before_the_group_is_there_the_world_is_one(monkeypatch):
    monkeypatch.setattr(distributed, "dist", SimpleNamespace(is_available=lambda: True, is_initialized=lambda: False))
    assert (rank(), world_size()) == (0, 1)
    monkeypatch.setattr(distributed, "dist", SimpleNamespace(is_available=lambda: False))
    assert (rank(), world_size()) == (0, 1)


def test_every_process_knows_its_place(world):
    assert world.run(lambda number: (rank(), world_size())) == [(i, world.size) for i in range(world.size)]


def test_a_gathered_batch_is_in_order_and_its_mean_gradient_is_that_of_the_whole(world):
    """A loss that compares all rows: the mean over processes of their gradients is the global one."""
    shards, weights = draw(world.size, 3, 2), draw(3 * world.size, 2, seed=1)

    def loss(batch):
        return ((batch @ batch.T).square() * (weights @ weights.T)).sum()

    whole = shards.flatten(0, 1).clone().requires_grad_()
    loss(whole).backward()

    def work(number):
        x = shards[number].clone().requires_grad_()
        batch = gather(x)
        loss(batch).backward()
        return batch.detach(), x.grad

    for number, (batch, gradient) in enumerate(world.run(work)):
        assert torch.equal(batch, whole.detach())
        # data-parallel training divides by the number of processes, and a parameter has the sum over shards
        torch.testing.assert_close(gradient / world.size, whole.grad.view_as(shards)[number])


def test_without_a_gradient_a_batch_is_gathered_just_so(world):
    labels = torch.arange(2 * world.size).view(world.size, 2)
    for batch in world.run(lambda number: gather(labels[number])):
        assert torch.equal(batch, labels.flatten())
    # what lies in another order in memory is gathered too
    for batch in world.run(lambda number: gather(labels.T[number % 2][None].T)):
        assert len(batch) == world.size**2


def test_sums_go_both_ways(world):
    parts = draw(world.size, 4)

    def work(number):
        x = parts[number].clone().requires_grad_()
        total = sum_over_ranks(x)
        (total.square().sum() * (number + 1)).backward()
        return total.detach(), x.grad

    factor = sum(range(1, world.size + 1))
    for total, gradient in world.run(work):
        torch.testing.assert_close(total, parts.sum(0))
        torch.testing.assert_close(gradient, 2 * factor * parts.sum(0))


def test_the_input_of_a_sum_is_left_alone(world):
    parts = draw(world.size, 4)
    world.run(lambda number: sum_over_ranks(parts[number]))
    assert torch.equal(parts, draw(world.size, 4))


def test_the_largest_of_all(world):
    assert world.run(lambda number: largest(float(number) - 7)) == [world.size - 8.0] * world.size


def test_buffers_are_those_of_the_first(world):
    modules = [torch.nn.BatchNorm1d(2) for _ in range(world.size)]
    for number, module in enumerate(modules):
        module.running_mean.fill_(number + 5)
        module.num_batches_tracked.fill_(number + 3)
    world.run(lambda number: share_buffers(modules[number]))
    assert [(m.running_mean.tolist(), m.num_batches_tracked.item()) for m in modules] == [([5, 5], 3)] * world.size


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("Connection closed by peer [127.0.0.1]"), True),
        (RuntimeError("[../gloo/transport/tcp/pair.cc:534] something"), True),
        (RuntimeError("NCCL error: unhandled"), True),
        (torch.distributed.DistError("anything"), True),
        (RuntimeError("CUDA out of memory"), False),
    ],
)
def test_a_lost_peer_is_known_by_its_error(error, lost):
    assert distributed.lost_peer(error) == lost


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (2, 3, 4, 5)])
def test_the_norm_of_a_global_batch_is_torchs_of_the_whole(world, shape, affine):
    """Value, gradients, running statistics and their count; then the same in evaluation."""
    whole_norm = (torch.nn.BatchNorm1d if len(shape) < 4 else torch.nn.BatchNorm2d)(3, affine=affine).double()
    if affine:
        torch.nn.init.normal_(whole_norm.weight, generator=torch.Generator().manual_seed(5))
        torch.nn.init.normal_(whole_norm.bias, generator=torch.Generator().manual_seed(6))
    norms = [SyncBatchNorm(3, affine=affine).double() for _ in range(world.size)]
    for norm in norms:
        norm.load_state_dict(whole_norm.state_dict())
    shards, upstream = 3 + 2 * draw(world.size, *shape), draw(world.size, *shape, seed=1)
    x = shards.flatten(0, 1).clone().requires_grad_()
    y = whole_norm(x)
    y.backward(upstream.flatten(0, 1))

    def work(number):
        own = shards[number].clone().requires_grad_()
        out = norms[number](own)
        out.backward(upstream[number])
        return out.detach(), own.grad

    for number, (out, gradient) in enumerate(world.run(work)):
        torch.testing.assert_close(out, y.detach().view_as(shards)[number])
        torch.testing.assert_close(gradient, x.grad.view_as(shards)[number])
    for name, buffer in whole_norm.named_buffers():
        for norm in norms:
            torch.testing.assert_close(norm.get_buffer(name), buffer)
    for name, parameter in whole_norm.named_parameters():
        torch.testing.assert_close(sum(norm.get_parameter(name).grad for norm in norms), parameter.grad)
    alone = norms[1].eval()
    assert all(torch.equal(out, alone(shards[0])) for out in world.run(lambda number: alone(shards[0])))
    torch.testing.assert_close(alone(shards[0]), whole_norm.eval()(shards[0]))


class Kernels:
    """What torch's kernels for batch norms on a GPU give, which has no CPU implementation: by their formulas."""

    @staticmethod
    def stats(x, eps):
        dims = [0, *range(2, x.dim())]
        return x.mean(dims), (x.var(dims, unbiased=False) + eps).rsqrt()

    @staticmethod
    def gathered(x, means, rstds, running_mean, running_var, momentum, eps, counts):
        assert running_mean is running_var is None
        weights = (counts / counts.sum())[:, None]
        mean = (weights * means).sum(0)
        variance = (weights * (rstds.pow(-2) - eps + (means - mean).square())).sum(0)
        return mean, (variance + eps).rsqrt()

    @staticmethod
    def shape(x):
        return 1, -1, *[1] * (x.dim() - 2)

    @classmethod
    def normalised(cls, x, weight, bias, mean, rstd, eps):
        out = (x - mean.view(cls.shape(x))) * rstd.view(cls.shape(x))
        return out if weight is None else out * weight.view(cls.shape(x)) + bias.view(cls.shape(x))

    @classmethod
    def reduced(cls, g, x, mean, rstd, weight, of_x, of_weight, of_bias):
        dims = [0, *range(2, x.dim())]
        of_difference = (g * (x - mean.view(cls.shape(x)))).sum(dims)
        assert of_x and of_weight == of_bias == (weight is not None)
        return g.sum(dims), of_difference, of_difference * rstd if of_weight else None, g.sum(dims) if of_bias else None

    @classmethod
    def of_input(cls, g, x, mean, rstd, weight, sum_g, sum_difference, counts):
        assert counts.dtype == torch.int32
        wide, total = lambda value: value.view(cls.shape(x)), counts.sum()
        slope = wide(rstd) * (1 if weight is None else wide(weight))
        return (g - wide(sum_g) / total - (x - wide(mean)) * wide(rstd).square() * wide(sum_difference) / total) * slope


@pytest.fixture
def kernels(monkeypatch):
    """torch's kernels, by their formulas, for norms that take them on the CPU."""
    names = {
        "stats": "stats", "gathered": "gather_stats_with_counts", "normalised": "elemt", "reduced": "backward_reduce",
        "of_input": "backward_elemt",
    }  # fmt: skip
    for own, name in names.items():
        monkeypatch.setattr(torch, f"batch_norm_{name}", getattr(Kernels, own))
    monkeypatch.setattr(distributed, "NormaliseBatch", distributed.FusedNormaliseBatch)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (2, 3, 4, 5)])
def test_the_norm_on_a_gpu_is_that_of_the_whole(world, shape, affine):
    test_the_norm_of_a_global_batch_is_torchs_of_the_whole(world, shape, affine)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here, and torch has these kernels for GPUs alone")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_on_a_gpu_is_that_on_a_cpu(dtype, layout):
    x, upstream = draw(8, 6, 5, 7).to(dtype).contiguous(memory_format=layout), draw(8, 6, 5, 7, seed=1).to(dtype)
    found = []
    for device, normalise in (("cpu", distributed.NormaliseBatch), ("cuda", distributed.FusedNormaliseBatch)):
        own = x.to(device).requires_grad_()
        weight, bias = (draw(6, seed=seed).float().to(device).requires_grad_() for seed in (2, 3))
        out, mean, variance = normalise.apply(own, weight, bias, 1e-5)
        out.backward(upstream.to(device))
        found.append([t.float().cpu() for t in (out.detach(), mean, variance, own.grad, weight.grad, bias.grad)])
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    for on_cpu, on_gpu in zip(*found, strict=True):
        torch.testing.assert_close(on_cpu, on_gpu, rtol=tolerance, atol=tolerance)


def test_running_statistics_take_their_momentum_or_none(world):
    parts = draw(world.size, 4, 2)
    for momentum, share in ((0.4, 0.4), (None, 0.1)):
        norms = [SyncBatchNorm(2, momentum=momentum).double() for _ in range(world.size)]
        world.run(lambda number: norms[number](parts[number]))  # noqa: B023
        torch.testing.assert_close(norms[0].running_mean, share * parts.flatten(0, 1).mean(0))
    untracked = SyncBatchNorm(2, track_running_stats=False).double()
    world.run(lambda number: untracked(parts[number]))
    assert untracked.running_mean is None


def test_a_norm_in_half_precision_has_statistics_in_float32(world):
    parts = draw(world.size, 64, 2).bfloat16() + 100
    norms = [SyncBatchNorm(2) for _ in range(world.size)]
    (out, *_) = world.run(lambda number: norms[number](parts[number]))
    assert out.dtype == torch.bfloat16
    expected = 0.1 * parts.flatten(0, 1).float().mean(0)
    torch.testing.assert_close(norms[0].running_mean, expected, rtol=1e-6, atol=0)


def test_a_vector_without_channels_is_no_batch(world):
    with pytest.raises(AssertionError, match="needs"):
        SyncBatchNorm(2)._check_input_dim(torch.zeros(2))
    SyncBatchNorm(2)._check_input_dim(torch.zeros(1, 2))


def wait_for_all(rank: int, port: int) -> None:
    place = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", place, timedelta(seconds=2), 2, rank)
    time.sleep(4 * rank)
    distributed.await_all("here")  # a collective of this group would have given up
    x = torch.ones(1)
    torch.distributed.all_reduce(x)
    assert x.item() == 2


def test_processes_wait_for_one_another_for_longer_than_a_collective(free_port):
    together(wait_for_all, (free_port,), 2)


def test_one_process_waits_for_nobody():
    distributed.await_all("here")
