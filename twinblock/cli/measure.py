"""Commands that say what a run is worth."""

import os
from typing import Annotated

import typer

from twinblock.cli.app import RunFolder, app, fields, written
from twinblock.core.errors import InputError


def _taps(given: bool) -> bool:
    if given:
        raise InputError("--taps is called --pooling now")
    return given


@app.command()
def evaluate(
    run: RunFolder,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[data=...] [data.size=N] [step=N]",
            help="Other labelled data; another size of the images; the encoder that was kept after step N.",
        ),
    ] = None,
    published: Annotated[bool, typer.Option("--published", help="Also fit the published SGD probes; slow.")] = False,
    blocks: Annotated[bool, typer.Option("--blocks", help="Every block, of a run end to end too.")] = False,
    pooling: Annotated[
        bool, typer.Option("--pooling", help="Measure every block through the pooling of its training.")
    ] = False,
    no_baselines: Annotated[
        bool, typer.Option("--no-baselines", help="Leave out raw pixels, the untrained encoder and the start.")
    ] = False,
    beside: Annotated[list[str] | None, typer.Option(help="Another run to draw in the figure; repeatable.")] = None,
    shots: Annotated[list[int] | None, typer.Option(help="Also a probe of N images a class; repeatable.")] = None,
    taps: Annotated[bool, typer.Option("--taps", hidden=True, callback=_taps)] = False,  # its name in 0.1
):
    """Measure a run's encoder by kNN and linear probe.

    The table also has raw pixels, the untrained encoder and the starting weights, if any. A run trained in blocks is
    measured block by block, and drawn in depth.png. A run on classes of unequal size is measured by class and group,
    and drawn in classes.png.
    """
    from twinblock.core.console import Reporter, print_table
    from twinblock.data.training import chosen, whole
    from twinblock.evaluation import report
    from twinblock.evaluation.evaluate import evaluate
    from twinblock.runs.run import Run
    from twinblock.training.finish import last_line

    options = ("--published", "--blocks", "--pooling", "--no-baselines", "--beside RUN", "--shots N")
    given = fields(overrides, "data", "step", options=options)
    data, step = given.get("data"), given.get("step")
    how = {"step": step, "blocks": blocks or None, "pooling": pooling, "beside": beside or (), "shots": shots or ()}
    run_, reporter = Run(run), Reporter()
    if step is not None and not isinstance(step, int):
        raise InputError(f"step={step}: give a whole number, as {run}/encoders has them")
    if run_.begun and not run_.finished and step is None:
        reporter.warn(f"{run} is not finished: its last checkpoint is measured")
    elif run_.failed:
        reporter.warn(f"{run} ended in failure: {(run_.result or {})['headline']}")
    rows = evaluate(run, data, published=published, baselines=not no_baselines, **how)
    source = chosen(whole(run_.config.data), data)[0].source_name
    measured = run_.evaluation if step is None else run_.evaluation_of(source, step)
    if measured is None or measured["rows"] != rows:  # the run may not be written to: nothing but the rows is at hand
        print_table(run, rows)
        return
    print_table(run if step is None else f"{run} after step {step}", report.table(rows, measured["test"]))
    typer.echo(report.sizes(measured))
    if hint := report.better_block(measured):
        typer.echo(hint)
    if groups := report.groups_of(measured):
        print_table("accuracy of the groups of classes, in %; std: their standard deviation", groups)
    if run_.result is not None:
        reporter.tell(last_line(run_.result))


@app.command()
def diagnose(
    what: Annotated[str, typer.Argument(metavar="RUN|CHECKPOINT|FEATURES.npy", help="What to measure.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[data=...]", help="Other data.")] = None,
):
    """Say whether a run or features have collapsed."""
    from twinblock.core.console import print_table
    from twinblock.diagnosis.diagnose import diagnose

    diagnosis = diagnose(what, fields(overrides, "data").get("data"))
    for title, rows in diagnosis.tables():
        print_table(title, rows)
    typer.echo(str(diagnosis))


@app.command()
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN RUN... [out=FILE]", help="Folders of runs; the picture's file, by its ending."),
    ],
):
    """Set runs side by side.

    Prints the settings in which they differ and what came of each: verdict, rank, accuracies, time. Writes their curves
    to compare.png or out=FILE, and the table beside it.
    """
    from twinblock.core.console import print_table
    from twinblock.evaluation.compare import OWN, by_run, compare

    folders = [word for word in runs if os.path.isdir(word) or "=" not in word]
    out = fields([word for word in runs if word not in folders], "out").get("out")
    print_table("what differs, and what came of it", by_run(compare(folders, out=out)))
    picture = out or OWN
    typer.echo(f"{picture} and {os.path.splitext(picture)[0]}.csv; ±: standard error on the test images")


@app.command()
def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN... [out=FILE.html] [data=...]", help="Folders of runs; the file; images in place of the run's."
        ),
    ],
):
    """Write what came of a run, or of several, to one HTML file.

    Verdict, curves, views, nearest neighbours, a map of the embeddings, accuracies, measures of collapse, environment
    and config. The file needs no server and no network; it holds small copies of images. Without out=FILE.html it is
    report.html in the run, or here for several.
    """
    from twinblock.reports.report import report

    folders = [word for word in runs if os.path.isdir(word) or "=" not in word]
    given = fields([word for word in runs if word not in folders], "out", "data")
    typer.echo(report(folders, **given))


@app.command()
def exemplars(
    run: RunFolder,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[data=...] [data.size=N] [ratio=0.9]",
            help="Other images; their size; the share of the weights to prune.",
        ),
    ] = None,
):
    """Find the images that a run learned least.

    The features of these images move most when the encoder is pruned: pruning-identified exemplars (Hooker et al.
    2019). Writes exemplars.csv and exemplars.png, with the images in this order.
    """
    from twinblock.core.console import print_table
    from twinblock.evaluation.exemplars import exemplars

    given = fields(overrides, "data", "ratio")
    if not isinstance(given.get("ratio", 0.0), int | float):
        raise InputError(f"ratio={given['ratio']}: give a number, at least 0 and less than 1")
    if rows := exemplars(run, **given):
        shown = [{"score": r["score"], "AUROC": f"{r['AUROC']:.3f}", "lift": f"{r['lift']:.2f}"} for r in rows]
        print_table("how well each score finds the rare third of the classes (chance: 0.500 and 1.00)", shown)
    typer.echo(f"{written(run, 'exemplars')}: images in order of how far pruning moves them")


@app.command(hidden=True, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def forgotten():
    """The earlier name of `exemplars`."""
    raise InputError("the command is called exemplars now: give the same words after twinblock exemplars")


@app.command()
def rank(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN... [data=...]", help="Folders of runs; images to compare them on.")
    ],
):
    """Order checkpoints and runs without labels.

    The last encoder of each run and those that train.keep kept, the best first, by how alike they see two views of one
    image and how unlike other images.
    """
    from twinblock.core.console import print_table
    from twinblock.evaluation.rank import SCORE, rank

    folders = [word for word in runs if os.path.isdir(word) or "=" not in word]
    rows = rank(folders, **fields([word for word in runs if word not in folders], "data"))
    shown = [{**row, "step": row["step"] or "last", SCORE: f"{row[SCORE]:.4f}"} for row in rows]
    print_table("without labels, the best first", shown)
