"""Protocols of fine-tuning: how long, at which learning rates, on which parts of the labels."""

from dataclasses import dataclass
from itertools import product
from typing import TypeAlias

from twinblock.core.errors import InputError, nearest

Trial: TypeAlias = tuple[float, int]  # a learning rate and a number of epochs


@dataclass(frozen=True)
class Protocol:
    """SGD with Nesterov momentum 0.9 on crops and flips, the learning rate falling by a cosine to 0.

    `rates` and `epochs` are tried with each other on held-out training images. `usual`: the rate where nothing can be
    held out; with it go the first of `epochs`. `crop`: range of the crop's area; None: as in the run's first view.
    """

    fractions: tuple[float, ...] = (0.01, 0.1, 1.0)
    """Parts of the labels."""
    rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1)
    usual: float = 0.03
    epochs: tuple[int, ...] = (30,)
    fewest: int = 100
    """Steps of a training at least."""
    batch: int = 64
    decay: float = 1e-4
    clip: float | None = 1.0
    """The largest norm of a gradient; None: any."""
    crop: tuple[float, float] | None = None

    @property
    def trials(self) -> list[Trial]:
        return list(product(self.rates, self.epochs))


PROTOCOLS = {
    "default": Protocol(),
    # Grill et al. 2020, arXiv 2006.07733, appendix C.1, "Semi-supervised learning on ImageNet"; the area of a crop is
    # that of SimCLR's Inception crop, which they follow. They do not say how the rate falls.
    "byol": Protocol(
        fractions=(0.01, 0.1),
        rates=(0.005, 0.01, 0.02, 0.05, 0.1),
        usual=0.02,
        epochs=(30, 50),
        fewest=1,
        batch=1024,
        decay=0.0,
        clip=None,
        crop=(0.08, 1.0),
    ),
}


def protocol_of(name: str) -> Protocol:
    """Raises InputError for a name that is none."""
    if name not in PROTOCOLS:
        near = nearest(name, PROTOCOLS)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"protocol={name}: {hint}there are {' and '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
