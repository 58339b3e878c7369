"""Whether a step fits into memory, told before the first one: a system that runs out of it ends processes.

And the numbers that a run leaves to the machine: images that fit, steps of a time on the clock.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from twinblock.config.schema import Config
from twinblock.core.distributed import largest
from twinblock.core.errors import InputError
from twinblock.core.memory import Alive
from twinblock.training.loader import Samples
from twinblock.training.pace import fitting, of_length

FEW, MORE = 2, 4  # images whose steps are measured
SMALL = 2**18  # pixels of the views of a batch; what is smaller fits everywhere
PART = 0.8  # of the free memory that is proposed to be used
GIB = 2**30
AUTO = "auto"
LARGEST, EPOCH = 4096, 8  # of data.batch=auto: images at most, and steps of an epoch at least
FIRST = 1000  # steps of a run, before it is known how many fit into its time


@dataclass(frozen=True)
class Need:
    """Bytes of a step, by the difference of one of two and one of four images, which is what an image takes."""

    few: int
    each: int
    view: int  # the whole batch has its views at once, whatever the part

    @classmethod
    def of(cls, trainer: Any) -> "Need":
        """Measured on copies."""
        few, more = (_bytes_of_step(trainer, count) for count in (FEW, MORE))
        pixels = sum(size**2 for size in trainer.config.view_sizes)
        return cls(few, max(0, more - few) // (MORE - FEW), 4 * trainer.config.image_shape[0] * pixels)

    def step(self, images: int, part: int) -> int:
        """Of so many images on a process, of which `part` go through the network at a time."""
        return self.few + self.each * max(0, part - FEW) + self.view * (images - part)


def need_room(trainer: Any) -> None:
    """Raises InputError where the whole batch takes more than what is free. On a GPU torch says so itself."""
    share = trainer.loader.share
    pixels = share * sum(size**2 for size in trainer.config.view_sizes)
    unknown = trainer.fabric.device.type != "cpu" or trainer.train_step.spread is not None
    if unknown or pixels <= SMALL or share < MORE or (free := _free(trainer)) is None:
        return
    need = Need.of(trainer)
    part = min(share, trainer.config.train.micro_batch or share)
    if need.step(share, part) <= free:
        return
    fitting = _part(need, share, part - 1, free)
    micro = f"train.micro_batch={fitting} takes {need.step(share, fitting) / GIB:.1f}; or " if fitting else ""
    e = trainer.config.encoder
    raise InputError(
        f"a step of {share} images at {trainer.config.data.size} px through {e.kind} takes about "
        f"{need.step(share, part) / GIB:.1f} GiB of memory, and {free / GIB:.1f} are free: {micro}set data.size or "
        "data.batch lower, or take a smaller encoder"
    )


def with_numbers(config: Config, images: int, world: int, make: Callable[[Config], Any]) -> tuple[Config, list[str]]:
    """The config with what fits into memory in place of `auto`, and into a time on the clock; each of that in words.

    `make` gives the trainer of a config. `data.batch` becomes the largest power of two for each process, of at most
    4096 images in all and an eighth of the images; `train.micro_batch` the whole batch (null), or else the largest
    power of two. Both take at most 80 % of the free memory, on all of `world` processes. A `train.length` in minutes
    becomes steps. Raises InputError where both are `auto`, where nothing fits, and where the system does not say what
    is free.
    """
    wanted = config.train.length
    config, chose = _with_memory(of_length(config, FIRST) if wanted.on_the_clock else config, images, world, make)
    timed = None
    if wanted.on_the_clock:
        trainer = make(config)
        need_room(trainer)
        config, timed = fitting(wanted, trainer)
    return config, [line for line in (chose, timed) if line is not None]


def _with_memory(config: Config, images: int, world: int, make: Callable[[Config], Any]) -> tuple[Config, str | None]:
    batch, micro = config.data.batch, config.train.micro_batch
    if AUTO not in (batch, micro):
        return config, None
    if batch == micro:
        raise InputError("data.batch=auto and train.micro_batch=auto: any batch fits in parts; give one as a number")
    name = "data.batch" if batch == AUTO else "train.micro_batch"
    trainer = make(_with(config, MORE * world, None))
    free = _free(trainer)
    if free is None:
        raise InputError(f"{name}=auto: this system does not say how much memory is free; give a number")
    need = Need.of(trainer)
    share = batch // world if batch != AUTO else _batch(need, images // world, micro, free)
    share = _of_all(trainer, share)
    if batch == AUTO:
        part = min(share, micro or share)
        config = _with(config, share * world, micro)
    else:
        whole = need.step(share, share) <= PART * free
        part = _of_all(trainer, share if whole else _part(need, share, share - 1, free))
        config = _with(config, batch, None if part == share else part)
    if not part:
        raise InputError(
            f"{name}=auto: not even {need.step(share or FEW, 1) / GIB:.1f} GiB, the least that a step takes, of the "
            f"{free / GIB:.1f} that are free; set data.size lower, or take a smaller encoder"
        )
    value = config.data.batch if batch == AUTO else config.train.micro_batch or f"null, all {batch} images at once"
    takes = f"a step takes about {need.step(share, part) / GIB:.1f} GiB, and {free / GIB:.1f} are free"
    return config, f"{name}=auto: {value}; {takes}"


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


def _free(trainer: Any) -> int | None:
    """Bytes that are free for this process, of a GPU's memory where it trains there."""
    device = trainer.fabric.device
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = free_memory()
    return None if free is None else free // trainer.fabric.world_size


def _part(need: Need, share: int, most: int, free: int) -> int:
    """The largest power of two of at most `most` images at a time that fits; 0 for none."""
    return max((2**k for k in range(12) if 2**k <= most and need.step(share, 2**k) <= PART * free), default=0)


def _batch(need: Need, images: int, micro: int | None, free: int) -> int:
    """The largest power of two of images on a process that fits, and leaves steps to an epoch; 0 for none."""
    sizes = [2**k for k in range(1, 13) if 2**k <= max(FEW, min(LARGEST, images // EPOCH))]
    return max((size for size in sizes if need.step(size, min(size, micro or size)) <= PART * free), default=0)


def _of_all(trainer: Any, number: int) -> int:
    """The smallest of what the processes found."""
    return -int(largest(-number, trainer.fabric.device))


def _with(config: Config, batch: int, micro: int | None) -> Config:
    data, train = (
        config.data.model_copy(update={"batch": batch}),
        config.train.model_copy(update={"micro_batch": micro}),
    )
    return config.model_copy(update={"data": data, "train": train})


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
