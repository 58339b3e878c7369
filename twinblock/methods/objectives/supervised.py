"""Cross entropy with labels: the supervised baseline."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from twinblock.methods.objectives.objective import Objective, full_precision


class Supervised(Objective):
    """Mean over the labelled samples of `-log softmax(z)[label]`; a label of -1 says that there is none.

    `z` are class scores. Without any label loss and gradient are zero. Separable where every micro-batch
    holds equally many labels.
    """

    family = "labels"
    labelled = True
    detaches_target = True
    separable = True

    @full_precision
    def forward(self, z: Float[Tensor, "n classes"], t: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        labelled = (t >= 0).sum().clamp(min=1)
        return F.cross_entropy(z, t, ignore_index=-1, reduction="sum") / labelled
