"""How fast a run goes: what its steps, measurements and checkpoints take, and how many steps fit into a time."""

import copy
import math
import statistics
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from twinblock.assembly.plan import make_plan
from twinblock.config.schema import Config
from twinblock.core.console import clock
from twinblock.core.distributed import largest, world_size
from twinblock.core.durations import Duration
from twinblock.core.errors import InputError
from twinblock.diagnosis.looks import Looks
from twinblock.runs import checkpoint
from twinblock.runs.state import snapshot

SECONDS, MOST, LEAST = 6.0, 40, 3  # for the steps of a phase: at most so long, so many, and at least so many


@dataclass(frozen=True)
class Pace:
    """Seconds of a step, on average over the phases, of the first measurement of a phase and of another one, and of a
    checkpoint; and its bytes.
    """

    step: float
    first: float
    look: float
    save: float
    bytes: int

    @classmethod
    def of(cls, trainer: Any) -> "Pace":
        """Measured by steps that `trainer` takes, whose blocks are not spread; all processes must ask.

        Its weights are put back afterwards.
        """
        modules = (trainer.encoder, *trainer.learners)
        before = [copy.deepcopy(module.state_dict()) for module in modules]
        step = _seconds_of_steps(trainer) / trainer.plan.total
        first, look = (_seconds(trainer.monitor.measure, start) for start in (0, None))
        save, size = _saved(trainer)
        for module, state in zip(modules, before, strict=True):  # they may be the caller's own
            module.load_state_dict(state)
        found = [largest(value, trainer.fabric.device) for value in (step, first, look, save)]
        return cls(*found, bytes=size)

    def seconds(self, counts: "Counts") -> dict[str, float]:
        """Of a whole run, by what takes them."""
        return {
            "steps": self.step * counts.steps,
            "measuring": self.first * counts.phases + self.look * (counts.looks - counts.phases),
            "saving": self.save * counts.saves,
        }


@dataclass(frozen=True)
class Counts:
    """What a run consists of: phases, steps, measurements, checkpoints."""

    phases: int
    steps: int
    looks: int
    saves: int

    @classmethod
    def of(cls, trainer: Any, steps: int | None = None) -> "Counts":
        """Of the run of a trainer, or of the same run with so many steps."""
        total: int = trainer.plan.total if steps is None else steps
        monitor, learners = trainer.monitor, len(trainer.learners)
        plan = make_plan(trainer.config.scope, learners, total, trainer.epoch_steps)
        looks = Looks(plan, trainer.config, monitor.images, learners, world_size())
        every = max(1, trainer.config.train.checkpoint_every.steps(trainer.epoch_steps, total))
        return cls(len(plan.phases), total, looks.of_steps(total), math.ceil(total / every))


def fitting(wanted: Duration, trainer: Any) -> tuple[Config, str]:
    """The config of a trainer with as many steps as fit into a time on the clock, and that in words.

    Measurements and checkpoints are in that time; packing the images before and the evaluation after are not. Raises
    InputError where not one step fits.
    """
    pace, steps = Pace.of(trainer), trainer.plan.total
    for _ in range(3):  # how often is measured and saved follows the number of steps
        whole = sum(pace.seconds(Counts.of(trainer, steps)).values()) / steps
        steps = int(wanted.seconds / whole)
        if steps < len(trainer.plan.phases):  # blocks in sequence take one each
            raise InputError(
                f"train.length={wanted}: a step takes {whole:.1f} s; set it higher, data.size or data.batch lower, or "
                "take a smaller encoder"
            )
    words = f"train.length={wanted}: {steps} steps, {clock(steps * pace.step)} at {1e3 * pace.step:.0f} ms each"
    return of_length(trainer.config, steps), words


def of_length(config: Config, steps: int) -> Config:
    """The config of so many steps."""
    train = config.train.model_copy(update={"length": Duration.parse(f"{steps}steps")})
    return config.model_copy(update={"train": train})


def _seconds_of_steps(trainer: Any) -> float:
    """Of all steps: in each phase the median of some, by the steps of the phase."""
    total, start = 0.0, 0
    for phase in trainer.plan.phases:
        seconds, count, taken = [], min(phase.steps, LEAST + 1), 0
        with closing(trainer.loader.batches(start, start + min(phase.steps, MOST))) as batches:
            while taken < count:
                step = start + taken
                seconds.append(_seconds(lambda step=step, batches=batches: trainer.train_step(step, next(batches))))
                taken += 1
                if taken == LEAST:  # the same number on all processes: they wait for each other
                    pace = largest(min(seconds), trainer.fabric.device)
                    count = min(phase.steps, max(count, min(MOST, int(SECONDS / pace))))
        settled = seconds[1:] or seconds  # the first one also loads and chooses kernels
        total += statistics.median(settled) * phase.steps
        start += phase.steps
    return total


def _seconds(work: Any, *given: Any) -> float:
    began = time.perf_counter()
    work(*given)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _saved(trainer: Any) -> tuple[float, int]:
    """Seconds and bytes of a checkpoint; not in the folder of the run, which may not have begun."""
    with tempfile.TemporaryDirectory() as folder:
        taken = _seconds(lambda: checkpoint.save(Path(folder), snapshot(trainer.state()), trainer.metadata()))
        return taken, (Path(folder) / checkpoint.LAST).stat().st_size
