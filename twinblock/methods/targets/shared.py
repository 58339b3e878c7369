"""The online network as its own target."""

from twinblock.methods.targets.target import Target


class Shared(Target):
    """The target is the online network itself, with its gradient (SimCLR, SimSiam, Barlow Twins, VICReg)."""

    separate = False  # the online embedding is the target: nothing more to run
    differentiable = True
