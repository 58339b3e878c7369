"""What a run will take, from a few of its steps: time, memory, disk."""

import resource
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twinblock.config.schema import Config
from twinblock.core.console import Reporter
from twinblock.core.memory import Alive
from twinblock.core.settings import own_settings
from twinblock.data import Images, take
from twinblock.data.training import chosen, training
from twinblock.evaluation.features import at_once, features, seen_by
from twinblock.methods.learner import parts_of
from twinblock.runs.run import Run
from twinblock.runs.starting import beginning
from twinblock.training.pace import Counts, Pace
from twinblock.training.pretrain import composed
from twinblock.training.room import need_room, with_numbers

ROW = 400  # bytes of a step in the metrics, with its share of the measurements
PARTS = ("weights", "target", "optimizer", "step")


@own_settings()
def estimate(
    recipe: str | Path,
    *,
    data: Any = None,
    blocks: Sequence[str] | None = None,
    overrides: Iterable[str] = (),
    **fields: Any,
) -> dict[str, Any]:
    """What `pretrain` with the same arguments will take on this machine, with one process. Nothing is kept of it.

    Packs the images, as training would, and takes a few steps of each phase. Gives `images`, `batch`, `steps`,
    `parameters` by part; `images_per_second`, `seconds` of the whole run, of which `measuring` and `saving`; `memory`,
    the peak in bytes, of which `weights`, `target`, `optimizer` and `step` (gradients and all that is held for them);
    `disk`, bytes in the run's folder. Raises InputError as `pretrain` does.
    """
    from twinblock.diagnosis.monitor import held_out
    from twinblock.training.launch import make_fabric
    from twinblock.training.trainer import Trainer

    config, objects = composed(recipe, {"data": data, **fields}, blocks, overrides)
    fabric = make_fabric()
    images = training(*chosen(config.data, held=objects.get("data")))
    config, start = beginning(config, images, fabric.device, objects)
    with tempfile.TemporaryDirectory() as folder:
        run, seen = Run(folder, **objects), held_out(config.data, images)

        def trainer_of(config: Config) -> Trainer:
            return Trainer(config, images, fabric, run, Reporter(quiet=True), seen, start)

        config, _ = with_numbers(config, len(images), fabric.world_size, trainer_of)
        trainer = trainer_of(config)
        need_room(trainer)
        pace, counts = Pace.of(trainer), Counts.of(trainer)
        if images.labels is not None:  # a run ends with a measurement, which may hold more than a step
            some = take(images, np.arange(min(len(images), at_once(config.image_shape[-1]))))
            features(trainer.encoder, some, **seen_by(config, fabric.device))
        seconds = pace.seconds(counts)
        of_encoder = _encoder_bytes(trainer)
        checkpoints = min(counts.saves, 2) * pace.bytes
    return {
        **_sizes(config, images, trainer),
        "images_per_second": config.data.batch / pace.step,
        "seconds": sum(seconds.values()),
        "measuring": seconds["measuring"],
        "saving": seconds["saving"],
        "memory": _memory(trainer),
        "disk": checkpoints + of_encoder * (1 + trainer.plan.total // trainer.keep_every) + ROW * trainer.plan.total,
    }


def _sizes(config: Config, images: Images, trainer: Any) -> dict[str, Any]:
    return {
        "encoder": f"{config.encoder.kind} at {config.data.size} px",
        "images": len(images),
        "batch": config.data.batch,
        "steps": trainer.plan.total,
        "parameters": {name: sum(t.numel() for t in tensors) for name, tensors in _parameters(trainer).items()},
    }


def _parameters(trainer: Any) -> dict[str, list[Tensor]]:
    """The weights of the encoder, of what stands on it, and of networks that are not trained."""
    of_encoder = {id(p) for p in trainer.encoder.parameters()}
    others = {id(p): p for learner in trainer.learners for p in learner.parameters() if id(p) not in of_encoder}
    targets = {
        id(t)
        for learner in trainer.learners
        for part in parts_of(learner)
        if isinstance(target := getattr(part, "target", None), torch.nn.Module)
        for t in target.parameters()
    }
    return {
        "encoder": [*trainer.encoder.parameters()],
        "heads": [p for key, p in others.items() if key not in targets],
        "target": [p for key, p in others.items() if key in targets],
    }


def _memory(trainer: Any) -> dict[str, int]:
    """Bytes: of the tensors that last, of a step of the phase that takes most, and the peak of the whole."""
    parts = {name: sum(t.nbytes for t in tensors) for name, tensors in _parameters(trainer).items()}
    held = [t for optimizer in trainer.optimizers for state in optimizer.state.values() for t in state.values()]
    optimizer = sum(t.nbytes for t in held if isinstance(t, Tensor))
    found = {"weights": parts["encoder"] + parts["heads"], "target": parts["target"], "optimizer": optimizer}
    found["step"] = max(_bytes_of_step(trainer, start) for start in trainer.monitor.starts)
    return {**found, "peak": _peak(trainer.fabric.device)}


def _bytes_of_step(trainer: Any, step: int) -> int:
    (samples,) = trainer.loader.batches(step, step + 1)
    with Alive() as alive:
        trainer.train_step(step, samples)
    return alive.peak


def _peak(device: torch.device) -> int:
    """The most that this process has held so far: of a GPU's memory where it trains there, else of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _encoder_bytes(trainer: Any) -> int:
    return sum(t.nbytes for t in trainer.encoder.state_dict().values())


def in_words(found: dict[str, Any]) -> list[str]:
    """What `estimate` gives, as lines to read."""
    memory, parameters = found["memory"], found["parameters"]
    parts = ", ".join(f"{name} {_size(memory[name])}" for name in PARTS if memory[name])
    weights = ", ".join(f"{name} {count / 1e6:.1f} M" for name, count in parameters.items() if count)
    return [
        f"run: {found['images']:,} images, {found['steps']:,} steps of {found['batch']}",
        f"parameters: {found['encoder']}: {weights}",
        f"time: {_duration(found['seconds'])}, at {found['images_per_second']:,.0f} images/s",
        f"memory: {_size(memory['peak'])} at the most; {parts}",
        f"disk: {_size(found['disk'])} in the folder of the run",
    ]


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
