"""Which columns of a table hold images and labels, by their types and names."""

import json
from dataclasses import dataclass, field
from typing import Any

from twinblock.core.errors import InputError, nearest
from twinblock.data.decode import printable
from twinblock.data.store import say_once
from twinblock.data.tables import LABELS

IMAGES = ("image", "img", "images", "picture", "photo", "jpg", "jpeg", "png", "webp")  # usual names, best first


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are read: `classes` names numbered labels, where known; `text`: labels are names."""

    image: str | None
    label: str | None
    classes: tuple[str, ...] | None
    text: bool
    several: bool  # a row holds a list of images
    paths: bool  # of files beside the table
    lists: bool  # a label is a list of the classes of an image
    others: tuple[str, ...] = field(default=(), compare=False)  # more columns that may hold images
    floats: str | None = field(default=None, compare=False)  # a column named as labels are, of floats

    def names(self) -> list[str]:
        return [name for name in (self.image, self.label) if name]


def agreed(source: str, schemas: dict[str, Any], label: str | None = None) -> Columns:
    """The columns of all files of a split, with this label. Raises InputError where they hold no images, or differ."""
    first, *others = schemas
    columns = _columns(schemas[first], label)
    if label and label != columns.label:
        raise InputError(f"data.labels={label}: {_no_label(label, schemas[first])}")
    if columns.image is None and columns.others:
        raise InputError(
            f"data source {source!r}: several columns may hold images ({printable(', '.join(columns.others))}); rename "
            'the one to train on to "image", or remove the others'
        )
    if columns.image is None:
        raise InputError(
            f"data source {source!r}: no column holds images; the columns of {printable(first)} are "
            f"{printable(', '.join(schemas[first].names))}"
        )
    if columns.others:
        say_once(f"{source}: the images of column {columns.image} are used, not {printable(', '.join(columns.others))}")
    if columns.floats:
        say_once(f"{source}: column {columns.floats} holds floats and is not used; labels are whole numbers or text")
    for file in others:
        if _columns(schemas[file], label) != columns:
            raise InputError(
                f"data source {source!r}: images or labels of {printable(file)} differ in column, type or classes from "
                f"those of {printable(first)}; its columns are {printable(', '.join(schemas[file].names))}; mend or "
                "remove that file"
            )
    return columns


def _no_label(label: str, schema: Any) -> str:
    if label in schema.names:
        return f"this column holds {schema.field(label).type}; labels are whole numbers or text, or lists of them"
    near = nearest(label, schema.names)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"there is no such column; {hint}the columns are {printable(', '.join(schema.names))}"


def _columns(schema: Any, wanted: str | None = None) -> Columns:
    """By the types that `datasets` writes beside the schema, else by Arrow's types and usual names.

    `wanted`: the label's column, where it was named.
    """
    from pyarrow import types

    kinds = _kinds(schema)
    plain = {f.name: f.type.value_type if types.is_dictionary(f.type) else f.type for f in schema}
    numbers = [name for name, kind in plain.items() if types.is_integer(kind)]
    text = [name for name, kind in plain.items() if _is_text(kind) or types.is_boolean(kind)]
    named = [name for name in numbers if kinds.get(name, {}).get("_type") == "ClassLabel"]
    usual = _usual(numbers + text, LABELS)
    lists = [name for name, kind in plain.items() if _is_list(kind) and _is_class(kind.value_type)]
    label = next(iter([name for name in usual if name in named] + named + usual + _usual(lists, LABELS)), None)
    if wanted is not None:
        label = wanted if wanted in numbers + text + lists else None
    floats = _usual([name for name, kind in plain.items() if types.is_floating(kind)], LABELS) if label is None else []
    classes = _names(kinds.get(label, {})) if label else None
    images = image_columns(schema)
    best = _usual(images, IMAGES) or (images if len(images) == 1 else [])
    kind = plain[best[0]] if best else None
    return Columns(
        best[0] if best else None,
        label,
        tuple(map(printable, classes)) if classes else None,
        label in text,  # of lists their own values tell
        kind is not None and _is_list(kind) and not _is_pixels(kind),
        kind is not None and _is_text(kind),
        label in lists,
        tuple(name for name in images if name not in best[:1]),
        floats[0] if floats else None,
    )


def _names(kind: dict) -> list[str] | None:
    """Those of a ClassLabel, or of one in a list."""
    inner = kind.get("feature")
    return kind.get("names") or (inner.get("names") if isinstance(inner, dict) else None)


def _is_class(kind: Any) -> bool:
    from pyarrow import types

    return types.is_integer(kind) or _is_text(kind)


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return types.is_string(kind) or types.is_large_string(kind)


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _is_pixels(kind: Any, depth: int = 0) -> bool:
    """Whether cells are arrays of numbers, of two axes or three."""
    from pyarrow import types

    kind = getattr(kind, "storage_type", kind)  # an array of `datasets`
    return _is_pixels(kind.value_type, depth + 1) if _is_list(kind) else depth in (2, 3) and types.is_integer(kind)


def _holds_bytes(kind: Any) -> bool:
    from pyarrow import types

    return types.is_struct(kind) and kind.get_field_index("bytes") >= 0


def _is_bytes(kind: Any) -> bool:
    from pyarrow import types

    return types.is_binary(kind) or types.is_large_binary(kind)


def _kinds(schema: Any) -> dict[str, dict]:
    """What `datasets` declares of each column, if it wrote the file."""
    try:
        kinds = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    except (TypeError, KeyError, ValueError):
        kinds = {}
    return {name: kind if isinstance(kind, dict) else {} for name, kind in kinds.items()}


def image_columns(schema: Any) -> list[str]:
    """The columns that may hold images: those declared so; else structs with bytes, and columns of bytes where there
    are none or they have a usual name; lists of these, arrays of numbers, and paths in a column of a usual name.
    """
    kinds = _kinds(schema)
    if declared := [name for name in schema.names if kinds.get(name, {}).get("_type") == "Image"]:
        return declared
    inner = {f.name: f.type.value_type if _is_list(f.type) else f.type for f in schema}
    structs = [name for name, kind in inner.items() if _holds_bytes(kind)]
    binary = [name for name, kind in inner.items() if _is_bytes(kind)]
    found = structs + (_usual(binary, IMAGES) if structs else binary)
    pixels = [f.name for f in schema if _is_pixels(f.type)]
    found = found + _usual(pixels, IMAGES) or pixels
    return found or _usual([name for name, kind in inner.items() if _is_text(kind)], IMAGES)


def _usual(names: list[str], usual: tuple[str, ...]) -> list[str]:
    """Those that are usual, in either case of letters; the most usual first."""
    return sorted((name for name in names if name.lower() in usual), key=lambda name: usual.index(name.lower()))
