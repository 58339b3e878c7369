"""How fast a run goes: what its steps, measurements and checkpoints take, and how many steps fit into a time."""

import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from twinblock.config.schema import Config
from twinblock.core.console import clock
from twinblock.core.distributed import largest
from twinblock.core.durations import Duration
from twinblock.core.errors import InputError
from twinblock.runs import checkpoint

SECONDS, MOST, LEAST = 6.0, 40, 3  # for the steps of a phase: at most so long, so many, and at least so many


@dataclass(frozen=True)
class Pace:
    """Seconds of a step, on average over the phases, of a measurement, and of a checkpoint; and its bytes."""

    step: float
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
        look = _seconds(trainer.monitor.measure, 0)
        save, size = _saved(trainer)
        for module, state in zip(modules, before, strict=True):  # they may be the caller's own
            module.load_state_dict(state)
        step, look, save = (largest(value, trainer.fabric.device) for value in (step, look, save))
        return cls(step, look, save, size)

    def seconds(self, trainer: Any) -> dict[str, float]:
        """Of the whole run of a trainer, by what takes them."""
        return {
            "steps": self.step * trainer.plan.total,
            "measuring": self.look * (1 + sum(map(trainer.monitor.due, range(trainer.plan.total)))),
            "saving": self.save * saves(trainer),
        }


def saves(trainer: Any) -> int:
    """Checkpoints of a whole run."""
    return trainer.plan.total // trainer.save_every + (trainer.plan.total % trainer.save_every > 0)


def fitting(wanted: Duration, trainer: Any, make: Callable[[Config], Any]) -> tuple[Config, str]:
    """The config of a trainer with as many steps as fit into a time on the clock, and that in words.

    Measurements and checkpoints are in that time; packing the images before and the evaluation after are not. `make`
    gives the trainer of a config. Raises InputError where not one step fits.
    """
    config, pace, steps = trainer.config, Pace.of(trainer), 0
    for _ in range(3):  # how often is measured and saved follows the number of steps
        whole = sum(pace.seconds(trainer).values()) / trainer.plan.total
        steps = int(wanted.seconds / whole)
        if steps < trainer.plan.phases[-1].trained[-1] + 1:  # blocks in sequence take one each
            raise InputError(
                f"train.length={wanted}: a step takes {whole:.1f} s; set it higher, data.size or data.batch lower, or "
                "take a smaller encoder"
            )
        config = of_length(config, steps)
        trainer = make(config)
    return config, f"train.length={wanted}: {steps} steps, {clock(steps * pace.step)} at {1e3 * pace.step:.0f} ms each"


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
        taken = _seconds(lambda: checkpoint.save(Path(folder), trainer.state(), trainer.metadata()))
        return taken, (Path(folder) / checkpoint.LAST).stat().st_size
