"""The ring of earlier embeddings that some objectives compare with."""

from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from twinblock.core.errors import InputError
from twinblock.methods.objectives.objective import pushed

QueueSize = Annotated[int, Field(ge=1, le=2**22)]


def unit_rows(count: int, dim: int, seed: int) -> Float[Tensor, "count dim"]:
    """What a ring holds at first: random rows of length 1. Raises InputError for a count below 1."""
    if count < 1:
        raise InputError(f"queue={count}: a queue holds at least one key")
    rows = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), device="cpu")
    return F.normalize(rows, dim=1)


def renewed(
    ring: Float[Tensor, "count dim"], pointer: Int[Tensor, ""], rows: Float[Tensor, "n dim"]
) -> Float[Tensor, "count dim"]:
    """The ring with its oldest rows replaced by these, at length 1. Moves the pointer, the place of the oldest."""
    ring = pushed(ring, pointer, F.normalize(rows.to(ring.dtype), dim=1))
    pointer.copy_((pointer + len(rows)) % len(ring))
    return ring
