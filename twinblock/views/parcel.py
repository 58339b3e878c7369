"""Numbers from the host to a device, all at once.

Each copy to a GPU takes the host as long as starting an operation does, whatever its size. What operations of views
need is therefore packed: they are planned first, on the host, and then carried out.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Shaped
from numpy import ndarray as Array
from torch import Tensor

ALIGNED = 64  # numbers from which a part begins, so that none lies across the lines of a memory


class Parcel:
    """Arrays of numbers for one device: floats become float32, all others int64, and each of the two is one copy.

    `add` gives a function that gives the tensor on the device, once all are sent.
    """

    def __init__(self) -> None:
        self.parts: dict[type, list[Array]] = {np.float32: [], np.int64: []}
        self.sizes: dict[type, int] = {np.float32: 0, np.int64: 0}
        self.sent: dict[type, Tensor] = {}

    def add(self, values: Shaped[Array, "..."]) -> Callable[[], Tensor]:
        kind = np.float32 if values.dtype.kind == "f" else np.int64
        start, shape, size = self.sizes[kind], values.shape, values.size
        self.parts[kind].append(values)
        self.sizes[kind] += -(-size // ALIGNED) * ALIGNED
        return lambda: self.sent[kind][start : start + size].view(shape)

    def send(self, device: torch.device) -> None:
        """One copy of each kind. It is not waited for: a GPU reads the host's memory itself where that is pinned."""
        for kind, parts in self.parts.items():
            packed, start = np.empty(self.sizes[kind], kind), 0
            for values in parts:
                packed[start : start + values.size] = values.ravel()
                start += -(-values.size // ALIGNED) * ALIGNED
            numbers = torch.from_numpy(packed)
            numbers = numbers.pin_memory() if device.type == "cuda" else numbers
            self.sent[kind] = numbers.to(device, non_blocking=True)
