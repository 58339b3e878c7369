"""Hugging Face data sets, a folder of parquet files or an id on the hub. Needs the extra `twinblock[hf]`."""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from twinblock.core.errors import InputError
from twinblock.data.decode import File, printable
from twinblock.data.store import Encoded, Item, digest, say_once

TESTS = ("test", "validation", "valid", "val")  # names of a held-out split, the preferred one first
IMAGES = ("image", "img", "images", "picture", "photo", "jpg", "jpeg", "png", "webp")  # usual names, best first
LABELS = ("label", "labels", "fine_label", "target", "class", "category", "coarse_label")
NUMBERED = 65_536  # so many classes may be numbered; of larger numbers, such as dates, each is a name
ROWS = 100  # read at a time

# Some Arrow tables of a split with these columns, one after the other: all, or a few spread over the split.
Tables = Callable[[str, list[str], bool], Iterable[Any]]


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are read: `classes` names numbered labels, where known; `text`: labels are names."""

    image: str | None
    label: str | None
    classes: tuple[str, ...] | None
    text: bool
    others: tuple[str, ...] = field(default=(), compare=False)  # more columns that may hold images
    floats: str | None = field(default=None, compare=False)  # a column named as labels are, of floats

    def names(self) -> list[str]:
        return [name for name in (self.image, self.label) if name]


def parquet_files(folder: Path) -> dict[str, list[Path]]:
    """The parquet files at the top and in `data/` by split, which begins a file's name or that of its folder.

    Files of no split are for training where no other are. Empty where the folder is of another kind.
    """
    found: dict[str, list[Path]] = {}
    for place in (folder, folder / "data"):
        names = sorted(name for name in os.listdir(place) if _split(name)) if place.is_dir() else []
        for inner in ("", *names):
            for file in sorted((place / inner).glob("*.parquet")):
                if not file.name.startswith((".", "metadata")):  # metadata.parquet stands beside image files
                    found.setdefault(_split(file.name) or _split(inner), []).append(file)
    if nameless := found.pop("", []):
        found.setdefault("train", nameless)
    return found


def hold_images(source: str, files: dict[str, list[Path]]) -> bool:
    """Whether any of these parquet files has a column of images."""
    pq = _pyarrow(source)
    with _readable(source):
        return any(_image_columns(pq.read_schema(path)) for paths in files.values() for path in paths)


def _pyarrow(source: str) -> Any:
    try:
        from pyarrow import parquet as pq
    except ImportError as error:
        raise InputError(
            f'data source {source!r} holds parquet files: to read them, pip install "twinblock[hf]"'
        ) from error
    return pq


def parquet(source: str, folder: Path, files: dict[str, list[Path]], split: str) -> Encoded | None:
    """The images in the parquet files of a split; None where there is no such split."""
    pq = _pyarrow(source)

    def tables(name: str, columns: list[str], few: bool) -> Iterator:
        groups = [(file, i) for file in files[name] for i in range(pq.read_metadata(file).num_row_groups)]
        for path, group in groups[:: 1 + len(groups) // 10] if few else groups:
            with pq.ParquetFile(path, buffer_size=2**20) as file:
                batches = file.iter_batches(ROWS, [group], columns)
                yield from islice(batches, 1 if few else None)

    with _readable(source):
        schemas = {name: {str(path): pq.read_schema(path) for path in paths} for name, paths in files.items()}
        counts = {name: sum(pq.read_metadata(path).num_rows for path in paths) for name, paths in files.items()}
        marks = {name: [(path.name, *_stat(path)) for path in paths] for name, paths in files.items()}
    return _encoded(source, split, schemas, counts, marks, tables, folder)


def hub(source: str, root: str | None, split: str, download: bool) -> Encoded | None:
    """The images of a split of a data set on the hub; None where there is no such split."""
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"data source {source!r} is neither built in nor a folder here: check its path, or, "
            'to read it from the Hugging Face hub, pip install "twinblock[hf]"'
        ) from error
    splits = _downloaded(datasets, source, root, download)

    def tables(name: str, columns: list[str], few: bool) -> Iterator:
        data = splits[name].select_columns(columns).with_format("arrow")
        return (data.select(range(0, len(data), 1 + len(data) // 1000)) if few else data).iter(ROWS)

    schemas = {name: {name: data.features.arrow_schema} for name, data in splits.items()}
    counts = {name: len(data) for name, data in splits.items()}
    marks = {name: data._fingerprint for name, data in splits.items()}
    return _encoded(source, split, schemas, counts, marks, tables, Path())


def _downloaded(datasets: Any, source: str, root: str | None, download: bool) -> Any:
    from huggingface_hub import HfApi, constants

    problem, offline = None, constants.HF_HUB_OFFLINE
    if download:
        try:
            HfApi().dataset_info(source, timeout=10)
        except Exception as error:  # there is no end to what it raises
            problem = error
    # Without an answer only a local copy is looked for: `datasets` would try the hub for half a minute.
    constants.HF_HUB_OFFLINE = offline or not download or problem is not None
    try:
        return datasets.load_dataset(source, cache_dir=root)
    except Exception as error:
        why = " ".join(printable(f"{problem or error}".replace("\n", " ")).split())[:200]
        raise InputError(
            f"data source {source!r} is neither built in nor a folder here, and the Hugging Face hub does not give it "
            f"({why}); check the path of your folder, or the name"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = offline


def _encoded(
    source: str,
    split: str,
    schemas: dict[str, dict[str, Any]],
    counts: dict[str, int],
    marks: dict[str, Any],
    tables: Tables,
    folder: Path,
) -> Encoded | None:
    """A split, given for each split the Arrow schema of each file, number of rows, mark of its content, and tables."""
    others = [name for name in schemas if name not in TESTS]
    train = "train" if "train" in schemas else others[0] if len(others) == 1 else None

    def values(name: str, few: bool = False) -> Iterator[Any]:
        """The labels as they are written; none where they cannot be used."""
        if label := _agreed(source, schemas[name]).label:
            with _readable(source):
                for table in tables(name, [label], few):
                    yield from table.column(label).to_pylist()

    if split == "train":
        if train is None:
            raise InputError(f"data source {source!r} has no training split, but {', '.join(schemas)}")
        name = train
    else:
        tests = [name for name in TESTS if counts.get(name)]
        if not tests:
            return None
        # Some sets publish their test images without labels.
        name = next((name for name in tests if any(map(_is_label, values(name, few=True)))), tests[0])
    if not counts[name]:
        raise InputError(f"data source {source!r}: there are no images in split {name!r}")
    columns = _agreed(source, schemas[name])
    trained = _agreed(source, schemas[train]) if train else columns
    if columns.label and trained.label and columns.text != trained.text:
        raise InputError(
            f"data source {source!r}: of its splits {train} and {name} one has text for labels and the other numbers; "
            "write both alike"
        )
    both = dict.fromkeys((train or name, name))
    names = _numbers_of_names(columns, [lambda one=one: values(one) for one in both])
    classes = columns.classes if names is None else tuple(map(printable, names))

    def number(value: Any) -> int:
        if not _is_label(value):
            return -1
        return value if names is None else names[str(value)]

    def items() -> Iterator[Item]:
        row = 0
        with _readable(source):
            for table in tables(name, columns.names(), False):
                labels = table.column(columns.label).to_pylist() if columns.label else [None] * len(table)
                for cell, value in zip(table.column(columns.image).to_pylist(), labels, strict=True):
                    yield f"{name} row {row}", _file(cell, folder), number(value)
                    row += 1

    def sample() -> Iterator[File]:
        with _readable(source):
            for table in tables(name, columns.names()[:1], True):
                for cell in table.column(columns.image).to_pylist():
                    yield _file(cell, folder)

    key = digest(name, columns.names(), classes, marks[name])
    return Encoded(source, key, counts[name], items, sample, classes, f"column {printable(columns.label or '')}")


def _is_label(value: Any) -> bool:
    return value is not None and (isinstance(value, str) or value >= 0)


def _numbers_of_names(columns: Columns, splits: Sequence[Callable[[], Iterable[Any]]]) -> dict[str, int] | None:
    """The number of each label that is a name, given the labels of the training split, then of another.

    Numbered as in training; a name that is not there comes after all that are. None: labels are numbers already.
    """
    named = columns.text
    if columns.label and not columns.text and not columns.classes:
        named = any(value is not None and value >= NUMBERED for labels in splits for value in labels())
    if not named:
        return None
    names: dict[str, int] = {}
    for labels in splits:
        new = {str(value) for value in labels() if _is_label(value)} - names.keys()
        names |= {text: i for i, text in enumerate(sorted(new, key=None if columns.text else int), len(names))}
    return names


def _agreed(source: str, schemas: dict[str, Any]) -> Columns:
    """The columns of all files of a split. Raises InputError where they hold no images, or differ."""
    first, *others = schemas
    columns = _columns(schemas[first])
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
        if _columns(schemas[file]) != columns:
            raise InputError(
                f"data source {source!r}: images or labels of {printable(file)} differ in column, type or classes from "
                f"those of {printable(first)}; its columns are {printable(', '.join(schemas[file].names))}; mend or "
                "remove that file"
            )
    return columns


def _columns(schema: Any) -> Columns:
    """By the types that `datasets` writes beside the schema, else by Arrow's types and usual names."""
    from pyarrow import types

    kinds = _kinds(schema)
    plain = {f.name: f.type.value_type if types.is_dictionary(f.type) else f.type for f in schema}
    numbers = [name for name, kind in plain.items() if types.is_integer(kind)]
    text = [
        name
        for name, kind in plain.items()
        if types.is_string(kind) or types.is_large_string(kind) or types.is_boolean(kind)
    ]
    named = [name for name in numbers if kinds.get(name, {}).get("_type") == "ClassLabel"]
    usual = _usual(numbers + text, LABELS)
    label = next(iter([name for name in usual if name in named] + named + usual), None)
    floats = _usual([name for name, kind in plain.items() if types.is_floating(kind)], LABELS) if label is None else []
    classes = kinds.get(label, {}).get("names") if label else None
    images = _image_columns(schema)
    best = _usual(images, IMAGES) or (images if len(images) == 1 else [])
    return Columns(
        best[0] if best else None,
        label,
        tuple(map(printable, classes)) if classes else None,
        label in text,
        tuple(name for name in images if name not in best[:1]),
        floats[0] if floats else None,
    )


def _kinds(schema: Any) -> dict[str, dict]:
    """What `datasets` declares of each column, if it wrote the file."""
    try:
        kinds = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    except (TypeError, KeyError, ValueError):
        kinds = {}
    return {name: kind if isinstance(kind, dict) else {} for name, kind in kinds.items()}


def _image_columns(schema: Any) -> list[str]:
    """The columns that may hold images: those declared so; else structs with bytes, and columns of bytes where there
    are none or they have a usual name.
    """
    from pyarrow import types

    kinds = _kinds(schema)
    if declared := [name for name in schema.names if kinds.get(name, {}).get("_type") == "Image"]:
        return declared
    structs = [f.name for f in schema if types.is_struct(f.type) and f.type.get_field_index("bytes") >= 0]
    binary = [f.name for f in schema if types.is_binary(f.type) or types.is_large_binary(f.type)]
    return structs + (_usual(binary, IMAGES) if structs else binary)


def _usual(names: list[str], usual: tuple[str, ...]) -> list[str]:
    """Those that are usual, in either case of letters; the most usual first."""
    return sorted((name for name in names if name.lower() in usual), key=lambda name: usual.index(name.lower()))


def _file(cell: dict | bytes | None, folder: Path) -> File:
    """The content of an image, or its path where it is stored beside the table."""
    if not isinstance(cell, dict):
        return cell or b""
    return cell["bytes"] or (str(folder / cell["path"]) if cell.get("path") else b"")


def _stat(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _split(name: str) -> str:
    match = re.match(rf"({'|'.join(('train', *TESTS))})(?![a-z])", name.lower())
    return match[1] if match else ""


@contextmanager
def _readable(source: str) -> Iterator[None]:
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError) as error:
        raise InputError(f"data source {source!r} cannot be read: {printable(str(error))}") from error
