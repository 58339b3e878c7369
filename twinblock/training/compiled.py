"""`torch.compile` for the blocks and heads of networks, and for losses."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from twinblock.methods.learner import Learner, Network


def compile_learners(learners: Iterable[nn.Module]) -> None:
    """Compile each block and head of each network, also of target networks, and each loss, for batches of one size."""
    inside = [module for learner in learners for module in learner.modules()]
    networks = [module for module in inside if isinstance(module, Network)]
    compiled: list[nn.Module] = [part for network in networks for part in (*network.blocks, network.projector)]
    for learner in (module for module in inside if isinstance(module, Learner)):
        compiled += [part for part in (learner.predictor, learner.objective) if isinstance(part, nn.Module)]
    for part in compiled:
        part.compile(dynamic=False)
    # to the compiler blocks are one function, which by default may have 8 versions; the others would run as they are.
    # A block has up to 4: with and without gradient, trained and passing on, with its weights and with masked ones.
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, 4 * len(compiled))
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, 4 * len(compiled))


def uncompiled(compiled: bool) -> AbstractContextManager:
    """Run what is compiled uncompiled for a while: compiling once more, for a few other batches, costs more."""
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()
