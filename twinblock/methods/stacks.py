"""Views that go through a network together."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Stack(NamedTuple):
    """Views of one size, one after the other in `x`, that go through the blocks as one batch.

    `keys`: of each view's random draws; `offset`: position of the first sample of each view in the global batch;
    `labels`: of the samples of a view, where there are any.
    """

    x: Tensor
    keys: Sequence[tuple[int, ...]]
    offset: int = 0
    labels: Tensor | None = None

    def views(self) -> list["Stack"]:
        """Each view alone."""
        parts = parted(self.x, len(self.keys))
        return [self._replace(x=x, keys=(key,)) for x, key in zip(parts, self.keys, strict=True)]

    def parts(self, rows: int) -> Iterator["Stack"]:
        """At most so many rows of a view at a time."""
        for x, keys, offset, _ in self.views():
            for start in range(0, len(x), rows):
                yield Stack(x[start : start + rows], keys, offset + start)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """One batch of several; of one, itself."""
    return torch.cat([*parts]) if len(parts) > 1 else parts[0]


def parted(x: Tensor, count: int) -> Sequence[Tensor]:
    """The batch in so many equal parts; one is the batch itself, which may be changed in place."""
    return x.chunk(count) if count > 1 else [x]
