"""Parts of a network on processes of their own, one after the other: groups of processes, and tensors between them."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

IN_FLIGHT = 2  # steps that a stage may be ahead of the next one


class Stages:
    """`parts` consecutive parts spread over all processes: `own` are those of this one.

    There are as many stages as divide the number of processes and have a part each. The processes of a stage share a
    batch (`row`); those with the same share of it, one of each stage, hand tensors on (`column`). All must make it.
    """

    def __init__(self, parts: int):
        world, rank = dist.get_world_size(), dist.get_rank()
        self.count = max(n for n in range(1, parts + 1) if world % n == 0)
        size = world // self.count
        self.stage, self.share = divmod(rank, size)
        rows = [dist.new_group([*range(s * size, (s + 1) * size)]) for s in range(self.count)]
        columns = [dist.new_group([*range(i, world, size)]) for i in range(size)]
        self.row: Any = rows[self.stage]
        self.column: Any = columns[self.share]
        self.before, self.after = rank - size, rank + size
        ends = [parts * s // self.count for s in range(self.count + 1)]
        self.own = range(ends[self.stage], ends[self.stage + 1])
        self._first_of = {i: s * size + self.share for s in range(self.count) for i in range(ends[s], ends[s + 1])}
        self._sent: list[list[Any]] = []  # works; they keep what they send
        self._shapes: Any = None
        self._ahead: Any = None

    def send(self, tensors: Sequence[Tensor], about: Any, first: bool) -> None:
        """Hand tensors to the next stage and do not wait for it. With the `first` ones goes what they are `about`."""
        if first:
            shapes = [(x.shape, x.dtype) for x in tensors]
            dist.send_object_list([(about, shapes)], self.after)
        while len(self._sent) >= IN_FLIGHT:
            _wait(work for work, _ in self._sent.pop(0))
        flat = [_bytes(x.contiguous()) for x in tensors]
        self._sent.append([(dist.isend(x, self.after), x) for x in flat])

    def receive(self, device: torch.device, first: bool, last: bool) -> tuple[Any, list[Tensor]]:
        """What the stage before sent. All but the `first` have its shapes; unless it is the `last`, one more comes."""
        if first:
            given: list[Any] = [None]
            dist.recv_object_list(given, self.before)
            self._shapes, self._ahead = given[0], None
        about, shapes = self._shapes
        tensors, works = self._ahead or self._expect(shapes, device)
        _wait(works)
        self._ahead = None if last else self._expect(shapes, device)
        return about, tensors

    def _expect(self, shapes: Iterable[tuple[torch.Size, torch.dtype]], device: torch.device) -> Any:
        tensors = [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in shapes]
        return tensors, [dist.irecv(_bytes(x), self.before) for x in tensors]

    def end(self) -> None:
        """Wait until all that was sent has come."""
        while self._sent:
            _wait(work for work, _ in self._sent.pop(0))

    def sum(self, x: Tensor) -> Tensor:
        """The sum over stages."""
        dist.all_reduce(x, group=self.column)
        return x

    @torch.no_grad()
    def tell(self, part: int, tensors: Iterable[Tensor]) -> None:
        """Give every stage the tensors of a part as the stage that trains it has them."""
        for x in tensors:
            dense = x.contiguous()  # other layouts are not sent
            dist.broadcast(dense, self._first_of[part], group=self.column)
            if dense is not x:
                x.copy_(dense)

    def tell_object(self, part: int, value: Any) -> Any:
        """The value that the stage of a part has."""
        given = [value]
        dist.broadcast_object_list(given, self._first_of[part], group=self.column)
        return given[0]


def _wait(works: Iterable[Any]) -> None:
    for work in works:
        work.wait()


def _bytes(x: Tensor) -> Tensor:
    """The memory of a contiguous tensor: backends do not know every number type."""
    return x.view(-1).view(torch.uint8)
