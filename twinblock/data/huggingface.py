"""Hugging Face data sets, a folder of parquet files or an id on the hub. Needs the extra `twinblock[hf]`."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from twinblock.core.errors import InputError, one_line
from twinblock.data.columns import Columns, agreed, image_columns
from twinblock.data.decode import File, printable
from twinblock.data.indicators import Indicators, of_splits
from twinblock.data.layout import TESTS, begins_with_split
from twinblock.data.store import Encoded, Item, digest
from twinblock.data.tables import facts_of

NUMBERED = 65_536  # so many classes may be numbered; of larger numbers, such as dates, each is a name
ROWS = 100  # read at a time

# Some Arrow tables of a split with these columns, one after the other: all, or a few spread over the split.
Tables = Callable[[str, list[str], bool], Iterable[Any]]


def parquet_files(folder: Path) -> dict[str, list[Path]]:
    """The parquet files at the top and in `data/` by split, which begins a file's name or that of its folder.

    Files of no split are for training where no other are. Empty where the folder is of another kind.
    """
    files: list[tuple[str, Path]] = []
    for place in (folder, folder / "data"):
        names = sorted(name for name in os.listdir(place) if begins_with_split(name)) if place.is_dir() else []
        for inner in ("", *names):
            files += [(inner, file) for file in sorted((place / inner).glob("*.parquet"))]
    return by_split(files)


def by_split(files: Iterable[tuple[str, Path]]) -> dict[str, list[Path]]:
    """Files by the split that begins their name, or that of the folder beside them; those of none are for training,
    where no others are.
    """
    found: dict[str, list[Path]] = {}
    for folder, file in files:
        if not file.name.startswith((".", "metadata")):  # metadata.parquet stands beside image files
            found.setdefault(begins_with_split(file.name) or begins_with_split(folder), []).append(file)
    if nameless := found.pop("", []):
        found.setdefault("train", nameless)
    return found


def hold_images(source: str, files: dict[str, list[Path]]) -> bool:
    """Whether any of these parquet files has a column of images."""
    pq = pyarrow(source)
    with readable(source):
        return any(image_columns(pq.read_schema(path)) for paths in files.values() for path in paths)


def pyarrow(source: str) -> Any:
    try:
        from pyarrow import parquet as pq
    except ImportError as error:
        raise InputError(
            f'data source {source!r} holds parquet files: to read them, pip install "twinblock[hf]"'
        ) from error
    return pq


def parquet(
    source: str, folder: Path, files: dict[str, list[Path]], split: str, label: str | None = None
) -> Encoded | None:
    """The images in the parquet files of a split, labelled by column `label`; None where there is no such split."""
    pq = pyarrow(source)

    def tables(name: str, columns: list[str], few: bool) -> Iterator:
        groups = [(file, i) for file in files[name] for i in range(pq.read_metadata(file).num_row_groups)]
        for path, group in groups[:: 1 + len(groups) // 10] if few else groups:
            with pq.ParquetFile(path, buffer_size=2**20) as file:
                batches = file.iter_batches(ROWS, [group], columns)
                yield from islice(batches, 1 if few else None)

    with readable(source):
        schemas = {name: {str(path): pq.read_schema(path) for path in paths} for name, paths in files.items()}
        counts = {name: sum(pq.read_metadata(path).num_rows for path in paths) for name, paths in files.items()}
        marks = {name: [(path.name, *facts_of(str(path))) for path in paths] for name, paths in files.items()}
    return _encoded(_Set(source, schemas, counts, marks, tables, folder, label), split)


def hub(source: str, root: str | None, split: str, download: bool, label: str | None = None) -> Encoded | None:
    """The images of a split of a data set on the hub; None where there is no such split."""
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"data source {source!r} is neither built in nor a folder here: check its path, or, "
            'to read it from the Hugging Face hub, pip install "twinblock[hf]"'
        ) from error
    return _encoded(_of_datasets(source, _downloaded(datasets, source, root, download), Path(), label), split)


def is_saved(folder: str) -> bool:
    """Whether `save_to_disk` of `datasets` wrote this folder."""
    names = [os.path.join(folder, name) for name in ("dataset_dict.json", "dataset_info.json", "state.json")]
    there = [os.path.isfile(name) for name in names]
    return there[0] or (there[1] and there[2])


def saved(source: str, folder: str, split: str, label: str | None) -> Encoded | None:
    """The images of a split of a data set that `save_to_disk` wrote; None where there is no such split."""
    try:
        import datasets
    except ImportError as error:
        raise InputError(f'data source {source!r} was saved by datasets: pip install "twinblock[hf]"') from error
    try:
        data: Any = datasets.load_from_disk(folder)
    except Exception as error:  # there is no end to what it raises
        raise InputError(f"data source {source!r} cannot be read ({one_line(error)}): save it again") from error
    splits = dict(data) if isinstance(data, dict) else {"train": data}
    return _encoded(_of_datasets(source, splits, Path(folder), label), split)


def _of_datasets(source: str, splits: Any, folder: Path, label: str | None) -> "_Set":
    def tables(name: str, columns: list[str], few: bool) -> Iterator:
        data = splits[name].select_columns(columns).with_format("arrow")
        return (data.select(range(0, len(data), 1 + len(data) // 1000)) if few else data).iter(ROWS)

    schemas = {name: {name: data.features.arrow_schema} for name, data in splits.items()}
    counts = {name: len(data) for name, data in splits.items()}
    marks = {name: data._fingerprint for name, data in splits.items()}
    return _Set(source, schemas, counts, marks, tables, folder, label)


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


@dataclass(frozen=True)
class _Set:
    """Splits by name: the Arrow schema of each file, number of rows, mark of the content, and their tables."""

    source: str
    schemas: dict[str, dict[str, Any]]
    counts: dict[str, int]
    marks: dict[str, Any]
    tables: Tables
    folder: Path
    label: str | None  # the column that was asked for

    def columns(self, name: str) -> Columns:
        return agreed(self.source, self.schemas[name], self.label)

    def labels(self, name: str, few: bool = False) -> Iterator[Any]:
        """The labels as they are written; none where they cannot be used."""
        if label := self.columns(name).label:
            with readable(self.source):
                for table in self.tables(name, [label], few):
                    yield from table.column(label).to_pylist()

    def images(self, name: str) -> int:
        """How many they are: a row may hold several."""
        columns = self.columns(name)
        if not columns.several:
            return self.counts[name]
        with readable(self.source):
            tables = self.tables(name, columns.names()[:1], False)
            return sum(len(cell or ()) for table in tables for cell in table.column(columns.image).to_pylist())


def _encoded(of: _Set, split: str) -> Encoded | None:
    """A split of a set."""
    source, schemas, counts = of.source, of.schemas, of.counts
    others = [name for name in schemas if name not in TESTS]
    train = "train" if "train" in schemas else others[0] if len(others) == 1 else None
    if split == "train":
        if train is None:
            raise InputError(f"data source {source!r} has no training split, but {', '.join(schemas)}")
        name = train
    else:
        tests = [name for name in TESTS if counts.get(name)]
        if not tests:
            return None
        # Some sets publish their test images without labels.
        name = next((name for name in tests if any(map(_is_label, of.labels(name, few=True)))), tests[0])
    if not counts[name]:
        raise InputError(f"data source {source!r}: there are no images in split {name!r}")
    columns = of.columns(name)
    trained = of.columns(train) if train else columns
    if columns.label and trained.label and (columns.text, columns.lists) != (trained.text, trained.lists):
        raise InputError(
            f"data source {source!r}: of its splits {train} and {name} one has text for labels and the other numbers, "
            "or lists; write both alike"
        )
    both = dict.fromkeys((train or name, name))
    names = _numbers_of_names(columns, [lambda one=one: of.labels(one) for one in both])
    classes = columns.classes if names is None else tuple(map(printable, names))

    def number(value: Any) -> int:
        if not _is_label(value):
            return -1
        return value if names is None else names[str(value)]

    def items() -> Iterator[Item]:
        row = 0
        with readable(source):
            for table in of.tables(name, columns.names(), False):
                labels = table.column(columns.label).to_pylist() if columns.label else [None] * len(table)
                for cell, value in zip(table.column(columns.image).to_pylist(), labels, strict=True):
                    for i, image in enumerate(_images(cell, columns)):
                        beside = f" image {i}" if columns.several else ""
                        label = row if columns.lists else number(value)  # of several classes: `_several`
                        yield f"{name} row {row}{beside}", _file(image, of.folder), label
                    row += 1

    def sample() -> Iterator[File]:
        with readable(source):
            for table in of.tables(name, columns.names()[:1], True):
                for cell in table.column(columns.image).to_pylist():
                    yield from (_file(image, of.folder) for image in _images(cell, columns))

    facts = [facts_of(file) for file in sample() if isinstance(file, str)] if columns.paths else []
    key = digest(name, columns.names(), classes, of.marks[name], *facts)
    said = f"column {printable(columns.label)}" if columns.label else None
    several = partial(_several, of, [*both], name) if columns.lists else None
    return Encoded(source, key, of.images(name), items, sample, classes, said, several)


def _several(of: _Set, splits: Sequence[str], name: str) -> Indicators:
    """The classes that the rows of a split list, numbered over these splits."""
    columns = of.columns(name)
    where = f"data source {of.source!r}: column {printable(columns.label or '')}"
    found = of_splits(where, [list(of.labels(split)) for split in splits], columns.classes)
    return found[splits.index(name)]


def _is_label(value: Any) -> bool:
    return value is not None and (isinstance(value, str | list) or value >= 0)


def _numbers_of_names(columns: Columns, splits: Sequence[Callable[[], Iterable[Any]]]) -> dict[str, int] | None:
    """The number of each label that is a name, given the labels of the training split, then of another.

    Numbered as in training; a name that is not there comes after all that are. None: labels are numbers already.
    """
    named = columns.text
    if columns.label and not columns.text and not columns.classes and not columns.lists:
        named = any(value is not None and value >= NUMBERED for labels in splits for value in labels())
    if not named:
        return None
    names: dict[str, int] = {}
    for labels in splits:
        new = {str(value) for value in labels() if _is_label(value)} - names.keys()
        names |= {text: i for i, text in enumerate(sorted(new, key=None if columns.text else int), len(names))}
    return names


def _images(cell: Any, columns: Columns) -> list[Any]:
    """The images in a cell."""
    return (cell or []) if columns.several else [cell]


def _file(cell: Any, folder: Path) -> File:
    """The content of an image, its pixels, or its path where it is stored beside the table."""
    if isinstance(cell, list):
        pixels = np.array(cell)
        if pixels.dtype.kind not in "iu" or pixels.min() < 0 or pixels.max() > 255:
            return ValueError("numbers from 0 to 255 make an image")
        return _channels_last(pixels.astype(np.uint8))
    if isinstance(cell, str):
        return str(folder / cell)
    if not isinstance(cell, dict):
        return cell or b""
    return cell["bytes"] or (str(folder / cell["path"]) if cell.get("path") else b"")


def _channels_last(pixels: np.ndarray) -> File:
    """(h, w, 3) of (h, w), (h, w, c) or (c, h, w) with one channel or three."""
    if pixels.ndim == 3 and pixels.shape[2] not in (1, 3) and pixels.shape[0] in (1, 3):
        pixels = pixels.transpose(1, 2, 0)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        return ValueError(f"of shape {pixels.shape}, which is no image")
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


@contextmanager
def readable(source: str) -> Iterator[None]:
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError) as error:
        raise InputError(f"data source {source!r} cannot be read: {printable(str(error))}") from error
