"""What the classes of images are, by the field `data.labels`; and the groups and weights that a table gives them."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath

import numpy as np

from twinblock.core.errors import InputError, nearest
from twinblock.data import Images
from twinblock.data.decode import printable
from twinblock.data.indicators import indicated, matrix_of
from twinblock.data.layout import few
from twinblock.data.parts import file_of
from twinblock.data.store import say_once
from twinblock.data.tables import GROUPS, LABELS, SPLITS, WEIGHTS, Table, is_table, read_table

AUTO, NONE = "auto", "none"
INDICATORS = {"": -1, **{text: int(float(text)) for text in ("0", "1", "-1", "0.0", "1.0", "-1.0")}}  # -1: not known

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


def labelled_by(images: Images, labels: str, separator: str | None = None, test: bool = False) -> Images:
    """The images with the labels that `data.labels` asks for, where those are no part of their source.

    `separator`: the field of `data`. `test`: a test split of which no image is in the file has no labels; of a training
    split that is an error.
    """
    if labels == NONE:
        return replace(images, labels=None, indicators=None, classes=None, classes_from=None)
    if is_table(labels):
        images = _by_file(images, read_table(os.path.expanduser(labels)), labels, separator, test)
    if separator is not None and images.indicators is None and not test:
        raise InputError(
            f"data.separator={separator!r}: {images.name} has no classes in a column of a CSV; name one, "
            "data.labels=FILE.csv, or leave data.separator out"
        )
    return images


def _by_file(images: Images, table: Table, labels: str, separator: str | None, test: bool) -> Images:
    column = table.usual(LABELS)
    if column is None and separator is None and len(columns := _indicator_columns(table)) > 1:
        said = f"columns {printable(few(columns))} of {printable(labels)}"
        rows = zip(*(table.columns[name] for name in columns), strict=True)
        return _with_rows(images, table, [tuple(INDICATORS[cell] for cell in row) for row in rows], columns, said, test)
    column = column or _only_other(table)
    return with_labels(images, table, column, f"column {printable(column)} of {printable(labels)}", separator, test)


def _indicator_columns(table: Table) -> list[str]:
    """The columns of 0 and 1, each of which is a class."""
    used = {table.paths(), *(table.usual(names) for names in (SPLITS, GROUPS, WEIGHTS))}
    columns = {name: cells for name, cells in table.columns.items() if name not in used}
    return [name for name, cells in columns.items() if {*cells} <= INDICATORS.keys() and any(cells)]


def _only_other(table: Table) -> str:
    others = [name for name in table.columns if name != table.paths()]
    if len(others) != 1:
        raise InputError(f"data.labels={table.path}: no column is called label; {table.said()}; rename one")
    return others[0]


def _separated(images: Images, table: Table, column: str, said: str, separator: str, test: bool) -> Images:
    """The images with the classes in the cells of a column, several a cell; rows of one file are joined. Of an image
    whose cell is empty nothing is known.
    """
    of: dict[str, set[str]] = {}
    for name, cell in zip(table.columns[table.paths()], table.columns[column], strict=True):
        of.setdefault(name, set()).update(filter(None, map(str.strip, cell.split(separator))))
    classes = in_order(set().union(*of.values()))
    if not classes:
        raise InputError(f"column {column} of {table.path} is empty")
    _refuse_amounts(table.path, column, classes)
    matrix = matrix_of([[*of[name]] or None for name in table.columns[table.paths()]], classes)
    return _with_rows(images, table, [*map(tuple, matrix.tolist())], classes, said, test)


def _with_rows(
    images: Images, table: Table, rows: Sequence[tuple[int, ...]], classes: Sequence[str], said: str, test: bool
) -> Images:
    """The images with the indicators that the rows of a table give them; of those that it does not name none are known.

    Raises InputError where rows of one file differ.
    """
    number = {row: i for i, row in enumerate(dict.fromkeys(rows))}
    by_name: dict[str, float] = {}
    for name, row in zip(table.columns[table.paths()], rows, strict=True):
        if by_name.setdefault(name, number[row]) != number[row]:
            raise InputError(f"{table.path}: two rows of {printable(name)} give it other classes; mend or remove one")
    found = of_rows(images, table, by_name, -1)
    if found is None and not test:
        raise _unlike(images, table)
    matrix = np.array([*number, (-1,) * len(classes)], np.int8)[np.array(found or [-1] * len(images), np.int64)]
    if found is not None and (missing := int((matrix < 0).all(1).sum())):
        say_once(f"{images.name}: {missing:,} of {len(images):,} images have no label in {table.path}")
    return indicated(images, matrix, classes, said)


def with_labels(
    images: Images, table: Table, column: str, said: str, separator: str | None = None, test: bool = False
) -> Images:
    """The images with the labels in a column of a table that names them."""
    if separator is not None:
        return _separated(images, table, column, said, separator, test)
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
