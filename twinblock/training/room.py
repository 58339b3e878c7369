"""Whether a step fits into memory, told before the first one: a system that runs out of it ends processes."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from twinblock.core.errors import InputError
from twinblock.core.memory import Alive
from twinblock.training.loader import Samples

FEW, MORE = 2, 4  # images whose steps are measured
SMALL = 2**18  # pixels of the views of a batch; what is smaller fits everywhere
PART = 0.8  # of the free memory that is proposed to be used
GIB = 2**30


def need_room(trainer: Any) -> None:
    """Measures a step of two and one of four images, whose difference is what an image takes, on copies.

    Raises InputError where the whole batch takes more than what is free. On a GPU torch says so itself.
    """
    free, share = free_memory(), trainer.loader.share
    pixels = share * sum(size**2 for size in trainer.config.view_sizes)
    if free is None or trainer.fabric.device.type != "cpu" or pixels <= SMALL or share < MORE:
        return
    free //= trainer.fabric.world_size
    few, more = (_bytes_of_step(trainer, count) for count in (FEW, MORE))
    each = max(0, more - few) // (MORE - FEW)
    views = 4 * trainer.config.image_shape[0] * pixels  # the whole batch has them at once, whatever the part

    def needed(part: int) -> int:
        return few + each * max(0, part - FEW) + (views - views * part // share)

    part = min(share, trainer.config.train.micro_batch or share)
    if needed(part) <= free:
        return
    fitting = [2**k for k in range(12) if 2**k < part and needed(2**k) <= PART * free]
    micro = f"train.micro_batch={fitting[-1]} takes {needed(fitting[-1]) / GIB:.1f}; or " if fitting else ""
    e = trainer.config.encoder
    raise InputError(
        f"a step of {share} images at {trainer.config.data.size} px through {e.kind} takes about "
        f"{needed(part) / GIB:.1f} GiB of memory, and {free / GIB:.1f} are free: {micro}set data.size or data.batch "
        "lower, or take a smaller encoder"
    )


def free_memory() -> int | None:
    """Bytes that this machine, or this process's group of it, still has, its swap included; None where nothing says."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = 1024 * sum(int(lines[name].split()[0]) for name in ("MemAvailable", "SwapFree"))
    except (OSError, ValueError, KeyError, IndexError):
        return None
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # `max`: no limit
        return free
    return min(free, max(0, limit - used))


def _bytes_of_step(trainer: Any, count: int) -> int:
    step = trainer.train_step
    samples = _first(trainer.loader.gather(0), count).to(trainer.fabric.device)
    phase, _ = trainer.plan.at(0)
    learners = copy.deepcopy(trainer.learners[: max(phase.trained) + 1])
    with Alive() as alive:
        signal, batch = step.signal_of(0, samples)
        for i, learner in enumerate(learners):
            if i not in phase.trained:
                signal = learner.eval().pass_on(signal, batch)
                continue
            loss, signal, *_ = learner(signal, batch)
            loss.backward()
    return alive.peak


def _first(samples: Samples, count: int) -> Samples:
    parts = {name: getattr(samples, name) for name in ("pixels", "labels", "aspect", "index")}
    return replace(samples, **{name: part if part is None else part[:count] for name, part in parts.items()})
