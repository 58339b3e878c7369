"""A run as a tree of plain values: fields laid over it, as mappings or as `a.b=c`."""

import os
from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any

import yaml

from twinblock.core.errors import InputError, one_line

PLAIN_TEXT = (
    "out",
    "data",
    "data.source",
    "data.root",
    "data.indices",
    "data.labels",
    "data.separator",
    "encoder.weights",
)  # paths are not YAML, nor is a | alone
# the field of a part that a word in its place stands for: scope=blockwise, data=photos/
CHOICE = dict.fromkeys(("encoder", "learner", "target", "objective", "scope", "optim"), "kind") | {"data": "source"}
KINDS = ("learner", "target", "objective", "scope")  # parts whose fields depend on their kind
NO_MAPPING = "a run is a YAML mapping with data, views, encoder, ...; `twinblock show byol` prints one"


def lay_over(tree: Any, overrides: Iterable[str]) -> Any:
    """Set fields of a tree, in place, by texts of the form `a.b=c`; kinds first, since they clear their part."""
    fields = []
    for name, sign, text in (override.partition("=") for override in overrides):
        if not sign or not name:
            raise InputError(f"cannot read {name + sign + text!r}; overrides have the form a.b=c, e.g. data.batch=512")
        plain = name in PLAIN_TEXT and text != "null" and not _is_list(name, text)
        fields.append((name, text if plain else parse(text, name)))
    if fields and not isinstance(tree, dict):
        raise InputError(NO_MAPPING)
    for name, value in sorted(fields, key=lambda field: not _is_kind(*field)):
        _set(tree, name, value)
    return tree


def _is_list(name: str, text: str) -> bool:
    """Whether this is a list of sources, `[a, b]`, and no name or pattern that happens to begin so."""
    several = name in ("data", "data.source") and text.startswith("[") and text.endswith("]")
    return several and not os.path.exists(text)


def merge(tree: Any, key: str, value: Any) -> None:
    """Lay one part over that of a tree, in place: field by field, but whole where it is of another kind."""
    if isinstance(value, Mapping) and isinstance(tree.get(key), Mapping):
        other = key in KINDS and "kind" in value and value["kind"] != tree[key].get("kind")
        tree[key] = dict(value) if other else {**tree[key], **value}
    elif key in CHOICE and (isinstance(value, str | PathLike) or (key == "data" and isinstance(value, list | tuple))):
        if not isinstance(tree.get(key), dict):
            tree[key] = {}
        _set(tree, f"{key}.{CHOICE[key]}", value if isinstance(value, list | tuple) else str(value))
    else:
        tree[key] = value


def parse(text: str, where: str) -> Any:
    """The value that a YAML text stands for; `where` it stands, for the error."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = getattr(error, "problem", None) or str(error)
        raise InputError(f"{where}: not valid YAML: {one_line(reason)}") from None


def _is_kind(name: str, value: Any) -> bool:
    return name.endswith(".kind") or (name in CHOICE and isinstance(value, str))


def _set(tree: Any, name: str, value: Any) -> None:
    *path, last = name.split(".")
    node = tree
    for i, part in enumerate(path):
        child = _child(node, part)
        if child is None and isinstance(node, dict):
            child = node[part] = {}
        if not isinstance(child, dict | list):
            raise InputError(f"{name}: {'.'.join(path[: i + 1])} has no fields; see `twinblock show`")
        node = child
    if isinstance(node, list):
        if _child(node, last) is None:
            raise InputError(f"{name}: there is no number {last}; {'.'.join(path)} has {len(node)} entries")
        node[int(last)] = value
    elif path:
        # another kind of part starts from its own defaults: the old kind's fields mean nothing to it
        if last == "kind" and path[0] in KINDS and node.get("kind") != value:
            node.clear()
        node[last] = value
    else:
        merge(node, last, value)


def _child(node: Any, part: str) -> Any:
    if isinstance(node, list):
        return node[int(part)] if part.isascii() and part.isdecimal() and int(part) < len(node) else None
    return node.get(part)
