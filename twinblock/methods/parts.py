"""Parts of a method that are chosen by name: what there is, which fields each has, and how it is made.

A part is a class. The annotated arguments of its constructor are its fields in a recipe, written once; arguments named
in `FROM_RUN` are filled in by the run. A class that is not ours is named `package.module:Class`.
"""

import copy
import functools
import importlib
import inspect
import os
import pkgutil
import sys
from collections.abc import Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Annotated, Any, Literal, Union, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Tag, create_model
from torch import nn

from twinblock.core.errors import InputError, first_line

# what a run fills in: the online network; the embedding's width; a seed; how many classes, steps in an epoch, images;
# of a learner: its blocks, the shapes of what they are given and give, and the number of its first block; the shape of
# an image; how many tokens come before those of patches; in which type matrices are multiplied, None for their own
FROM_RUN = (
    *("network", "dim", "seed", "classes", "epoch_steps", "images", "blocks", "input_shape", "shape", "number"),
    *("image_shape", "prefix", "autocast"),
)
OURS: dict[str, Any] = {}  # classes named by the caller's own recipe, imported when it was composed
_PLAIN = (int, float, str, bool, type(None))


class Part(BaseModel):
    """Fields of a run that belong together. Unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def discover(package: ModuleType, base: type) -> dict[str, type]:
    """The parts in a package by kind: each module holds one class derived from `base`, and its name is the kind."""
    kinds = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for cls in vars(module).values():
            if (
                isinstance(cls, type)
                and issubclass(cls, base)
                and cls.__module__ == module.__name__
                and cls is not base
            ):
                kinds[info.name] = cls
    return kinds


def form_of(kind: str, cls: type, base: type[Part] = Part) -> type[Part]:
    """The fields of a part: those of `base`, its kind, and the annotated arguments of its constructor."""
    hints = get_type_hints(cls.__init__, include_extras=True)
    fields: dict[str, Any] = {"kind": (Literal[kind], ...)}
    for name, argument in _arguments(cls).items():
        if name in FROM_RUN:
            continue
        if name not in hints or argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD):
            raise InputError(f"{kind}: the constructor's argument {name!r} has no type; annotate it, as {name}: float")
        fields[name] = (hints[name], ... if argument.default is argument.empty else argument.default)
    return create_model(f"{cls.__name__}Fields", __base__=base, __doc__=inspect.getdoc(cls), **fields)


def one_of(forms: Mapping[str, type[Part]], base: type[Part] = Part) -> Any:
    """The type of a field that holds one of these parts, chosen by its `kind`, or a part that is not ours."""
    members = [Annotated[form, Tag(kind)] for kind, form in forms.items()]
    return Annotated[Union[(*members, Annotated[other(base), Tag(OTHER)])], Discriminator(_tag)]


def other(base: type[Part] = Part) -> Any:
    """The type of a field that holds a part that is not ours; its fields are checked where its class was imported."""

    class Other(base):
        model_config = ConfigDict(extra="allow", frozen=True)
        kind: str

    def checked(part: Any) -> Any:
        flat(part.model_extra or {})
        if part.kind not in OURS:
            return part  # somebody's run: nothing is imported because a file says so
        return Other(**form_of(part.kind, OURS[part.kind], base)(**part.model_dump()).model_dump())

    return Annotated[Other, AfterValidator(checked)]


def flat(fields: dict[str, Any]) -> dict[str, Any]:
    """Refuse a tree: it may be billions of values in a few lines of YAML."""
    for name, value in fields.items():
        if any(isinstance(x, list | tuple | dict) for x in (value if isinstance(value, list | tuple) else [value])):
            raise ValueError(f"{name}: give one value, or a list of values")
    return fields


OTHER = "package.module:Class"


def kind_of(part: Any) -> str | None:
    """The `kind` of these fields, as text. A tree may be billions of values: no message unfolds it."""
    kind = part.get("kind") if isinstance(part, Mapping) else getattr(part, "kind", None)
    return None if kind is None else str(kind) if isinstance(kind, _PLAIN) else f"<{type(kind).__name__}>"


def _tag(part: Any) -> str | None:
    kind = kind_of(part)
    return OTHER if kind and ":" in kind else kind


def make(part: Any, kinds: Mapping[str, type], given: Any = None, **from_run: Any) -> Any:
    """The part that these fields describe, one of `kinds` or one of the caller's own.

    `given`: the caller's object, class or `functools.partial` of one.

    An object is copied, so that blocks do not share its state; a class is called with what it asks for of `from_run`.
    Raises InputError where a part is not ours and was not given.
    """
    if given is not None and not callable_part(given):
        return copy.deepcopy(given)
    cls = given or kinds.get(part.kind) or OURS.get(part.kind)
    if cls is None:
        raise InputError(f"{part.kind} is a part of your own: {how_to_give(part.kind)}")
    if given is None and part.kind not in kinds:
        own = {name: value for name, value in part.model_dump().items() if name in _arguments(cls)}
        part = form_of(part.kind, cls).model_validate({"kind": part.kind, **own})
    arguments = {name: from_run[name] for name in _arguments(cls) if name in from_run}
    if given is None:
        arguments |= {name: getattr(part, name) for name in _arguments(cls) if name not in arguments and name != "kind"}
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as error:
        raise InputError(f"{part.kind} cannot be made: {first_line(error)}") from error


def how_to_give(kind: str) -> str:
    """How the caller names a part again that a run was made with."""
    name = kind.strip("<>").rpartition(":")[2]
    if kind.startswith("<"):
        return f"it was a Python object; give {name} again, as pretrain does"
    return f"name it in your own recipe or on the command line, so that {name} is imported"


def callable_part(given: Any) -> bool:
    """Whether a part was given as something that makes it, rather than made."""
    return isinstance(given, type | functools.partial) or inspect.isfunction(given)


def describe(given: Any) -> dict[str, Any]:
    """How a run records a Python object: its class in angle brackets, and its constructor's plain arguments."""
    cls = given.func if isinstance(given, functools.partial) else given if callable_part(given) else type(given)
    if isinstance(given, functools.partial):
        values = given.keywords
    else:
        values = {} if callable_part(given) else {name: getattr(given, name, ...) for name in _arguments(cls)}
    plain = {name: value for name, value in values.items() if isinstance(value, _PLAIN) and name not in FROM_RUN}
    return {"kind": f"<{cls.__module__}:{cls.__qualname__}>", **plain}


def _arguments(cls: Any) -> Mapping[str, inspect.Parameter]:
    """Of a constructor; a module without one of its own has none."""
    return {} if getattr(cls, "__init__", None) is nn.Module.__init__ else inspect.signature(cls).parameters


def import_part(name: str, where: str) -> Any:
    """The class that `package.module:Class` names, and remember it. For the caller's own recipe and words only."""
    module, _, attribute = name.partition(":")
    try:
        with _working_folder_first():
            cls = functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"{where}={name}: cannot import it ({first_line(error)}); is its folder the current one?"
        ) from None
    if not callable(cls):
        raise InputError(f"{where}={name}: give a class")
    OURS[name] = cls
    return cls


@contextmanager
def _working_folder_first():
    """A command line program, unlike `python -m`, does not look for modules in the current folder."""
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path.remove(os.getcwd())
