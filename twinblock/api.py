"""The public functions: pretrain a run, evaluate it, load its encoder."""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from twinblock.config import Config
from twinblock.data import Images
from twinblock.data.longtail import training
from twinblock.distributed import lost_peer
from twinblock.encoders import is_vit
from twinblock.errors import InputError, first_line
from twinblock.precision import precision_of
from twinblock.recipes import compose
from twinblock.report import Reporter, last_line
from twinblock.run import Run

NATIVE_SIDE = 128  # images of one size up to this side are trained on at that size
LARGE_SIDE = 224
PHOTO_VIEW = (0.2, 1.0), 0.5  # crop and flip for photographs: common CIFAR-10 recipes
DIGIT_VIEW = (0.5, 1.0), 0.0  # a fifth of a digit can be any digit, and a mirrored one is none
SMALL_STEM_SIDE = 64  # up to this side the stem keeps the resolution


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
    from twinblock.launch import make_fabric  # here, so that looking at a run does not need it

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
    from twinblock.train import Trainer

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


def load_encoder(path: str | Path) -> nn.Module:
    """The encoder of a run, in evaluation mode: normalised images (n, 3, s, s) in, features (n, d) out."""
    return Run.open(path).encoder()


def out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Whether memory ran out: that of a GPU, or of the machine, for which torch has no error of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)


def resolve(config: Config, images: Images, device: torch.device) -> Config:
    """Fill in what the recipe leaves to the data and the machine; the run's folder keeps the result."""
    height, width = images.pixels.shape[1:3]
    native = max(height, width) if images.aspect is None and max(height, width) <= NATIVE_SIDE else LARGE_SIDE
    size = config.data.size or native
    e = config.encoder
    kind, channels, stem = e.kind, e.width, e.stem
    if kind == "auto" and config.data.source == "photodigits":
        kind, channels, stem = "resnet10", channels or 16, "cifar_stride2" if stem == "auto" else stem
    elif kind == "auto":
        kind = "resnet18" if size <= NATIVE_SIDE else "resnet50"
    if stem == "auto":
        stem = "cifar" if size <= SMALL_STEM_SIDE and not is_vit(kind) else "standard"
    crop, flip = DIGIT_VIEW if config.data.source == "photodigits" else PHOTO_VIEW
    views = tuple(
        view.model_copy(
            update={
                "crop": crop if view.crop == "auto" else view.crop,
                "flip": flip if view.flip == "auto" else view.flip,
            }
        )
        for view in config.views
    )
    config = config.model_copy(
        update={
            "views": views,
            "data": config.data.model_copy(update={"size": size}),
            "encoder": e.model_copy(update={"kind": kind, "stem": stem, "width": channels}),
        }
    )
    train = config.train.model_copy(update={"precision": precision_of(config, device)})
    return config.model_copy(update={"train": train})


def headline(config: Config, images: Images, fabric) -> str:
    """The run in one line, before its first step."""
    labels = "no labels" if images.labels is None else f"{images.labels.max() + 1} classes"
    if images.labels is not None and config.objective.kind != "supervised":
        labels += ", for the report only"
    where = f"{fabric.world_size} x {fabric.device.type}" if fabric.world_size > 1 else fabric.device.type
    left_out = f", {len(images.skipped)} unreadable files left out (skipped.txt)" if images.skipped else ""
    return (
        f"{config.out}: {len(images):,} images of {config.data.source} ({labels}{left_out}) · "
        f"{config.encoder.kind} at {config.data.size} px · {config.objective.kind}, {config.branch.kind} branch, "
        f"{config.scope.kind} · {config.train.length} of batch {config.data.batch} · {where}, {config.train.precision}"
    )


def finish(run: Run, trainer, images: Images, reporter: Reporter) -> None:
    """Write the encoder, measure it quickly, draw its curves, and say in one line what came of the run."""
    from twinblock import checkpoint
    from twinblock.curves import draw
    from twinblock.diagnosis import verdict, worst
    from twinblock.evaluation.run import quick_knn

    config = trainer.config
    checkpoint.write(run.path / "encoder.safetensors", trainer.encoder.state_dict(), trainer.known())
    starts = trainer.monitor.starts
    if not run.history(-1, starts[-1]):  # its metrics are lost
        run.truncate_metrics(trainer.plan.total + 1)  # away with what is no row
        run.append_metrics([trainer.look()])
    rows = run.metrics()  # they may be many: read once for all Learners
    histories = [run.history(i, start, rows) for i, start in enumerate(starts)]
    judged = worst([verdict(history, finished=True, config=config) for history in histories])
    found = histories[-1][-1]["encoder"]
    try:
        measured = quick_knn(trainer.encoder, config, images, trainer.fabric.device, reporter.console.quiet)
    except InputError as error:  # labels that cannot be used are no reason to lose a finished training
        reporter.warn(f"accuracy was not measured: {error}")
        measured = None
    knn, margin = measured or (None, 0.0)
    if judged.headline == "learned" and knn is not None and knn["encoder"] <= knn["untrained encoder"] + margin:
        judged = replace(judged, headline="no better than untrained")  # views agree more, but classes are no clearer
    result = {
        **asdict(judged),
        "steps": trainer.plan.total,
        "effective_rank": found["effective_rank"],
        "width": trainer.encoder.width,
        "knn": knn,
    }
    draw({run.path.name: run}, run.path / "curves.png")
    run.write_json("result.json", result)
    if run.failed:
        reporter.say(f"run: {run.path}")
        reporter.say(last_line(result))
    else:
        reporter.say(last_line(result))
        reporter.say(how_to_use(run.path, labelled=knn is not None))


def how_to_use(path: Path, labelled: bool) -> str:
    """What to do with a finished run, ready to be pasted."""
    shell = shlex.quote(str(path))
    return (
        f"run: {path}\n"
        f"encoder: twinblock.load_encoder({str(path)!r})\n"
        f"next: twinblock embed {shell} · twinblock evaluate {shell}{'' if labelled else ' data=LABELLED'}"
    )


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
