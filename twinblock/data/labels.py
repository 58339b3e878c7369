"""What the classes of images are, by the field `data.labels`; and the groups and weights that a table gives them."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath

import numpy as np

from twinblock.core.errors import InputError, nearest
from twinblock.data import Images
from twinblock.data.decode import printable
from twinblock.data.parts import file_of
from twinblock.data.store import say_once
from twinblock.data.tables import GROUPS, LABELS, WEIGHTS, Table, is_table, read_table

AUTO, NONE = "auto", "none"

# The parts of a name by which images and rows are compared: all of it, the last folder and file, the file alone; and
# each without its ending.
FORMS: tuple[Callable[[str], str], ...] = (
    lambda name: os.path.normpath(name),
    lambda name: os.path.splitext(os.path.normpath(name))[0],
    lambda name: os.sep.join(PurePath(name).parts[-2:]),
    lambda name: os.path.basename(name),
    lambda name: PurePath(name).stem,
)


def column_of(labels: str) -> str | None:
    """The column that `data.labels` names; None where it names none."""
    return None if labels in (AUTO, NONE) or is_table(labels) else labels


def no_columns(source: str, labels: str) -> InputError:
    """Of a source without columns, of which one is named."""
    near = nearest(labels, (AUTO, NONE))
    hint = f"did you mean {near[0]}? " if near else ""
    return InputError(
        f"data.labels={labels}: {source} has no columns; {hint}give auto, none, or a CSV file with the columns file "
        "and label"
    )


def labelled_by(images: Images, labels: str, test: bool = False) -> Images:
    """The images with the labels that `data.labels` asks for, where those are no part of their source.

    `test`: a test split of which no image is in the file has no labels; of a training split that is an error.
    """
    if labels == NONE:
        return replace(images, labels=None, classes=None, classes_from=None)
    if not is_table(labels):
        return images
    table = read_table(os.path.expanduser(labels))
    column = table.usual(LABELS) or _only_other(table)
    return with_labels(images, table, column, f"column {printable(column)} of {printable(labels)}", test)


def _only_other(table: Table) -> str:
    others = [name for name in table.columns if name != table.paths()]
    if len(others) != 1:
        raise InputError(f"data.labels={table.path}: no column is called label; {table.said()}; rename one")
    return others[0]


def with_labels(images: Images, table: Table, column: str, said: str, test: bool = False) -> Images:
    """The images with the labels in a column of a table that names them."""
    cells = table.columns[column]
    classes = in_order(set(filter(None, cells)))
    if not classes:
        raise InputError(f"column {column} of {table.path} is empty")
    _refuse_amounts(table.path, column, classes)
    number = {cell: i for i, cell in enumerate(classes)} | {"": -1}
    found = of_rows(images, table, {name: number[cell] for name, cell in _by_name(table, cells).items()}, -1)
    if found is None and not test:
        raise _unlike(images, table)
    labels = np.array(found if found is not None else [-1], np.int64)
    if not (labels >= 0).any():
        return replace(images, labels=None, classes=None, classes_from=None)
    if missing := int((labels < 0).sum()):
        say_once(f"{images.name}: {missing:,} of {len(images):,} images have no label in {table.path}")
    return replace(images, labels=labels, classes=tuple(map(printable, classes)), classes_from=said)


def with_columns(images: Images, table: Table) -> Images:
    """The images with their groups and weights, where a table that names them has such columns."""
    if column := table.usual(GROUPS):
        cells = _by_name(table, table.columns[column])
        number = {cell: i for i, cell in enumerate(in_order(set(filter(None, cells.values()))))} | {"": -1}
        if images.tiled:
            raise InputError(f"{table.path}: column {column} cannot be used with data.tile, whose groups are images")
        found = of_rows(images, table, {name: number[cell] for name, cell in cells.items()}, -1) or []
        groups = np.array(found, np.int64)
        if images.groups is not None:  # frames of a video without a group stay together
            groups = np.where((groups < 0) & (images.groups >= 0), len(number) + images.groups, groups)
        images = replace(images, groups=groups)
    if column := table.usual(WEIGHTS):
        cells = _by_name(table, table.columns[column])
        values = {name: _weight(table, column, cell) for name, cell in cells.items()}
        weights = np.array(of_rows(images, table, values, 0.0) or [], np.float64)
        if not weights.any():
            raise InputError(f"{table.path}: column {column} is 0 for all images; none would be drawn")
        images = replace(images, weights=weights)
    return images


def _weight(table: Table, column: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise InputError(f"{table.path}: column {column} holds {printable(cell)!r}; a weight is a number, 0 or more")
    return value


def in_order(texts: set[str]) -> list[str]:
    """Texts in order of the alphabet; whole numbers in their own."""
    return sorted(texts, key=int) if all(text.isascii() and text.isdecimal() for text in texts) else sorted(texts)


def _refuse_amounts(path: str, column: str, classes: Sequence[str]) -> None:
    def amount(text: str) -> bool:
        try:
            return not float(text).is_integer()
        except (ValueError, OverflowError):
            return False

    if found := next(filter(amount, classes), None):
        raise InputError(f"{path}: column {column} holds {found}, an amount; classes are whole numbers or text")


def _by_name(table: Table, cells: Sequence[str]) -> dict[str, str]:
    """The cells by the file that they are of. Raises InputError where one file has two."""
    found: dict[str, str] = {}
    for name, cell in zip(table.columns[table.paths()], cells, strict=True):
        if found.setdefault(name, cell) != cell:
            raise InputError(f"{table.path}: {printable(name)} has both {printable(found[name])} and {printable(cell)}")
    return found


def of_rows(images: Images, table: Table, values: Mapping[str, float], missing: float) -> list[float] | None:
    """The value of each image by its name, or by the part of it in which most images and rows agree; None: none do.

    Raises InputError where images have no names, and where several have that part in common.
    """
    if images.names is None:
        raise InputError(f"{table.path} cannot be used for {images.name}: its images have no names")
    names = [file_of(name) for name in images.names]  # a tile is labelled as its image, a frame as its video
    most, keys, known = 0, names, {}
    for form in FORMS:
        here, there = [form(name) for name in names], {form(name): value for name, value in values.items()}
        if (agreed := sum(key in there for key in here)) > most:
            most, keys, known = agreed, here, there
            clear = len(set(here)) == len(set(names)) and all(there[form(name)] == values[name] for name in values)
            if not clear:
                raise InputError(
                    f"{table.path}: {printable(PurePath(names[0]).name)} and others are in several folders; write "
                    f"their paths from {images.name} on into column {table.paths()}"
                )
        if most == len(names):
            break
    return [known.get(key, missing) for key in keys] if most else None


def _unlike(images: Images, table: Table) -> InputError:
    assert images.names is not None
    column = table.paths()
    return InputError(
        f"{table.path} names none of the {len(images):,} images of {images.name}: {printable(images.names[0])} there, "
        f"{printable(table.columns[column][0])} in column {column}"
    )
