"""`torch.compile` for the blocks of networks."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from twinblock.methods.learner import Network


def compile_blocks(learners: Iterable[nn.Module]) -> None:
    """Compile each block of each network, also of target networks, for batches of one size."""
    networks = [m for learner in learners for m in learner.modules() if isinstance(m, Network)]
    blocks = [block for network in networks for block in network.blocks]
    for block in blocks:
        block.compile(dynamic=False)
    # to the compiler they are one function, which by default may have 8 versions; the others would run as they are.
    # A block has up to 4: with and without gradient, trained and passing on, with its weights and with masked ones.
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, 4 * len(blocks))
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, 4 * len(blocks))


def uncompiled(compiled: bool) -> AbstractContextManager:
    """Run compiled blocks uncompiled for a while: compiling them once more, for a few other batches, costs more."""
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()
