"""Pretraining: a recipe and what the caller gives become a run, and it is trained to its end."""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from twinblock.assembly.views import missing_operations
from twinblock.config.compare import longer
from twinblock.config.recipes import compose
from twinblock.config.schema import Config
from twinblock.core.console import Reporter
from twinblock.core.distributed import await_all, lost_peer, share_batch_within
from twinblock.core.errors import InputError, one_line
from twinblock.core.settings import own_settings
from twinblock.data.objects import describe as describe_images
from twinblock.data.objects import is_object
from twinblock.data.training import chosen, training
from twinblock.data.values import in_words
from twinblock.methods.parts import describe
from twinblock.nn.modes import has_batch_norm
from twinblock.runs import checkpoint
from twinblock.runs.environment import environment, recorded
from twinblock.runs.run import STARTED, Run
from twinblock.runs.starting import beginning, going_on
from twinblock.training.finish import finish, headline, last_line, unused
from twinblock.training.room import need_room, with_numbers

GOES_ON = "from here on learning rate and momentum of the target are those of the longer run"


def pretrain(
    recipe: str | Path,
    *,
    data: Any = None,
    encoder: nn.Module | str | Mapping[str, Any] | None = None,
    blocks: Sequence[str] | None = None,
    objective: Any = None,
    target: Any = None,
    learner: Any = None,
    out: str | Path | None = None,
    overrides: Iterable[str] = (),
    quiet: bool = False,
    **fields: Any,
) -> Run:
    """Pretrain an encoder by a recipe, or go on with the run in `out`. Return the `Run`; a finished one is left alone,
    unless `train.length` is longer now.

    `recipe`: a name, or a YAML file. `data`: a folder or another source, the fields of `data`, or images themselves: a
    map-style `Dataset` of images or (image, label), an array or tensor, a list of paths, or `Images`.
    `encoder`: a name, fields, or your own module; training starts from its weights. `blocks`: the names of its modules
    that begin a block. `objective`, `target`, `learner`: a name, fields, or your own part: an object, its class, or a
    `functools.partial` of the class. `fields`: any other part of the run, such as `train={"length": "10epochs"}`.
    `overrides`: `a.b=c` texts, as on the command line. `out`: the folder of the run, by default runs/ and the recipe's
    name. `quiet`: print nothing.

    Raises InputError, with a message of one line, for everything that the caller can mend.
    """
    from twinblock.training.launch import make_fabric  # here, so that looking at a run does not need it

    parts = {"data": data, "encoder": encoder, "objective": objective, "target": target, "learner": learner, "out": out}
    config, objects = composed(recipe, parts | fields, blocks, overrides)
    run = Run(config.out or f"runs/{Path(recipe).stem}", **objects)
    config = config.model_copy(update={"out": str(run.path)})
    reporter = Reporter(quiet)
    if _already_finished(run, config, reporter):
        return run
    with own_settings():
        return _begin(run, config, make_fabric(), reporter)


def composed(
    recipe: str | Path, given: Mapping[str, Any], blocks: Sequence[str] | None = None, overrides: Iterable[str] = ()
) -> tuple[Config, dict[str, Any]]:
    """The config of a run from what the caller of `pretrain` gives, and the Python objects among it by part."""
    parts = {part: given.get(part) for part in ("encoder", "objective", "target", "learner")}
    objects = {part: one for part, one in parts.items() if is_object(one)}
    parts |= {part: describe(one) for part, one in objects.items()}
    if "encoder" in objects:  # what it was made with does not say what it is
        parts["encoder"] = {"kind": describe(objects["encoder"])["kind"]}
    data, out = given.get("data"), given.get("out")
    source = data.get("source") if isinstance(data, Mapping) else data
    if is_object(source):
        objects["data"] = source
        data = {**(data if isinstance(data, Mapping) else {}), "source": describe_images(source)}
    if blocks is not None:
        overrides = [*overrides, f"scope.cuts={json.dumps([*blocks])}"]
    tree = {**given, **parts, "data": data, "out": None if out is None else str(out)}
    return compose(recipe, {name: value for name, value in tree.items() if value is not None}, overrides), objects


def _begin(run: Run, config: Config, fabric, reporter: Reporter) -> Run:
    reporter.console.quiet |= not fabric.is_global_zero
    try:
        if fabric.is_global_zero:
            run.claim(config)
        _train(run, config, fabric, reporter)
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            raise InputError(
                f"out of memory ({one_line(error)}): lower data.batch or data.size, take a smaller encoder, or train "
                "with scope=blockwise"
            ) from error
        if fabric.world_size > 1 and lost_peer(error):
            seen = one_line(error)
            raise InputError(f"another process of this run has ended; its own message says why ({seen})") from error
        raise
    finally:
        share_batch_within(None)
        run.release()
    return run


def _train(run: Run, config: Config, fabric, reporter: Reporter) -> None:
    from twinblock.diagnosis.monitor import held_out
    from twinblock.training.trainer import Trainer

    images = training(*chosen(config.data, held=run.objects.get("data")))
    await_all("packed")
    if run.begun:
        before, config = run.config, _as_begun(run.config, config)
        if longer(before, config):
            _need_checkpoint(run)
            reporter.say(f"train.length: {before.train.length} becomes {config.train.length}; {GOES_ON}")
        start = going_on(run, config)
    else:
        config, start = beginning(config, images, fabric.device, run.objects)
    seen = held_out(config.data, images)

    def trainer_of(config: Config) -> Trainer:
        return Trainer(config, images, fabric, run, reporter, seen, start)

    if config.train.length.on_the_clock:
        reporter.say(f"train.length={config.train.length}: measuring how long a step takes")
    config, chose = with_numbers(config, len(images), fabric.world_size, trainer_of)
    reporter.say(headline(config, images, fabric))
    if words := unused(fabric):
        reporter.say(words)
    for words in (in_words(images, config.data), missing_operations(config)):
        if words is not None:
            reporter.say(f"images: {words}")
    for line in chose:
        reporter.say(line)
    trainer = trainer_of(config)
    for note in trainer.encoder.notes:
        reporter.say(f"encoder: {note}")
    few = config.train.micro_batch
    if few is not None and few < trainer.loader.share and has_batch_norm(trainer.encoder):
        reporter.say(f"train.micro_batch: a batch norm of the encoder takes its statistics from {few} images at a time")
    need_room(trainer)
    if fabric.is_global_zero:
        run.reopen()  # first: a finished run of the longer config would be one that did not train
        run.write_config(config)
        run.write_skipped(images.skipped)
        if (start or ":" in config.encoder.kind) and not (run.path / STARTED).exists():
            checkpoint.write(run.path / STARTED, trainer.encoder.state_dict(), trainer.metadata())
    trainer.resume()
    facts = environment(fabric.device, fabric.world_size)
    with recorded(run, facts, lambda: trainer.step) if fabric.is_global_zero else nullcontext():
        trainer.fit()
    if fabric.is_global_zero:
        finish(run, trainer, images, reporter)
    fabric.barrier()


def out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Whether memory ran out: that of a GPU, or of the machine, for which torch has no error of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)


def _as_begun(saved: Config, config: Config) -> Config:
    """The config of a run that goes on: what was left to data and machine stays as it was then."""
    settings = {name: getattr(config.train, name) for name in ("on_collapse", "loggers", "keep", "length")}
    if config.train.length.on_the_clock:
        settings["length"] = saved.train.length  # measured when it began
    train = saved.train.model_copy(update=settings)
    return saved.model_copy(update={"out": config.out, "train": train})


def _need_checkpoint(run: Run) -> None:
    """Raises InputError where a run cannot go on, since it would begin anew."""
    if not any((run.checkpoints / name).is_file() for name in (checkpoint.LAST, checkpoint.PREVIOUS)):
        raise InputError(f"out={run.path}: its checkpoint is gone, so it cannot go on; choose another out")


def _already_finished(run: Run, config: Config, reporter: Reporter) -> bool:
    if not run.begun or not run.finished:
        return False
    run.agree(config, going_on=True)
    if longer(run.config, config):
        return False
    reporter.say(f"run: {run.path} is finished; nothing to do")
    if config.train.length.on_the_clock:
        begun = run.config.train.length
        reporter.say(f"train.length={config.train.length} was {begun} when it began; give a larger number to go on")
    reporter.tell(last_line(run.result or {}))
    return True
