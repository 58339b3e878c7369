"""Commands that begin with a recipe."""

import sys
from typing import Annotated

import typer

from twinblock.cli.app import Overrides, Recipe, app
from twinblock.core.errors import Collapsed


@app.command()
def pretrain(
    recipe: Recipe,
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


@app.command()
def estimate(
    recipe: Recipe,
    overrides: Overrides = None,
):
    """Say how long a run will take, and how much memory and disk.

    Takes a few steps, as pretrain with the same words would, and keeps nothing of them.
    """
    from twinblock.training.estimate import estimate, in_words

    for line in in_words(estimate(recipe, overrides=overrides or ())):
        typer.echo(line)


@app.command("views")
def draw_views(
    recipe: Recipe,
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
def recipes():
    """List the recipes, by what their methods rest on."""
    from twinblock.config.recipes import FAMILIES, recipe_rows
    from twinblock.core.console import print_table

    rows = recipe_rows()
    for family, meaning in FAMILIES.items():
        mine = [{name: row[name] for name in ("recipe", "in words")} for row in rows if row["family"] == family]
        if mine:
            print_table(f"{family}: {meaning}", mine)


@app.command()
def show(
    recipe: Recipe,
    overrides: Overrides = None,
):
    """Print a composed run as YAML.

    Save it to a file, change it, and pretrain from it.
    """
    from twinblock.config.recipes import compose, to_yaml

    typer.echo(to_yaml(compose(recipe, overrides=overrides or ())), nl=False)


@app.command()
def reproduce(
    study: Annotated[str, typer.Argument(help="blockwise, byol-norms, local-rules or longtail.")],
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
