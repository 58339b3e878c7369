"""Tables that name image files: a row an image, with its path and what else is known of it. CSV, TSV or Parquet."""

import csv
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from twinblock.core.errors import InputError, nearest, one_line
from twinblock.data.decode import printable
from twinblock.data.endings import TABLES, is_image
from twinblock.data.layout import TESTS, few, role
from twinblock.data.store import Encoded, Item, digest

# usual names of columns, best first
PATHS = (
    *("path", "file", "file_name", "filename", "filepath", "file_path", "image_path", "img_path", "image", "img"),
    *("images", "image_name", "name", "image_id", "id_code", "id", "uri"),
)
LABELS = ("label", "labels", "fine_label", "target", "class", "category", "coarse_label", "species", "diagnosis")
SPLITS, GROUPS, WEIGHTS = ("split", "subset"), ("group", "groups"), ("weight", "weights", "sample_weight")


@dataclass(frozen=True)
class Table:
    """The cells of a table as text, by column; an empty one is none. All columns are of one length."""

    path: str
    columns: dict[str, list[str]]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def usual(self, names: Sequence[str]) -> str | None:
        """The column of the first of these names, in either case of letters."""
        by_lower = {name.lower(): name for name in reversed(self.columns)}
        return next((by_lower[name] for name in names if name in by_lower), None)

    def said(self) -> str:
        """Its columns, for a message."""
        return f"the columns of {printable(self.path)} are {printable(', '.join(self.columns))}"

    def need(self, column: str) -> str:
        """This column. Raises InputError where there is none."""
        if column in self.columns:
            return column
        near = nearest(column, self.columns)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"data.labels={column}: there is no such column; {hint}{self.said()}")

    def paths(self) -> str:
        """The column that names files. Raises InputError where none does clearly."""
        if name := self.usual(PATHS):
            return name
        files = [
            name
            for name, cells in self.columns.items()
            if all(is_image(cell, True) for cell in filter(None, cells[:100]))
        ]
        files = [name for name in files if any(self.columns[name][:100])]
        if len(files) == 1:
            return files[0]
        raise InputError(f"no column is called path or file; {self.said()}; rename the one that names the files")


def is_table(name: str) -> bool:
    return name.lower().endswith((*TABLES, ".parquet"))


def read_table(path: str) -> Table:
    """The table in a file. Raises InputError, one line, for what is none."""
    try:
        if path.lower().endswith(".parquet"):
            return Table(path, _parquet(path))
        with open(path, encoding="utf-8-sig", newline="") as file:
            return Table(path, _csv(file, path))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 from byte {error.start} on; save it as UTF-8") from None
    except (OSError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({one_line(getattr(error, 'strerror', None) or error)})") from None


def _csv(file, path: str) -> dict[str, list[str]]:
    first = file.readline()
    sign = "\t" if path.lower().endswith(".tsv") else max(",;\t|", key=first.count)
    head = [name.strip() for name in next(csv.reader([first], delimiter=sign), [])]
    if not any(head):
        raise InputError(f"{path}: the first line is empty; it names the columns, as path,label")
    if any(is_image(cell, True) for cell in head):
        raise InputError(f"{path}: the first line is {first.strip()[:60]!r}; it should name the columns, as path,label")
    if twice := [name for name in head if head.count(name) > 1]:
        raise InputError(f"{path}: two columns are called {twice[0]!r}; rename one")
    cells: list[list[str]] = [[] for _ in head]
    reader = csv.reader(file, delimiter=sign, strict=True)
    for row in reader:
        if len(row) != len(head) and any(row):
            raise InputError(f"{path}: line {reader.line_num + 1} has {len(row)} cells, the first line {len(head)}")
        for column, cell in zip(cells, row, strict=False):
            column.append(cell.strip())
    if not cells[0]:
        raise InputError(f"{path}: there is no row below the first line")
    return dict(zip(head, cells, strict=True))


def _parquet(path: str) -> dict[str, list[str]]:
    try:
        from pyarrow import ArrowException, types
        from pyarrow import parquet as pq
    except ImportError:
        raise InputError(f'{path}: to read Parquet, pip install "twinblock[hf]"') from None
    try:
        schema = pq.read_schema(path)
        plain = [f.name for f in schema if not types.is_nested(f.type) and not types.is_binary(f.type)]
        rows = pq.read_table(path, columns=plain).to_pydict()
    except ArrowException as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)})") from None
    if not rows or not len(next(iter(rows.values()))):
        raise InputError(f"{path}: there is no row with text or numbers")
    return {name: [_text(cell) for cell in cells] for name, cells in rows.items()}


def _text(cell: object) -> str:
    if isinstance(cell, float):
        return "" if cell != cell else str(int(cell)) if cell.is_integer() else repr(cell)
    return "" if cell is None else str(cell)


# ---- a table as a source


def listed(source: str, table: Table, base: str, split: str) -> Encoded | None:
    """The files that a table names, or those of a split where it has a column `split`; None where it has none of it.

    Paths are taken from the folder `base`. Labels, groups and weights are no part of it: `labels` finds them by name.
    """
    names = table.columns[table.paths()]
    rows = _of_split(source, table, split)
    if rows is None:
        return None
    if empty := [row for row in rows if not names[row]]:
        raise InputError(f"data source {source!r}: row {empty[0] + 1} names no file; mend or remove it")
    if far := next((names[row] for row in rows if re.match(r"\w{2,}://", names[row])), None):
        raise InputError(
            f"data source {source!r}: {printable(far)} is no file of this machine; download the files first"
        )
    files = [os.path.join(base, os.path.expanduser(names[row])) for row in rows]
    some = files[:: -(-len(files) // 1000)]
    if not any(map(os.path.exists, some)):
        raise InputError(
            f"data source {source!r}: none of its files is there, as {printable(files[0])}; data.root=FOLDER says "
            "where paths begin"
        )

    def items() -> Iterator[Item]:
        for row, file in zip(rows, files, strict=True):
            yield names[row], file, -1

    facts = [(names[row], *facts_of(file)) for row, file in zip(rows, files, strict=True)]
    return Encoded(
        source, digest("table", facts, *map(beginning, some[:: -(-len(some) // 16)])), len(files), items, lambda: some
    )


def _of_split(source: str, table: Table, split: str) -> list[int] | None:
    """The rows of a split; None where there are none."""
    column = table.usual(SPLITS)
    if column is None:
        return list(range(len(table))) if split == "train" else None
    cells = table.columns[column]
    roles = {cell: role(cell) for cell in dict.fromkeys(cells)}
    if strange := [cell for cell in roles if roles[cell] is None]:
        raise InputError(
            f"data source {source!r}: column {column} holds {few(strange)}; write train, test or val, or rename it"
        )
    wanted = [cell for cell in roles if roles[cell] == "train"]
    if split == "test":
        wanted = sorted((cell for cell in roles if roles[cell] in ("test", "val")), key=lambda c: _place(c))[:1]
    elif not wanted:
        raise InputError(f"data source {source!r}: column {column} holds no train, but {few(list(roles))}")
    return [row for row, cell in enumerate(cells) if cell in wanted] or None


def _place(cell: str) -> int:
    return [*TESTS, cell.lower()].index(cell.lower())


def facts_of(file: str) -> tuple[int, int]:
    """Size and time of a file, as far as there is one."""
    try:
        status = os.stat(file)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def beginning(path: str) -> bytes:
    """Some content, to tell apart files of one name, size and time."""
    try:
        with open(path, "rb") as file:
            return file.read(2**16)
    except OSError:
        return b""
