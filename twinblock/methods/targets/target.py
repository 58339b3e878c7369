"""What every target network has in common."""

from torch import Tensor, nn


class Target(nn.Module):
    """How the embeddings that an objective compares with are made; the base of the target networks.

    Its constructor may ask for `network`, the online one: maps in; (map, embedding) of each view out. `separate`:
    targets are embedded in passes of their own, by `forward`; else the online embeddings are the targets.
    `differentiable`: a gradient flows into the targets unless the objective detaches them. `kept`: its network
    `average`, not the online one, is what the run gives in the end.
    """

    separate = True
    differentiable = False
    kept = False

    def sees(self, view: int) -> bool:
        """Whether the online pass of this view goes through `forward`, too, in place of the network's own."""
        return False

    def forward(self, network: nn.Module, *inputs) -> list[tuple[Tensor, ...]]:
        """What `network(*inputs)` would give, made with the target's tensors."""
        return network(*inputs)

    def after_step(self, network: nn.Module, step: int, total: int) -> None:
        """Move the target's tensors, after the optimizer step; most have nothing to move."""
