"""The first line of a run and its last: what is trained, and what came of it."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from twinblock.config.schema import Config
from twinblock.core.console import Reporter
from twinblock.core.errors import InputError
from twinblock.core.pictures import optional_picture
from twinblock.data import Images
from twinblock.diagnosis.chance import remarks
from twinblock.runs import checkpoint
from twinblock.runs.run import Run
from twinblock.runs.state import encoder_to_keep


def headline(config: Config, images: Images, fabric) -> str:
    """The run in one line, before its first step."""
    labels = "no labels"
    if images.labels is not None:
        labels = f"class = {images.classes_from}" if images.classes_from else f"{images.labels.max() + 1} classes"
        labels += "" if config.labelled else ", for the report only"
        labels += "; data.labels=none if these are no classes" if "folder" in (images.classes_from or "") else ""
    if images.indicators is not None:
        labels = f"several classes an image, {images.classes_from or 'as given'}, for finetune only"
    if config.learner is not None:
        method = f"learner {config.learner.kind}"
    else:
        method = f"{config.objective.kind}, {config.target.kind} target"
    labels += ", drawn by weight" if images.weights is not None else ""
    where = f"{fabric.world_size} x {fabric.device.type}" if fabric.world_size > 1 else fabric.device.type
    left_out = f", {len(images.skipped)} unreadable files left out (skipped.txt)" if images.skipped else ""
    return (
        f"{config.out}: {len(images):,} images of {config.data.source_name} ({labels}{left_out}) · "
        f"{config.encoder.kind} at {config.data.size} px · {method}, "
        f"{config.scope.kind} · {config.train.length} of batch {config.data.batch} · {where}, {config.train.precision}"
    )


def unused(fabric) -> str:
    """That a run leaves GPUs of this machine unused, and how it does not; empty where it uses all."""
    gpus = torch.cuda.device_count() if fabric.device.type == "cuda" and fabric.world_size == 1 else 1
    all_ = f"torchrun --nproc-per-node {gpus} -m twinblock pretrain ..."
    return f"one of {gpus} GPUs is used; for all: {all_}" if gpus > 1 else ""


def finish(run: Run, trainer, images: Images, reporter: Reporter) -> None:
    """Write the encoder, measure it quickly, draw its curves, and say in one line what came of the run."""
    from twinblock.diagnosis import outcome
    from twinblock.evaluation.quick import quick_knn
    from twinblock.runs.curves import draw

    config = trainer.config
    encoder = encoder_to_keep(trainer.encoder, trainer.learners)
    checkpoint.write(run.path / "encoder.safetensors", encoder.state_dict(), trainer.metadata())
    starts = trainer.monitor.starts
    if not run.history(-1, starts[-1]):  # its metrics are lost
        run.truncate_metrics(trainer.plan.total + 1)  # away with what is no row
        run.append_metrics([trainer.measure()])
    rows = run.metrics()
    try:
        accuracy = quick_knn(run, encoder, config, images, trainer.fabric.device, reporter.console.quiet)
    except InputError as error:  # labels that cannot be used are no reason to lose a finished training
        reporter.warn(f"accuracy was not measured: {error}")
        accuracy = None
    result = {
        **outcome(rows, starts, config, accuracy),
        "steps": trainer.plan.total,
        "effective_rank": run.history(-1, starts[-1], rows)[-1]["encoder"]["effective_rank"],
        "width": trainer.encoder.width,
        "classes": None if images.labels is None else len(np.unique(images.labels[images.labels >= 0])),
    }
    run.write_json("result.json", result)
    with optional_picture(run.path / "curves.png", reporter.warn):  # its title is the verdict
        draw({run.path.name: run}, run.path / "curves.png")
    if run.failed:
        reporter.say(f"run: {run.path}")
        reporter.tell(last_line(result))
    else:
        reporter.tell(last_line(result))
        reporter.say(how_to_use(run.path, labelled=accuracy is not None))


def how_to_use(path: Path, labelled: bool) -> str:
    """What to do with a finished run, ready to be pasted."""
    shell = shlex.quote(str(path))
    return (
        f"run: {path}\n"
        f"encoder: twinblock.load_encoder({str(path)!r})\n"
        f"next: twinblock embed {shell} · twinblock evaluate {shell}{'' if labelled else ' data=LABELLED'}"
    )


def last_line(result: Mapping[str, Any]) -> str:
    """The judgement on a finished run, from its result:

    `learned: kNN 58.1 % (raw pixels 21.2 %, untrained encoder 24.0 %), 34.1 ± 2.2 points above untrained on 600 test
    images, 2,400 to compare with · effective rank 61/128 · not collapsed`

    Where it has not learned, two more lines say why, and what to do.
    """
    parts = [accuracy_in_words(result), f"effective rank {result['effective_rank']:.0f}/{result['width']}"]
    if result["state"] == "healthy":
        parts += ["not collapsed"] if result["headline"] != "not collapsed" else []
    below = []
    if result["headline"] != "learned":
        below = [f"why: {result['evidence']}", *([f"advice: {result['advice']}"] if result["advice"] else [])]
    else:
        parts += remarks(result["evidence"])
    return "\n".join([f"{result['headline']}: " + " · ".join(parts), *below])


def accuracy_in_words(result: Mapping[str, Any]) -> str:
    """kNN of the encoder and of the baselines, from the result of a run, and the gain with its error."""
    knn, measured = result.get("knn"), result.get("accuracy")
    if knn is None:
        return "no labels to measure accuracy with"
    others = ", ".join(f"{name} {value:.1f} %" for name, value in knn.items() if name != "encoder")
    accuracy = f"kNN {knn['encoder']:.1f} % ({others})"
    if measured is None:  # a run of an earlier version
        return accuracy
    start = "starting weights" if "starting weights" in knn else "untrained encoder"
    gain, error = measured["gains"][start]
    where = "above" if gain >= 0 else "below"
    than = "the starting weights" if start == "starting weights" else "untrained"
    of = f" of {result['labels']}" if "labels" in result else ""
    sizes = f"{measured['test']:,} test images{of}, {measured['train']:,} to compare with"
    return f"{accuracy}, {abs(gain):.1f} ± {error:.1f} points {where} {than} on {sizes}"
