"""When a run is measured, and on how many images: for about 1 % of its time."""

import math
from collections.abc import Iterator

from twinblock.assembly.plan import Phase, Plan
from twinblock.config.schema import Config

SAMPLE = 64, 256  # images looked at: within these bounds, two batches, or fewer where a short run cannot afford them
SHARE = 0.009  # of the training time, counted in forward passes; by the clock it is up to a twentieth more
LEAST, MOST = 8, 500  # measurements at equal distances: very short runs then spend more than that share, long ones less
EARLY = 0.0, 0.01, 0.025, 0.05  # parts of a phase at which to measure in any case, to see a collapse early
LONG = 4_000  # steps; of a longer phase those are parts of its first steps, so that the last is at step 200
CONFIRM = 0.02, 50  # a measurement that finds a collapse is repeated after this part of the run, at most so many steps


class Looks:
    """`count` of all `images`, every `interval` steps and at those of `due_at`, to which more may come.

    A measurement costs two forward passes of the sample, a step three times two of a batch, since backward counts
    double. `world` processes share a step while one of them measures for all `learners`.
    """

    def __init__(self, plan: Plan, config: Config, images: int, learners: int, world: int = 1):
        batch = config.data.batch
        # of all looks, in images of one: a block costs one pass where it only passes on, three where it learns
        passes = sum(phase.steps * (min(phase.trained) + 3 * len(phase.trained)) for phase in plan.phases)
        cost = SHARE * passes / learners * batch / world
        affordable = round(cost / (LEAST + len(EARLY) + 1))
        self.count = min(images, max(SAMPLE[0], min(SAMPLE[1], 2 * batch, affordable)))
        self.due_at = {start + round(part * min(phase.steps, LONG)) for start, phase in begun(plan) for part in EARLY}
        left = cost / self.count - len(self.due_at) - 3  # one is for the end, two are for what is untrained
        self.interval = max(1, math.ceil(plan.total / min(max(left, LEAST), MOST)))
        self.again = max(1, min(round(CONFIRM[0] * plan.total), CONFIRM[1]))

    def due(self, step: int) -> bool:
        return step in self.due_at or step % self.interval == 0

    def of_steps(self, total: int) -> int:
        """How many a run of so many steps has, with the one at its end, if no collapse asks for more."""
        return 1 + sum(map(self.due, range(total)))


def begun(plan: Plan) -> Iterator[tuple[int, Phase]]:
    """The phases with the steps at which they begin."""
    start = 0
    for phase in plan.phases:
        yield start, phase
        start += phase.steps
