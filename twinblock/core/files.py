"""Files that people keep: written whole or not at all, and tables as CSV, Parquet or NumPy's npz."""

import csv
import errno
import fcntl
import io
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from twinblock.core.errors import InputError

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
ROWS = 1000  # rows of a table that are text at a time
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what makes a spreadsheet take a cell for a formula

Columns = Mapping[str, Sequence[Any] | np.ndarray]  # of one length; arrays may be (n,) or (n, d)


def expanded(path: str | Path) -> Path:
    """A path with the home folder in place of `~`, which not every shell fills in behind `out=`."""
    return Path(os.path.expanduser(path))


def same_place(a: str | None, b: str | None) -> bool:
    """Whether two names lead to one file or folder, as `photos`, `./photos/` and `~/photos` may do."""
    return a == b or (a is not None and b is not None and expanded(a).resolve() == expanded(b).resolve())


def same_places(a: object, b: object) -> bool:
    """The same of two names, or of two lists of names in order."""
    one, other = ([x] if isinstance(x, str) or x is None else list(x) for x in (a, b))  # type: ignore[call-overload]
    return len(one) == len(other) and all(map(same_place, one, other))


def lock(file: int) -> bool:
    """Take the lock of an open file for this process; False on file systems that have none.

    Raises BlockingIOError where another process holds it.
    """
    for take in (fcntl.flock, fcntl.lockf):  # a network's file system may know one of them
        try:
            take(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise BlockingIOError(error.errno, error.strerror) from None
    return False


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` once it is whole and on the disk; never through a link.

    A library that writes to a name may write to `file.name`. Raises InputError where the disk
    refuses; what was there before stays.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # of this process: two may write one file
    try:
        partial.unlink(missing_ok=True)
        with open(partial, "xb") as file:
            yield file
        with open(partial, "rb") as file:  # perhaps another file by now
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def need_writable(folder: Path) -> None:
    """Raises InputError where no file can be made in a folder, as in a run of somebody else."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot write to {folder}: {reason}; take a folder that you may write to") from None


def table_kind(path: Path) -> str:
    """`csv`, `parquet` or `npz`, by the file's ending. Raises InputError for others, and where pyarrow is missing."""
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("csv", "parquet", "npz"):
        raise InputError(f"{path}: a table's name ends with .npz, .parquet or .csv")
    if kind == "parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise InputError(f'{path}: Parquet needs pyarrow: pip install "twinblock[hf]", or choose .csv') from None
    return kind


def write_table(file: BinaryIO, kind: str, columns: Columns) -> None:
    """A table of the given kind. `npz`: an array a column. `parquet`: (n, d) becomes lists of d. `csv`: it becomes d
    columns, name0, name1 and so on; text that a spreadsheet would compute gets a leading apostrophe.
    """
    if kind == "npz":
        arrays: dict[str, Any] = {name: np.asarray(column) for name, column in columns.items()}
        np.savez(file, **arrays)
    elif kind == "parquet":
        _write_parquet(file, columns)
    else:
        _write_csv(file, columns)


def _write_csv(file: BinaryIO, columns: Columns) -> None:
    text = io.TextIOWrapper(file, "utf-8", errors="backslashreplace", newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head for name, column in columns.items() for head in _heads(name, column))
    for part in _parts(columns):
        cells = [_cells(column) for column in part.values()]
        writer.writerows([cell for group in row for cell in group] for row in zip(*cells, strict=True))
    text.detach()


def _heads(name: str, column: Any) -> list[str]:
    return [f"{name}{i}" for i in range(column.shape[1])] if getattr(column, "ndim", 1) == 2 else [name]


def _cells(column: Any) -> list[list[Any]]:
    """The cells of some rows of a column, by row."""
    block = np.asarray(column)
    block = block.reshape(len(block), -1)
    if block.dtype.kind == "f":
        return block.astype(str).tolist()  # the shortest text that is this number again
    if block.dtype.kind == "U":
        return [["'" + cell if cell.startswith(FORMULA) else cell for cell in row] for row in block.tolist()]
    return block.tolist()


def _write_parquet(file: BinaryIO, columns: Columns) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    writer = None
    for part in _parts(columns):
        arrays = {}
        for name, column in part.items():
            block = np.asarray(column)
            if block.dtype.kind == "U":  # bytes of a name that are no text are shown as escapes
                arrays[name] = pa.array([cell.encode("utf-8", "backslashreplace").decode() for cell in block.tolist()])
            elif block.ndim == 2:
                arrays[name] = pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), block.shape[1])
            else:
                arrays[name] = pa.array(block)
        table = pa.table(arrays)
        writer = writer or parquet.ParquetWriter(file, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def _parts(columns: Columns) -> Iterator[dict[str, Any]]:
    count = len(next(iter(columns.values())))
    for start in range(0, count, ROWS):
        yield {name: column[start : start + ROWS] for name, column in columns.items()}


def need_free(file: Path, own: bool = False) -> None:
    """Raises InputError where a file is there already, unless it is one's `own`, or where its folder is not."""
    if file.is_dir() or (file.exists() and not own):
        raise InputError(f"out={file} is there already; delete it or choose another name")
    if not file.parent.is_dir():
        raise InputError(f"out={file}: there is no folder {file.parent}; make it or choose another")


@contextmanager
def new_folder(folder: Path, replace: bool = False) -> Iterator[Path]:
    """A folder to fill, which becomes `folder` once it is whole; nothing is left of one that fails.

    Raises InputError where `folder` is there already, unless it may be replaced, and where it cannot be made.
    """
    if folder.is_symlink() or (folder.exists() and not (replace and folder.is_dir())):
        raise InputError(f"out={folder} is there already; delete it or choose another name")
    if not folder.parent.is_dir():
        raise InputError(f"out={folder}: there is no folder {folder.parent}; make it or choose another")
    partial, before = (folder.with_name(f"{folder.name}.{os.getpid()}.{end}") for end in ("partial", "before"))
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        for path in partial.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        if folder.exists():
            folder.rename(before)
        partial.rename(folder)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}") from None
    finally:
        for left in (partial, before):
            shutil.rmtree(left, ignore_errors=True)
