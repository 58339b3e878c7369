"""What happens before an epoch: an objective that asks for it is shown all images."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from twinblock.config.schema import Config
from twinblock.core.distributed import rank, share_buffers
from twinblock.data import Images
from twinblock.evaluation.features import features, seen_by
from twinblock.methods.learner import parts_of


def begin_epoch(
    learners: Sequence[Any], trained: Sequence[int], when: tuple[int, int], images: Images, config: Config, device: Any
) -> list[str]:
    """Call `begin_epoch(embed, step, total)` of the objectives of the Learners that train, where they have it.

    `embed()` gives the target network's embedding of the central view of each image, in evaluation mode, in order.
    `when`: the step of the total in which they train. The first process looks at the images for all, which then share
    the objective's buffers. Returns what the objectives have to say.
    """
    said, parts = [], [(i, part) for i, learner in enumerate(learners) for part in parts_of(learner)]
    for number, (i, part) in enumerate(parts):
        objective: Any = getattr(part, "objective", None)
        if i not in trained or not hasattr(objective, "begin_epoch"):
            continue
        if rank() == 0:
            embedder = Embedder([one for _, one in parts[: number + 1]])
            line = objective.begin_epoch(partial(features, embedder, images, **seen_by(config, device)), *when)
            said += [line] if line else []
        share_buffers(objective)
    return said


class Embedder(nn.Module):
    """Images through the target networks of Learners, one after the other; the embedding of the last."""

    def __init__(self, learners: Sequence[Any]):
        super().__init__()
        self.learners = nn.ModuleList(learners)

    def forward(self, x: Tensor) -> Tensor:
        learners: Sequence[Any] = [*self.learners]
        for learner in learners[:-1]:
            x = learner.embedded(x)[0]
        return learners[-1].embedded(x)[1]
