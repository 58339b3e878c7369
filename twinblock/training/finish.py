"""The first line of a run and its last: what is trained, and what came of it."""

import shlex
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from twinblock.config.schema import Config
from twinblock.core.console import Reporter
from twinblock.core.errors import InputError
from twinblock.data import Images
from twinblock.runs import checkpoint
from twinblock.runs.run import Run


def headline(config: Config, images: Images, fabric) -> str:
    """The run in one line, before its first step."""
    labels = "no labels" if images.labels is None else f"{images.labels.max() + 1} classes"
    if images.labels is not None and not config.labelled:
        labels += ", for the report only"
    if config.learner is not None:
        method = f"learner {config.learner.kind}"
    else:
        method = f"{config.objective.kind}, {config.target.kind} target"
    where = f"{fabric.world_size} x {fabric.device.type}" if fabric.world_size > 1 else fabric.device.type
    left_out = f", {len(images.skipped)} unreadable files left out (skipped.txt)" if images.skipped else ""
    return (
        f"{config.out}: {len(images):,} images of {config.data.source} ({labels}{left_out}) · "
        f"{config.encoder.kind} at {config.data.size} px · {method}, "
        f"{config.scope.kind} · {config.train.length} of batch {config.data.batch} · {where}, {config.train.precision}"
    )


def finish(run: Run, trainer, images: Images, reporter: Reporter) -> None:
    """Write the encoder, measure it quickly, draw its curves, and say in one line what came of the run."""
    from twinblock.diagnosis import verdict, worst
    from twinblock.evaluation.evaluate import quick_knn
    from twinblock.runs.curves import draw

    config = trainer.config
    checkpoint.write(run.path / "encoder.safetensors", trainer.encoder.state_dict(), trainer.metadata())
    starts = trainer.monitor.starts
    if not run.history(-1, starts[-1]):  # its metrics are lost
        run.truncate_metrics(trainer.plan.total + 1)  # away with what is no row
        run.append_metrics([trainer.measure()])
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
        "classes": None if images.labels is None else len(np.unique(images.labels[images.labels >= 0])),
    }
    run.write_json("result.json", result)
    draw({run.path.name: run}, run.path / "curves.png")  # its title is the verdict
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


def last_line(result: Mapping[str, Any]) -> str:
    """`learned: kNN 58.1 % (raw pixels 21.2 %, untrained encoder 24.0 %) · effective rank 61/128 · not collapsed`"""
    parts = []
    if result.get("knn") is not None:
        knn = result["knn"]
        others = ", ".join(f"{name} {value:.1f} %" for name, value in knn.items() if name != "encoder")
        parts.append(f"kNN {knn['encoder']:.1f} % ({others})")
    else:
        parts.append("no labels to measure accuracy with")
    parts.append(f"effective rank {result['effective_rank']:.0f}/{result['width']}")
    if result["state"] == "healthy":
        parts += ["not collapsed"] if result["headline"] != "not collapsed" else []
    else:
        parts += [result["evidence"], f"advice: {result['advice']}"]
    return f"{result['headline']}: " + " · ".join(parts)
