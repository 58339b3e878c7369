"""Makes the pages of the reference from the package: fields of a run, command line, recipes."""

import inspect
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
import typer
from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import twinblock
from twinblock.cli import app as commands
from twinblock.config.recipes import compose, recipe_rows, recipes
from twinblock.config.schema import LEARNERS, OBJECTIVES, TARGETS, Config
from twinblock.core.durations import Duration
from twinblock.methods import learners, objectives, targets

WORDS = {float: "number", int: "whole number", str: "text", bool: "true or false", Duration: "time"}
CHOSEN = {
    "objective": (OBJECTIVES, objectives.KINDS),
    "target": (TARGETS, targets.KINDS),
    "learner": (LEARNERS, learners.KINDS),
}
GROUPS = (
    "On any images",
    "From published weights",
    "On the embedded digits, in minutes",
    "Published runs, for GPUs; not repeated here",
)


def ranged(of: Any) -> tuple[str, str]:
    """A field's type and range in words."""
    origin, args = get_origin(of), get_args(of)
    if origin is Annotated:
        kind, limits = ranged(args[0])
        return kind, ", ".join(filter(None, [limits, *map(limit, bounds(args[1:]))]))
    if origin is Literal:
        return "one of", ", ".join(f"`{value}`" for value in args)
    if origin in (Union, types.UnionType):
        parts = [ranged(part) for part in args if part is not type(None)]
        kinds = " or ".join(dict.fromkeys(kind for kind, _ in parts)) + (" or null" if type(None) in args else "")
        return kinds, "; ".join(dict.fromkeys(filter(None, (limits for _, limits in parts))))
    if origin is tuple:
        inner = [ranged(part) for part in args if part is not Ellipsis]
        count = "list" if Ellipsis in args else f"{len(inner)} values"
        return f"{count}: {inner[0][0]}", inner[0][1]
    if origin is dict:
        return "fields", ""
    if isinstance(of, type) and issubclass(of, BaseModel):
        return "fields", "below"
    return WORDS.get(of, getattr(of, "__name__", str(of))), ""


def bounds(metadata: Any) -> Iterator[Any]:
    for item in metadata:
        yield from bounds(item.metadata) if isinstance(item, FieldInfo) else [item]


def limit(bound: Any) -> str:
    match bound:
        case Ge(ge=value):
            return f"at least {short(value)}"
        case Gt(gt=value):
            return f"above {short(value)}"
        case Le(le=value):
            return f"at most {short(value)}"
        case Lt(lt=value):
            return f"below {short(value)}"
        case MultipleOf(multiple_of=value):
            return f"a multiple of {value}"
    return ""


def short(value: Any) -> str:
    power = value.bit_length() - 1 if isinstance(value, int) else 0
    if power >= 20 and value == 1 << power:
        return f"2^{power}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    return "below" if isinstance(value, BaseModel) else f"`{'null' if value is None else plain(value)}`"


def plain(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(plain, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def rows(model: type[BaseModel], prefix: str, skip: tuple[str, ...] = ("kind",)) -> Iterator[str]:
    yield "| field | type | range | default | meaning |\n| --- | --- | --- | --- | --- |\n"
    for name, field in model.model_fields.items():
        if name in skip:
            continue
        annotation = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
        kind, limits = ranged(annotation)
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        yield f"| `{prefix}{name}` | {kind} | {limits} | {default(field)} | {meaning} |\n"


def title_of(kind: str, cls: type) -> str:
    text = inspect.getdoc(inspect.getmodule(cls)) or ""
    return f"\n### `kind: {kind}`\n\n{text.splitlines()[0]}\n\n{inspect.getdoc(cls)}\n\n"


def chosen(part: str) -> Iterator[str]:
    """The kinds of a part, each with its formula, its source and its fields."""
    for kind, form in CHOSEN[part][0].items():
        yield title_of(kind, CHOSEN[part][1][kind])
        if form.model_fields.keys() - {"kind"}:
            yield from rows(form, f"{part}.")


def models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for part in get_args(annotation) for model in models(part)]


def fields_page() -> Iterator[str]:
    """Every field of a run."""
    yield "## The parts of a run\n\n| part | what it is | |\n| --- | --- | --- |\n"
    for part, field in Config.model_fields.items():
        yield f"| `{part}` | {field.description} | {'required' if field.is_required() else ''} |\n"
    for part, field in Config.model_fields.items():
        if part in CHOSEN:
            yield f"\n## `{part}`\n\n{field.description}\n"
            yield from chosen(part)
            continue
        for model in models(field.annotation):
            if not model.__module__.startswith("twinblock.config"):
                continue
            kind = model.model_fields.get("kind")
            values = get_args(kind.annotation) if kind else ()
            named = f"`{part}.kind: {values[0]}`" if len(values) == 1 else f"`{part}`"
            text = (inspect.getdoc(model) or "").replace("\n", " ")
            yield f"\n## {named}\n\n{text}\n\n"
            prefix = f"{part}.0." if part == "views" else f"{part}."
            yield from rows(model, prefix, skip=("kind",) if len(values) == 1 else ())
            for name, inner in model.model_fields.items():
                for below in models(inner.annotation):
                    number = ".N" if name == "per_block" else ""
                    yield f"\n### `{part}.{name}{number}`\n\n{inspect.getdoc(below)}\n\n"
                    yield from rows(below, f"{part}.{name}{number}.")


def command_page() -> Iterator[str]:
    """What `twinblock COMMAND --help` says."""
    group = typer.main.get_command(commands)
    assert isinstance(group, click.Group) or hasattr(group, "commands")
    for name, command in sorted(group.commands.items()):  # type: ignore[attr-defined]
        if command.hidden:
            continue
        context = command.make_context(name, [], parent=None, resilient_parsing=True)
        context.info_name = f"twinblock {name}"
        yield f"\n## `twinblock {name}`\n\n```text\n{command.get_help(context).strip()}\n```\n"


def group_of(name: str) -> str:
    """What a recipe is for: those of a publication name its data, the others take yours."""
    if compose(name).data.source != "photodigits":
        return GROUPS[3]
    return GROUPS[1] if name.startswith("continue_") else GROUPS[2] if name.endswith("demo") else GROUPS[0]


def recipe_page() -> Iterator[str]:
    """Every recipe in a table, by what it is for."""
    table = {row["recipe"]: row for row in recipe_rows()}
    for title in GROUPS:
        names = [name for name in table if group_of(name) == title]
        columns = [column for column in next(iter(table.values()))]
        yield f"\n## {title}\n\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}\n"
        for name in names:
            cells = [f"[`{v}`](#recipe-{name})" if c == "recipe" else str(v) for c, v in table[name].items()]
            yield f"| {' | '.join(cells)} |\n"
    yield "\n## What each file says\n"
    for name, path in sorted(recipes().items()):
        anchor = f"(recipe-{name})=\n"
        yield f"\n{anchor}### {name}\n\n```yaml\n{path.read_text(encoding='utf-8').strip()}\n```\n"


def python_page() -> Iterator[str]:
    """The public names: verbs first, then classes."""
    verbs = [name for name in twinblock.__all__ if name[0].islower()]
    for name in [*verbs, *(name for name in twinblock.__all__ if name[0].isupper())]:
        kind = "function" if name in verbs else "class"
        yield f"\n## {name}\n\n```{{eval-rst}}\n.. auto{kind}:: twinblock.{name}\n"
        yield "   :members: open, encoder, metrics, finished, failed\n```\n" if name == "Run" else "```\n"


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in (
        ("fields", fields_page),
        ("cli", command_page),
        ("recipes", recipe_page),
        ("python", python_page),
    ):
        text = "".join(page())
        file = folder / f"{name}.md"
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")


def setup(app: Any) -> dict[str, Any]:
    app.connect("builder-inited", lambda app: write(Path(app.srcdir) / "reference" / "_generated"))
    return {"parallel_read_safe": True}
