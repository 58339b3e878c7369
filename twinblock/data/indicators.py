"""Images of several classes each: a matrix of indicators, with a row an image and a column a class.

1: the image is of this class, 0: it is not, -1: not known.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int8

from twinblock.core.errors import InputError
from twinblock.data import Images
from twinblock.data.decode import printable

MOST = 10_000  # classes: a matrix of more is better given to another program
HOT = (-1, 0, 1)

Lists = Sequence[Sequence[Any] | None]  # the classes of each image; None: not known


class Indicators(NamedTuple):
    """Of some images, and the names of the classes where they have such."""

    matrix: Int8[np.ndarray, "n c"]
    classes: Sequence[str] | None


def indicated(
    images: Images, matrix: Int8[np.ndarray, "n c"], classes: Sequence[str] | None, said: str | None
) -> Images:
    """The images with these indicators in place of labels; with none where no cell is known. `said`: what they are."""
    if not (matrix >= 0).any():
        return replace(images, labels=None, indicators=None, classes=None, classes_from=None)
    named = None if classes is None else tuple(map(printable, classes))
    return replace(images, labels=None, indicators=matrix, classes=named, classes_from=said)


def matrix_of(lists: Lists, classes: Sequence[Any]) -> Int8[np.ndarray, "n c"]:
    """The indicators of lists of classes, each one of `classes`."""
    place = {one: i for i, one in enumerate(classes)}
    matrix = np.zeros((len(lists), len(place)), np.int8)
    for row, those in zip(matrix, lists, strict=True):
        if those is None:
            row[:] = -1
        else:
            row[[place[one] for one in those]] = 1
    return matrix


def classes_of(where: str, *splits: Lists) -> tuple[list[Any], bool]:
    """The classes in lists of text, or of numbers from 0 on, and whether they are text.

    Texts are in alphabetic order; those of a later split that are new come last. Numbers are all up to the largest.
    Raises InputError for all else.
    """
    values = [{one for those in split if those is not None for one in those} for split in splits]
    every = set().union(*values)
    is_text = all(isinstance(one, str) for one in every)
    if not is_text and not all(_is_number(one) for one in every):
        odd = next(one for one in every if not _is_number(one))  # of text and numbers a text
        raise InputError(f"{where}: {printable(str(odd))[:40]!r} among others; give text for all, or numbers from 0 on")
    if is_text:
        classes: list[Any] = list(dict.fromkeys(text for split in values for text in sorted(split)))
    else:
        classes = list(range(min(max(every), MOST) + 1))
    if len(classes) > MOST:
        raise InputError(f"{where} holds more than {MOST:,} classes; leave some out")
    return classes, is_text


def hot(lists: Iterable[Sequence[Any] | None]) -> Int8[np.ndarray, "n c"] | None:
    """The indicators that lists of one length are themselves, such as [0, 1, 1]; None where they are lists of classes.

    Lists of classes name none twice, so lists that repeat a number and hold 0, 1 and -1 alone are indicators.
    """
    rows = list(lists)
    given = [row for row in rows if row is not None]
    repeated = any(len({*row}) < len(row) for row in given)
    if not repeated or len({len(row) for row in given}) > 1 or any(one not in HOT for row in given for one in row):
        return None
    return np.array([[-1] * len(given[0]) if row is None else row for row in rows], np.int8)


def of_splits(where: str, splits: Sequence[Lists], known: Sequence[str] | None = None) -> list[Indicators]:
    """The indicators of each split, whose classes are numbered over all of them; `known` names those of numbers.

    The lists may be indicators themselves. Raises InputError as `classes_of` does.
    """
    names = known
    if known is None and (matrix := hot(row for lists in splits for row in lists)) is not None:
        ends = np.cumsum([len(lists) for lists in splits])[:-1]
        return [Indicators(part, None) for part in np.split(matrix, ends)]
    classes, is_text = classes_of(where, *splits)
    if known is not None and len(classes) > len(known):
        raise InputError(f"{where} holds {classes[-1]}, and names {len(known)} classes; mend it")
    if known is not None:
        classes = range(len(known))
    elif is_text:
        names = classes
    return [Indicators(matrix_of(lists, classes), names) for lists in splits]


def joined(parts: Sequence[Indicators], known: Sequence[str] = ()) -> Indicators:
    """One after the other, over the classes of all: those `known` first, then others by name; or else by number.

    Whether an image is of a class that its part does not have is not known.
    """
    if all(part.classes is not None for part in parts):
        new = {name for part in parts for name in part.classes or ()}.difference(known)
        names = [*known, *sorted(new)]
        place = {name: i for i, name in enumerate(names)}
        columns = [[place[name] for name in part.classes or ()] for part in parts]
        width = len(names)
    else:
        names, columns = None, [[*range(part.matrix.shape[1])] for part in parts]
        width = max(map(len, columns))
    matrix = np.full((sum(len(part.matrix) for part in parts), width), -1, np.int8)
    start = 0
    for part, those in zip(parts, columns, strict=True):
        matrix[start : start + len(part.matrix), those] = part.matrix
        start += len(part.matrix)
    return Indicators(matrix, names)


def of_values(values: Any, count: int, names: Any, name: str) -> tuple[Int8[np.ndarray, "n c"], Sequence[str] | None]:
    """The indicators that a caller gives for so many images, and the names of the classes: text, or `names` of as many.

    `values`: an array with a row an image and a column a class, of 0, 1 and -1; or a list of classes for each image.
    `name`: that of the images. Raises InputError for all else.
    """
    where = f"data={name}"
    if len(values) != count:
        raise InputError(f"{where}: labels of {len(values)} images for {count}; give one row for each")
    if hasattr(values, "ndim"):
        matrix = np.asarray(values)
        if matrix.ndim != 2 or not matrix.shape[1] or not np.isin(matrix, HOT).all():
            raise InputError(
                f"{where}: labels of shape {matrix.shape}; give a column a class, of 0, 1, or -1: not known"
            )
        return matrix.astype(np.int8), _usable(names, matrix.shape[1])
    lists = [None if row is None else [*row] for row in values]
    if (matrix := hot(lists)) is not None:
        return matrix, _usable(names, matrix.shape[1])
    classes, is_text = classes_of(where, lists)
    if not is_text and (given := _usable(names, None)) and len(given) >= len(classes):
        classes = range(len(given))
    return matrix_of(lists, classes), list(map(str, classes)) if is_text else _usable(names, len(classes))


def _usable(names: Any, count: int | None) -> Sequence[str] | None:
    """The names of so many classes, of any number where `count` is None; None where these are none."""
    usable = isinstance(names, list | tuple) and all(isinstance(one, str) for one in names)
    return names if usable and count in (None, len(names)) else None


def are_several(labels: Any) -> bool:
    """Whether labels in Python are of several classes an image: two axes, or a list for each image."""
    if hasattr(labels, "ndim"):
        return labels.ndim == 2
    some = next((one for one in labels if one is not None), None) if isinstance(labels, list | tuple) else None
    return isinstance(some, list | tuple | set | frozenset)


def named(row: Int8[np.ndarray, " c"], classes: Sequence[str] | None) -> str:
    """The classes of an image, for a table: `cat|dog`."""
    return "|".join(classes[i] if classes else str(i) for i in np.flatnonzero(row == 1).tolist())


def _is_number(one: Any) -> bool:
    return isinstance(one, int) and not isinstance(one, bool) and one >= 0
