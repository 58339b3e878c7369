"""The command line: argument plumbing, nothing else."""

import errno
import os
import sys
from typing import Annotated, Any

import typer

from twinblock.core.console import say_last
from twinblock.core.errors import Collapsed, InputError, Interrupted, one_line
from twinblock.core.version import __version__

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
UNREAD = 128 + 13  # the exit code of a command whose reader has left, as of one that SIGPIPE ends
LISTED = 50  # rows that a command prints; all are in its file
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[a.b=c]...", help="Fields of the run to change; `twinblock show RECIPE` prints them."),
]


def _show_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"twinblock {__version__}")
        raise typer.Exit
    return wanted


def _taps(given: bool) -> bool:
    if given:
        raise InputError("--taps is called --pooling now")
    return given


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
):
    """Self-supervised pretraining of image encoders.

    Start with: twinblock pretrain demo
    """


@app.command()
def pretrain(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a path to a YAML file.")],
    overrides: Overrides = None,
):
    """Pretrain an encoder, or go on where a run stopped.

    For example: twinblock pretrain byol data=photos/ out=runs/a. The same command again goes on. Without out=DIR the
    run is written to runs/RECIPE, here runs/byol. Ctrl-C saves the run after the step, or ends a long step and keeps
    the last checkpoint.
    """
    from twinblock.training import launch
    from twinblock.training.pretrain import pretrain

    launch.ends_process = True
    try:
        run = pretrain(recipe, overrides=overrides or ())
    finally:
        launch.ends_process = False
    if run.failed:
        sys.exit(Collapsed.code)  # the last line has said why


@app.command("views")
def draw_views(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a path to a YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[data=...] [out=FILE] [a.b=c]...", help="Fields of the run; the picture's file."),
    ] = None,
):
    """Draw what the network will see.

    Eight images, each beside its views, as views.png or out=FILE.
    """
    from twinblock.assembly.draw import draw_views

    typer.echo(draw_views(recipe, overrides=overrides or ()))


@app.command()
def evaluate(
    run: Annotated[str, typer.Argument(help="The folder of a run.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[data=...] [data.size=N]", help="Other labelled data, and another size of the images."),
    ] = None,
    published: Annotated[bool, typer.Option("--published", help="Also fit the published SGD probes; slow.")] = False,
    blocks: Annotated[bool, typer.Option("--blocks", help="Every block, of a run end to end too.")] = False,
    pooling: Annotated[
        bool, typer.Option("--pooling", help="Measure every block through the pooling of its training.")
    ] = False,
    no_baselines: Annotated[
        bool, typer.Option("--no-baselines", help="Leave out raw pixels and the untrained encoder.")
    ] = False,
    beside: Annotated[list[str] | None, typer.Option(help="Another run to draw in the figure; repeatable.")] = None,
    shots: Annotated[list[int] | None, typer.Option(help="Also a probe of N images a class; repeatable.")] = None,
    taps: Annotated[bool, typer.Option("--taps", hidden=True, callback=_taps)] = False,  # its name in 0.1
):
    """Measure a run's encoder by kNN and linear probe.

    The table also has raw pixels and the untrained encoder. A run trained in blocks is measured block by block, and
    drawn in depth.png. A run on classes of unequal size is measured by class and group, and drawn in classes.png.
    """
    from twinblock.core.console import Reporter, print_table
    from twinblock.evaluation import report
    from twinblock.evaluation.evaluate import evaluate
    from twinblock.runs.run import Run

    data = _fields(overrides, "data").get("data")
    how = {"blocks": blocks or None, "pooling": pooling, "beside": beside or (), "shots": shots or ()}
    run_, reporter = Run(run), Reporter()
    if run_.begun and not run_.finished:
        reporter.warn(f"{run} is not finished: its last checkpoint is measured")
    elif run_.failed:
        reporter.warn(f"{run} ended in failure: {(run_.result or {})['headline']}")
    rows = evaluate(run, data, published=published, baselines=not no_baselines, **how)
    measured = run_.evaluation
    if measured is None or measured["rows"] != rows:  # the run may not be written to: nothing but the rows is at hand
        print_table(run, rows)
        return
    print_table(run, report.table(rows, measured["test"]))
    typer.echo(report.sizes(measured))
    if hint := report.better_block(measured):
        typer.echo(hint)
    if groups := report.group_rows(run_):
        print_table("accuracy of the groups of classes, in %; std: their standard deviation", groups)


@app.command()
def embed(
    run: Annotated[str, typer.Argument(help="The folder of a run.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[data=...] [data.size=N] [split=test] [block=K] [out=FILE]",
            help="Other images; their size; the features of block K; the file, whose ending chooses the format.",
        ),
    ] = None,
):
    """Write the features of images, with their names, to a file.

    The images are the run's own or data=..., the file is .npz, .parquet or .csv. Without out=FILE it is embeddings.npz
    in the run.
    """
    from twinblock.evaluation.embedding import OWN, embed

    fields = _fields(overrides, "data", "split", "block", "out")
    out = fields.pop("out", None) or os.path.join(run, f"{OWN}.npz")
    count, width = embed(run, out=out, **fields).features.shape
    typer.echo(f"{out}: {width} features of each of {count:,} images")


@app.command()
def exemplars(
    run: Annotated[str, typer.Argument(help="The folder of a run.")],
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

    fields = _fields(overrides, "data", "ratio")
    if not isinstance(fields.get("ratio", 0.0), int | float):
        raise InputError(f"ratio={fields['ratio']}: give a number, at least 0 and less than 1")
    if rows := exemplars(run, **fields):
        shown = [{"score": r["score"], "AUROC": f"{r['AUROC']:.3f}", "lift": f"{r['lift']:.2f}"} for r in rows]
        print_table("how well each score finds the rare third of the classes (chance: 0.500 and 1.00)", shown)
    typer.echo(f"{run}/exemplars.csv and exemplars.png: images in order of how far pruning moves them")


@app.command()
def search(
    run: Annotated[str, typer.Argument(help="The folder of a run.")],
    words: Annotated[
        list[str],
        typer.Argument(metavar="PHOTO... [data=...] [k=10]", help="Pictures; where to search; how many images each."),
    ],
):
    """Find the images most like a picture.

    Among the run's images or those of data=...; writes similar.csv and similar.png into the run. For example
    `twinblock search runs/a photo.jpg`.
    """
    from twinblock.core.console import print_table
    from twinblock.evaluation.search import search

    photos = [word for word in words if os.path.isfile(word) or "=" not in word]
    fields = _fields([word for word in words if word not in photos], "data", "k")
    if not isinstance(fields.get("k", 1), int):
        raise InputError(f"k={fields['k']}: give a whole number")
    rows = search(run, photos, **fields)
    shown = [
        {"query": r["query"], "rank": r["rank"], "image": r.get("name", r["image"])} | _hundredths(r) for r in rows
    ]
    print_table("the most similar images", shown[:LISTED])
    typer.echo(f"{run}/similar.csv and similar.png")


def _hundredths(row: dict[str, Any]) -> dict[str, str]:
    return {"similarity": f"{row['similarity']:.2f}"}


@app.command()
def duplicates(
    run: Annotated[str, typer.Argument(help="The folder of a run.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[data=...] [same=0.97]", help="Other images; how alike pixels of duplicates are."),
    ] = None,
):
    """Find near-duplicates among images.

    One picture in other sizes, encodings or brightness, mirrored or not. Writes duplicates.csv and duplicates.png into
    the run.
    """
    from twinblock.evaluation.search import duplicates

    fields = _fields(overrides, "data", "same")
    if not isinstance(fields.get("same", 1), int | float):
        raise InputError(f"same={fields['same']}: give a number, more than 0 and at most 1")
    rows = duplicates(run, **fields)
    if not rows:
        typer.echo("no near-duplicates")
        return
    groups = rows[-1]["group"]
    typer.echo(f"{run}/duplicates.csv and duplicates.png: {len(rows):,} images in {groups:,} groups of near-duplicates")


@app.command(hidden=True, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def forgotten():
    """The earlier name of `exemplars`."""
    raise InputError("the command is called exemplars now: give the same words after twinblock exemplars")


@app.command()
def diagnose(
    what: Annotated[str, typer.Argument(metavar="RUN|CHECKPOINT|FEATURES.npy", help="What to measure.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[data=...]", help="Other data.")] = None,
):
    """Say whether a run or features have collapsed."""
    from twinblock.core.console import print_table
    from twinblock.diagnosis.diagnose import diagnose

    diagnosis = diagnose(what, _fields(overrides, "data").get("data"))
    for title, rows in diagnosis.tables():
        print_table(title, rows)
    typer.echo(str(diagnosis))


@app.command()
def reproduce(
    study: Annotated[str, typer.Argument(help="blockwise, byol-norms or longtail.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[seeds=N] [out=DIR] [a.b=c]...", help="Seeds, folder, and fields of every run."),
    ] = None,
):
    """Carry out a published comparison.

    For example: twinblock reproduce blockwise seeds=1. Writes a table and a figure to out=DIR, by default runs/STUDY.
    """
    from twinblock.studies import reproduce

    reproduce(study, overrides or ())


@app.command()
def cache(
    action: Annotated[str, typer.Argument(metavar="[list|verify|clear]", help="What to do.")] = "list",
    name: Annotated[str | None, typer.Argument(help="What `twinblock cache` shows as a name, or a source.")] = None,
):
    """List, verify or clear the packed images in the cache.

    `verify` compares all with their checksums; what is damaged is packed anew when it is next used.
    """
    from twinblock.core.console import print_table
    from twinblock.data.store import cache as folder
    from twinblock.data.stores import cache

    rows = cache(action, name)
    shown = [
        {**row, "name": row["name"][:12], "bytes": f"{row['bytes'] / 1e6:,.1f} MB", "images": row["images"] or ""}
        for row in rows
    ]
    if rows:
        print_table(f"packed images in {folder()}", shown)
    typer.echo(f"{len(rows)} in {folder()}, {sum(row['bytes'] for row in rows) / 1e9:,.2f} GB")
    if damaged := sum(row["state"].startswith("damaged") for row in rows):
        raise InputError(f"{damaged} of {len(rows)} are damaged; they are packed anew when they are next used")


@app.command()
def recipes():
    """List the recipes."""
    from twinblock.config.recipes import recipe_rows
    from twinblock.core.console import print_table

    print_table("recipes", [{name: row[name] for name in ("recipe", "in words")} for row in recipe_rows()])


@app.command()
def show(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a path to a YAML file.")],
    overrides: Overrides = None,
):
    """Print a composed run as YAML.

    Save it to a file, change it, and pretrain from it.
    """
    from twinblock.config.recipes import compose, to_yaml

    typer.echo(to_yaml(compose(recipe, overrides=overrides or ())), nl=False)


def _fields(overrides: list[str] | None, *known: str) -> dict[str, Any]:
    """The `a=b` arguments of a command that knows these fields."""
    from twinblock.config.explain import unknown_field
    from twinblock.config.overrides import lay_over

    fields = lay_over({}, overrides or ())
    for name in fields.keys() - known:
        raise InputError(unknown_field(name, known))
    return fields


def main() -> None:
    """Run the command line.

    Exit codes: 0 done, 2 wrong input, 3 collapsed or diverged, 128 + n ended by signal n (Ctrl-C: 130; 141: whoever
    read the output has left).
    """
    try:
        try:
            app()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except InputError as error:
        print(f"error: {one_line(error, 10_000)}", file=sys.stderr)
        sys.exit(2)
    except (Interrupted, Collapsed) as stop:
        say_last(str(stop))  # all processes of a run stop at the same step; one says so
        sys.exit(stop.code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        _drop_output()
        sys.exit(UNREAD)
    except SystemExit as end:
        sys.exit(UNREAD if end.code == 1 else end.code)  # typer's 1 is for this alone
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        where = error.filename or "where the output goes, or in the temporary folder"
        print(f"error: {error.strerror}: {where}; make room, then give the same command", file=sys.stderr)
        _drop_output()
        sys.exit(2)


def _drop_output() -> None:
    """What is still to be written to the output cannot be."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


if __name__ == "__main__":
    main()
