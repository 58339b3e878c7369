"""Target networks: which tensors the target embeddings are made with. The online network does not know."""

from torch import nn


class Target(nn.Module):
    """Base of the target networks: facts for the Learner.

    `own_pass`: the target runs apart from the online network; `live`: with gradient; `by_view`: the second view has
    a network of its own, `forward(network, ...)`, online and as target.
    """

    own_pass = True
    live = False
    by_view = False

    def after_step(self, network: nn.Module, step: int, total: int) -> None:
        """Move the target's tensors, after the optimizer step; most have nothing to move."""


class Shared(Target):
    """The target is the online network itself, with its gradient (SimCLR, SimSiam, Barlow Twins, VICReg)."""

    own_pass = False  # the online embedding is the target: nothing more to run
    live = True  # gradients flow into the target unless the objective detaches it
