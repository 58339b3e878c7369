"""What all commands share."""

import os
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from twinblock.core.errors import InputError
from twinblock.core.version import __version__

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
Recipe = Annotated[str, typer.Argument(help="A recipe's name, or a path to a YAML file.")]
RunFolder = Annotated[str, typer.Argument(help="The folder of a run.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[a.b=c]...", help="Fields of the run to change; `twinblock show RECIPE` prints them."),
]


def _show_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"twinblock {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
):
    """Self-supervised pretraining of image encoders.

    Start with: twinblock pretrain demo
    """


def fields(overrides: list[str] | None, *known: str, options: Sequence[str] = ()) -> dict[str, Any]:
    """The `a=b` arguments of a command that knows these fields; `options`: what it takes with dashes."""
    from twinblock.config.explain import unknown_field
    from twinblock.config.overrides import lay_over

    given = lay_over({}, overrides or ())
    for name in given.keys() - known:
        for option in options:
            if option.split()[0] == f"--{name}".replace("_", "-"):
                raise InputError(f"{name}: not a field; write it as {option}")
        raise InputError(unknown_field(name, known))
    return given


def written(run: str, name: str) -> str:
    """The table and the picture that a command wrote into a run, each as it can be pasted."""
    return " and ".join(os.path.join(run, f"{name}.{ending}") for ending in ("csv", "png"))
