"""Objectives: the mathematics of each method on the global batch of embeddings, one file a formula.

Each is a module called with the online embedding `z` and the target embedding `t`, usable in anyone's loop.
It normalises or standardises its own input, and its forward changes no state: a buffer moves only in `after_step`.
Parameters of its own, if it has any, are trained with the network. A file with an objective is a kind: its name, and
the annotated arguments of its class are its fields.
"""

import sys
from typing import Any

from twinblock.methods.objectives.objective import Objective
from twinblock.methods.parts import discover

KINDS: dict[str, type[Objective]] = discover(sys.modules[__name__], Objective)
__all__ = sorted(cls.__name__ for cls in KINDS.values())  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    for cls in KINDS.values():
        if cls.__name__ == name:
            return cls
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
