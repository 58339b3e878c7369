"""The public functions: pretrain a run, evaluate it, load its encoder."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from twinblock.assembly.resolve import resolve
from twinblock.config.recipes import compose
from twinblock.config.schema import Config
from twinblock.core.console import Reporter
from twinblock.core.distributed import lost_peer
from twinblock.core.errors import InputError, first_line
from twinblock.data import Images
from twinblock.data.training import training
from twinblock.runs.run import Run
from twinblock.training.finish import finish, headline, last_line


def pretrain(
    recipe: str | Path,
    *,
    data: str | Path | Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    overrides: Iterable[str] = (),
    quiet: bool = False,
    **fields: Any,
) -> Run:
    """Pretrain an encoder by a recipe (a name or a YAML file), or go on with the run that lies in `out`.

    `data`: a source or folder, or the fields of `data`; `fields`: any other part of the run, e.g.
    `train={"length": "10epochs"}`; `overrides`: `a.b=c` texts as on the command line. A finished run does nothing.
    Raises InputError, one line, for everything that the caller can mend.
    """
    from twinblock.training.launch import make_fabric  # here, so that looking at a run does not need it

    given = {"data": data, "out": None if out is None else str(out), **fields}
    config = compose(recipe, {k: v for k, v in given.items() if v is not None}, overrides)
    run = Run(config.out or f"runs/{Path(recipe).stem}")
    config = config.model_copy(update={"out": str(run.path)})
    reporter = Reporter(quiet)
    if _already_finished(run, config, reporter):
        return run
    fabric = make_fabric()
    reporter.console.quiet |= not fabric.is_global_zero
    try:
        if fabric.is_global_zero:
            run.claim(config)
        _train(run, config, fabric, reporter)
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            raise InputError(
                f"out of memory ({first_line(error)}): lower data.batch or data.size, take a smaller encoder, or train "
                "with scope=blockwise"
            ) from error
        if fabric.world_size > 1 and lost_peer(error):
            seen = " ".join(str(error).split())[:120]
            raise InputError(f"another process of this run has ended; its own message says why ({seen})") from error
        raise
    finally:
        run.release()
    return run


def _train(run: Run, config: Config, fabric, reporter: Reporter) -> None:
    from twinblock.diagnosis.monitor import held_out
    from twinblock.training.trainer import Trainer

    images = _load(config)  # the first process on a machine packs them; the others wait for its lock, however long
    seen = held_out(config.data, images)
    config = resolve(config, images, fabric.device) if not run.begun else _as_begun(run.config, config)
    reporter.say(headline(config, images, fabric))
    trainer = Trainer(config, images, fabric, run, reporter, seen)
    if fabric.is_global_zero:
        run.write_config(config)
        run.write_skipped(images.skipped)
    trainer.resume()
    trainer.fit()
    if fabric.is_global_zero:
        finish(run, trainer, images, reporter)
    fabric.barrier()


def out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Whether memory ran out: that of a GPU, or of the machine, for which torch has no error of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)


def _as_begun(saved: Config, config: Config) -> Config:
    """The config of a run that goes on: what was left to data and machine stays as it was then."""
    own = {"on_collapse": config.train.on_collapse, "loggers": config.train.loggers}
    train = saved.train.model_copy(update=own)
    return saved.model_copy(update={"out": config.out, "train": train})


def _already_finished(run: Run, config: Config, reporter: Reporter) -> bool:
    if not run.begun or not run.finished:
        return False
    run.agree(config)
    reporter.say(f"run: {run.path} is finished; nothing to do")
    reporter.say(last_line(run.result or {}))
    return True


def _load(config: Config) -> Images:
    images = training(config.data)
    if config.objective.kind == "supervised" and images.labels is None:
        raise InputError(f"objective.kind=supervised needs labels, and {config.data.source} has none")
    return images
