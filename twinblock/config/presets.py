"""Settings that a publication gives by length of training: a recipe's `presets`, and what lies between them."""

import logging
import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from twinblock.core.durations import Duration
from twinblock.core.errors import InputError

log = logging.getLogger(__name__)


def preset(presets: Any, length: Any, recipe: str) -> dict[str, float]:
    """The fields of a run of `length`, by name: published ones, or interpolated, which is logged as a warning.

    `presets` maps numbers of epochs to `{a.b: number}`. Between two of them values are linear in the logarithm of the
    epochs; outside they are those of the nearest. A length that is not in epochs leaves the recipe as it is.
    """
    table = _checked(presets, recipe)
    duration = Duration.parse(length)
    if duration.unit != "epochs":
        log.warning(f"{recipe}: settings are published by epochs; {length} takes those written for the recipe's length")
        return {}
    epochs = float(duration.amount)
    if epochs in table:
        return table[epochs]
    if not min(table) < epochs < max(table):
        near = min(table) if epochs <= min(table) else max(table)
        log.warning(f"{recipe}: no settings are published for {length}; these are those of {near:g} epochs")
        return table[near]
    low, high = next((a, b) for a, b in pairwise(sorted(table)) if a < epochs < b)
    part = math.log(epochs / low) / math.log(high / low)
    settings = {name: float(f"{a + part * (table[high][name] - a):.4g}") for name, a in table[low].items()}
    values = ", ".join(f"{name}={value:g}" for name, value in settings.items())
    log.warning(
        f"{recipe}: no settings are published for {length}; interpolated between {low:g} and {high:g} epochs: {values}"
    )
    return settings


def _checked(presets: Any, recipe: str) -> dict[float, dict[str, float]]:
    number = int | float
    if not (
        isinstance(presets, Mapping)
        and presets
        and all(
            isinstance(epochs, number) and epochs > 0 and isinstance(row, Mapping) for epochs, row in presets.items()
        )
        and all(isinstance(v, number) for row in presets.values() for v in row.values())
        and len({frozenset(row) for row in presets.values()}) == 1
    ):
        raise InputError(f"{recipe}: presets map numbers of epochs to the same fields each, as 100: {{optim.lr: 0.45}}")
    return {float(epochs): {str(name): float(v) for name, v in row.items()} for epochs, row in presets.items()}
