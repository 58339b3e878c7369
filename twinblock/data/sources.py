"""Where images come from: the built-in sets, folders, tables, archives, Hugging Face data sets."""

import os
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import replace
from glob import glob
from itertools import product
from pathlib import Path
from typing import Literal

from twinblock.core.errors import InputError, nearest
from twinblock.data import Images, torchvision_sets
from twinblock.data import huggingface as hf
from twinblock.data.archives import archives, is_archive, shards
from twinblock.data.columns import image_columns
from twinblock.data.decode import printable
from twinblock.data.endings import ARRAYS, is_image, remedy, unread
from twinblock.data.folders import folder_of_images, listing, metadata
from twinblock.data.forms import Wanted
from twinblock.data.indicators import indicated
from twinblock.data.labels import AUTO, NONE, column_of, labelled_by, no_columns, with_columns, with_labels
from twinblock.data.layout import classes_of, few, said
from twinblock.data.packing import not_of_files, packed
from twinblock.data.portable import is_portable, portable, served
from twinblock.data.server import is_url
from twinblock.data.several import Part, together
from twinblock.data.store import Encoded, cache, digest, say_once
from twinblock.data.tables import LABELS, Table, beginning, facts_of, is_table, listed, read_table

BUILT_IN = ("photodigits", "cifar10", "cifar100", "stl10")
Split = Literal["train", "test"]


def load(
    source: str | Sequence[str],
    root: str | None,
    split: Split,
    size: int | None,
    download: bool,
    labels: str,
    wanted: Wanted,
) -> Images | None:
    """See `twinblock.data.load`."""
    if isinstance(source, str) and (images := _built_in(source, root, split, download)) is not None:
        if column_of(labels):
            raise no_columns(source, labels)
        not_of_files(wanted, str(source))
        return labelled_by(images, labels, wanted.separator, split == "test")
    if isinstance(source, str) and source.startswith("<") and source.endswith(">"):
        if split == "test":
            return None
        raise InputError(f"the run's images were a Python object, {source}; give them again: data=...")
    if is_url(source):
        return _packed_already(str(source), lambda: served(str(source), split), labels, split, wanted)
    if root is not None and not os.path.isdir(os.path.expanduser(root)):
        raise _no_root(root)
    path, videos = _path(source, root) if isinstance(source, str) else "", wanted.fps is not None
    if path and is_portable(path):
        return _packed_already(str(source), lambda: portable(path, split), labels, split, wanted)
    if isinstance(source, str) and is_table(source) and not os.path.isfile(path):
        path = os.path.expanduser(source)  # only its paths begin in the root
    table = _table(source, path, root) if isinstance(source, str) else None
    if table is not None:
        encoded = listed(str(source), table, os.path.expanduser(root) if root else os.path.dirname(path), split)
    elif isinstance(source, str):
        encoded = _encoded(source, root, split, download, labels, videos)
    else:
        encoded = _joined(source, root, split, download, labels, videos)
    images = encoded and packed(encoded, size, wanted)
    if images is None or encoded is None:
        return None
    if encoded.several is not None and images.labels is not None:
        matrix, classes = encoded.several()
        images = indicated(images, matrix[images.labels], classes, encoded.classes_from)
    if table is not None:
        images = with_columns(_labelled_by_table(images, table, labels, split, wanted.separator), table)
    elif labels == AUTO and path and (beside := metadata(path)):
        column = list(beside.columns)[1]
        images = with_labels(images, beside, column, "metadata.csv", wanted.separator, split == "test")
    return labelled_by(images, labels, wanted.separator, split == "test")


def _packed_already(
    source: str, images_of: Callable[[], Images | None], labels: str, split: Split, wanted: Wanted
) -> Images | None:
    """The images of a folder that `twinblock pack` wrote."""
    if column_of(labels):
        raise no_columns(source, labels)
    not_of_files(wanted, source)
    images = images_of()
    return None if images is None else labelled_by(images, labels, wanted.separator, split == "test")


def _built_in(source: str, root: str | None, split: Split, download: bool) -> Images | None:
    """The images of a built-in set; None where it is none."""
    if source not in BUILT_IN:
        return None
    if os.path.isdir(source):
        say_once(f"data source {source} is the built-in set; for the folder of that name here, write ./{source}")
    if source == "photodigits":
        from twinblock.data.photodigits import photodigits

        return photodigits(split)
    if root is not None and not os.path.isdir(os.path.expanduser(root)):  # never made: it may stand in others' configs
        raise _no_root(root)
    folder = Path(root or cache() / source).expanduser()
    if source == "stl10":
        return torchvision_sets.stl10(folder, split, download)
    return torchvision_sets.cifar(source, folder, split, download)


def _no_root(root: str) -> InputError:
    return InputError(f"data.root={root}: there is no such folder; make it, or leave data.root out")


def _path(source: str, root: str | None) -> str:
    return os.path.expanduser(os.path.join(root or "", source))


def _encoded(source: str, root: str | None, split: Split, download: bool, labels: str, videos: bool) -> Encoded | None:
    """The images, and `videos`, of a folder, a file, a pattern or a set on the hub, with the labels that
    `data.labels` asks for.
    """
    path = _path(source, root)
    if is_portable(path) or is_url(source):
        raise InputError(f"data source {source!r} is packed, and cannot be joined with others: pack them together")
    try:
        is_folder = stat.S_ISDIR(os.stat(path).st_mode)
    except PermissionError as error:
        raise InputError(f"data source {source!r} may not be entered ({error.strerror}): ask for access") from error
    except (OSError, ValueError):
        is_folder = False
    if is_folder:
        return _here(source, path, split, column_of(labels), videos)
    if os.path.isfile(path):
        return _file(source, path, split, column_of(labels), videos)
    if re.search(r"[*?[{]", source):
        return _pattern(source, path, split, labels, videos)
    _refuse(source)
    return hf.hub(source, root, split, download, column_of(labels))


def _file(source: str, path: str, split: Split, column: str | None, videos: bool) -> Encoded | None:
    """A file that holds images, or is one."""
    if is_archive(path):
        return archives(source, [path], split, column)
    if path.lower().endswith(".parquet"):
        return hf.parquet(source, Path(path).parent, {"train": [Path(path)]}, split, column)
    if column:
        raise no_columns(source, column)
    if is_image(path, videos) or path.lower().endswith(ARRAYS):
        return _one_file(path, split)
    if ending := unread(path):
        raise InputError(f"data source {source!r}: {ending} files are not read; {remedy([ending])}")
    raise InputError(f"data source {source!r} is a file: give the folder that holds it")


def _refuse(source: str) -> None:
    """Raise where this cannot mean a data set on the Hugging Face hub, `user/name` or `name`."""
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", source, re.ASCII) or is_archive(source) or is_table(source):
        what = "file" if is_archive(source) or is_table(source) or is_image(source) else "folder"
        raise InputError(f"data source {source!r}: there is no such {what}")
    if "/" not in source and (near := nearest(source, BUILT_IN)):
        raise InputError(
            f"unknown data source {source!r}: did you mean {near[0]!r}? Known: {', '.join(BUILT_IN)}, "
            "the path of a folder, or a Hugging Face id such as user/name"
        )


def _table(source: str, path: str, root: str | None) -> Table | None:
    """The table of paths that a source is; None where it is none."""
    if not is_table(source) or not os.path.isfile(path):
        return None
    if path.lower().endswith(".parquet"):
        with hf.readable(source):
            schema = hf.pyarrow(source).read_schema(path)
        if image_columns(schema):
            return None
    return read_table(path)


def _labelled_by_table(images: Images, table: Table, labels: str, split: Split, separator: str | None) -> Images:
    wanted = column_of(labels)
    column = table.need(wanted) if wanted else table.usual(LABELS)
    if column is None or (labels != AUTO and not wanted):
        return images
    return with_labels(images, table, column, f"column {printable(column)}", separator, split == "test")


def _here(source: str, path: str, split: Split, column: str | None, videos: bool) -> Encoded | None:
    """The images of a folder of parquet files, of shards or of image files; InputError where it could be either."""
    if hf.is_saved(path):
        return hf.saved(source, path, split, column)
    try:
        tables = hf.parquet_files(Path(path))
    except OSError as error:
        raise InputError(f"data source {source!r}: cannot list the folder ({error.strerror})") from error
    files = listing(path, videos).files if tables or shards(path) else []
    files = [] if files and files[0].lower().endswith(ARRAYS) else files  # those beside a table may be features
    if not tables and not files and (packs := shards(path)):
        return archives(source, packs, split, column)
    if not tables or (files and not hf.hold_images(source, tables)):  # a table among image files may hold features
        if column:
            raise no_columns(source, column)
        return folder_of_images(source, path, split, videos)
    encoded = hf.parquet(source, Path(path), tables, split, column)
    if encoded and files and not any(isinstance(file, str) for file in encoded.sample()):  # those may be the table's
        table = os.path.relpath(next(iter(tables.values()))[0], path)
        raise InputError(
            f"data source {source!r} holds images in parquet files ({printable(table)}) and image files "
            f"({printable(files[0])}); move one kind to another folder"
        )
    return encoded


def _one_file(path: str, split: str) -> Encoded | None:
    """A single image file, as a set of one."""
    status, name = os.stat(path), os.path.basename(path)
    key = digest("file", name, status.st_size, status.st_mtime_ns, beginning(path))
    items = [(name, path, -1)]
    return Encoded(path, key, 1, lambda: iter(items), lambda: [path]) if split == "train" else None


# ---- several


def _pattern(source: str, path: str, split: Split, labels: str, videos: bool) -> Encoded | None:
    """What a pattern as `photos/*/raw/*.jpg` or `shard-{000..099}.tar` stands for."""
    found, column = [], column_of(labels)
    for name in _expanded(path):
        there = sorted(glob(name, recursive=True))
        if not there:
            raise InputError(f"data source {source!r}: there is no {printable(name)}")
        found += there
    folders = [name for name in found if os.path.isdir(name)]
    files = [name for name in found if not os.path.isdir(name)]
    images = [name for name in files if is_image(name, videos)]
    if folders and not images:
        return _joined(folders, None, split, False, labels, videos)
    if folders:
        raise InputError(
            f"data source {source!r} stands for folders ({few(folders)}) and for files; end it with the files' names, "
            "as **/*.jpg"
        )
    if all(map(is_archive, files)):
        return archives(source, files, split, column)
    if all(name.endswith(".parquet") for name in files):
        return hf.parquet(source, Path(path).parent, hf.by_split(("", Path(name)) for name in files), split, column)
    if column:
        raise no_columns(source, column)
    if left_out := [name for name in files if not is_image(name, videos)]:
        say_once(f"{source}: {len(left_out):,} files are no images and left out: {few(left_out)}")
    if not images:
        raise InputError(f"data source {source!r}: none of {few(files)} is an image")
    return _files(source, images, _fixed(path)) if split == "train" else None


def _expanded(text: str) -> list[str]:
    """`a{00..02}` is a00, a01, a02, and `{a,b}` a and b, as WebDataset has it."""
    parts = re.split(r"\{(\d+\.\.\d+|[^{}]*,[^{}]*)\}", text)
    choices = [[part] if i % 2 == 0 else _choices(part) for i, part in enumerate(parts)]
    return ["".join(one) for one in product(*choices)]


def _choices(text: str) -> list[str]:
    first, dots, last = text.partition("..")
    if not dots or "," in text:
        return text.split(",")
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]


def _fixed(path: str) -> str:
    """The folder that a pattern begins with."""
    return os.path.dirname(path[: re.search(r"[*?[{]", path).start()])  # pyright: ignore[reportOptionalMemberAccess]


def _files(source: str, files: list[str], folder: str) -> Encoded:
    """These image files, with names and classes from this folder on."""
    names = [os.path.relpath(file, folder or ".") for file in files]
    classes = classes_of(source, names)
    number = {name: i for i, name in enumerate(classes)}
    items = [(name, file, number.get(name.split(os.sep, 1)[0], -1)) for name, file in zip(names, files, strict=True)]
    some = files[:: -(-len(files) // 1000)]
    facts = [(name, *facts_of(file)) for name, file in zip(names, files, strict=True)]
    key = digest("files", facts, classes, *map(beginning, some[:: -(-len(some) // 16)]))
    known = tuple(map(printable, classes)) or None
    return Encoded(source, key, len(files), lambda: iter(items), lambda: some, known, said(classes) if known else None)


def _joined(
    sources: Sequence[str], root: str | None, split: Split, download: bool, labels: str, videos: bool
) -> Encoded | None:
    """Several sources, one after the other; None where none has such a split."""
    shown = ", ".join(sources)
    if tables := [one for one in sources if one in BUILT_IN or (is_table(one) and not one.endswith(".parquet"))]:
        raise InputError(f"data={shown}: {tables[0]} stands alone; give folders or archives together")

    def of(split: Split) -> list[Part]:
        found = [(one, _encoded(one, root, split, download, labels, videos)) for one in sources]
        bare = {"classes": None, "classes_from": None, "several": None} if labels == NONE else {}
        return [(one, replace(part, **bare)) for one, part in found if part is not None]

    parts = of(split)
    if not parts:
        return None
    return together(shown, parts, of("train") if split == "test" else parts)
