"""Images in tar and zip files, read where they lie: nothing is unpacked. WebDataset's shards are such tar files."""

import json
import os
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from twinblock.core.errors import InputError, one_line
from twinblock.data import layout
from twinblock.data.decode import File, printable
from twinblock.data.endings import ARCHIVES, is_image
from twinblock.data.indicators import Indicators, of_splits
from twinblock.data.labels import in_order
from twinblock.data.store import Encoded, Item, digest
from twinblock.data.tables import LABELS, beginning, facts_of

LARGEST = 2**31  # bytes of an image that is read
BESIDE = 2**20  # bytes of a label or of a JSON beside an image
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError)
Reader = Callable[[], bytes]
Place = tuple[str, str]  # of a member: its archive, its name there; of a sample: what its members' names begin with


@dataclass
class Samples:
    """What some archives hold, in order."""

    files: list[str]
    images: list[Place] = field(default_factory=list)
    labels: dict[Place, str | list[Any]] = field(default_factory=dict)  # by sample; a list: several classes
    column: str = ""  # where those are from
    other: Counter[str] = field(default_factory=Counter)  # members that are neither, by ending


def is_archive(name: str) -> bool:
    return name.lower().endswith(ARCHIVES)


def shards(folder: str) -> list[str]:
    """The archives of a folder in order of name."""
    return [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if is_archive(name) and name[0] != "."]


def archives(source: str, files: list[str], split: str, column: str | None) -> Encoded | None:
    """The images in tar or zip files, one after the other; None where there is no such split.

    The split begins a shard's name, as `train-000.tar`, or is the name of a folder inside. Labels are what WebDataset
    writes beside an image: the member `NAME.cls`, or a field of `NAME.json`, which `column` chooses; else the top
    folders inside.
    """
    parts = _parts(source, files, column)
    part = parts[split]
    if not part.images:
        if split == "test":
            return None
        held = sum((one.other for one in parts.values()), Counter()).most_common(3)
        what = ", ".join(f"{count} {ending or 'nameless'} files" for ending, count in held)
        raise InputError(f"data source {source!r}: there are no images in it{f', but {what}' if what else ''}")
    if column and not part.column:
        raise InputError(f"data.labels={column}: no JSON in {source} has this field, and no member ends with .{column}")
    several, classes, said = None, [], f"{part.column} beside the images"
    if any(isinstance(label, list) for one in parts.values() for label in one.labels.values()):
        several = partial(_several, source, parts, split)
        label = {place: row for row, place in enumerate(part.images)}
    else:
        classes, text_of, said = _classes(source, parts, split)
        number = {text: i for i, text in enumerate(classes)}
        label = {place: number.get(text_of.get(_sample_of(place), ""), -1) for place in part.images}

    def contents(every: int = 1) -> Iterator[tuple[Place, File]]:
        seen = 0
        for file in part.files:
            for name, size, read in _members(source, file):
                if (file, name) in label:
                    if seen % every == 0:
                        yield (file, name), _content(read, size)
                    seen += 1

    def items() -> Iterator[Item]:
        for (file, name), content in contents():
            yield (name if len(files) == 1 else f"{os.path.basename(file)}/{name}"), content, label[file, name]

    def sample() -> Iterator[File]:
        yield from (content for _, content in contents(-(-len(part.images) // 1000)))

    facts = [(os.path.basename(file), *facts_of(file), beginning(file)) for file in part.files]
    key = digest("archives", facts, split, column, list(label.values()), *classes)
    return Encoded(source, key, len(part.images), items, sample, tuple(map(printable, classes)) or None, said, several)


def _several(source: str, parts: Mapping[str, Samples], split: str) -> Indicators:
    """The classes that are listed beside the images of a split, numbered over it and those for training."""

    def lists(part: Samples) -> list[list[Any] | None]:
        found = [part.labels.get(_sample_of(place)) for place in part.images]
        return [[one] if isinstance(one, str) else one for one in found]

    splits = [*dict.fromkeys(("train", split))]
    where = f"data source {source!r}: {parts[split].column}"
    return of_splits(where, [lists(parts[name]) for name in splits])[splits.index(split)]


def _classes(source: str, parts: Mapping[str, Samples], split: str) -> tuple[list[str], Mapping[Place, str], str]:
    """The classes of a split, the text that labels each sample, and where they come from."""
    part = parts[split]
    if part.column:
        train, own = ({key: str(text) for key, text in one.labels.items()} for one in (parts["train"], part))
        known = in_order(set(train.values()))
        return known + in_order(set(own.values()) - set(known)), own, f"{part.column} beside the images"
    inside, below = {}, ""
    for name, one in parts.items():
        root, inside[name] = layout.rooted([name for _, name in one.images])
        below = root if name == split else below
    classes = layout.classes_of(source, inside["train"])
    if split == "test":
        classes = layout.both_classes(classes, inside["test"])
    tops = [file.partition("/")[0] if "/" in file else "" for file in inside[split]]
    return classes, dict(zip(map(_sample_of, part.images), tops, strict=True)), layout.said(classes, below)


def _parts(source: str, files: list[str], column: str | None) -> dict[str, Samples]:
    """What is for training and what for testing."""
    by_name: dict[str, list[str]] = {}
    for file in files:
        by_name.setdefault(layout.begins_with_split(os.path.basename(file)), []).append(file)
    tests = next((by_name[name] for name in layout.TESTS if name in by_name), [])
    if "train" in by_name and tests:
        return {"train": _samples(source, by_name["train"], column), "test": _samples(source, tests, column)}
    whole = _samples(source, files, column)
    inside = layout.rooted([name for _, name in whole.images])[1]
    split_of = layout.by_split(source, inside)
    return {
        split: replace(whole, images=[place for place, one in zip(whole.images, split_of, strict=True) if one == split])
        for split in ("train", "test")
    }


def _samples(source: str, files: list[str], column: str | None) -> Samples:
    """What the archives hold. `column`: the label's ending, or its field in a JSON; None: `.cls`, or a usual one."""
    found = Samples(files)
    wanted = [column] if column else [*LABELS, "cls"]
    for file in files:
        for name, size, read in _members(source, file):
            sample = _sample_of((file, name))
            ending = name[len(sample[1]) :].lower()
            if is_image(name):
                found.images.append((file, name))
            elif ending == f".{column or 'cls'}":
                found.labels[sample] = _beside(read, size).decode("utf-8", "replace").strip()
                found.column = ending
            elif ending == ".json":
                fields = _fields(_beside(read, size))
                if (key := next((key for key in wanted if key in fields), None)) and found.column[:1] != ".":
                    found.labels[sample] = _label(fields[key])
                    found.column = f"{key} of the JSON"
            else:
                found.other[ending] += 1
    found.labels = {key: label for key, label in found.labels.items() if label != ""}
    return found


def _sample_of(place: Place) -> Place:
    """What WebDataset calls a sample: a member's name up to the first dot of its last part."""
    folder, slash, last = place[1].rpartition("/")
    return place[0], f"{folder}{slash}{last.partition('.')[0]}"


def _fields(content: bytes) -> dict:
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _label(value: object) -> str | list[Any]:
    """A class, or the classes in a list; an empty text for all else."""
    if isinstance(value, list) and all(map(_is_class, value)):
        return [one.strip() if isinstance(one, str) else one for one in value]
    return str(value).strip() if _is_class(value) else ""


def _is_class(value: object) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _content(read: Reader, size: int) -> File:
    """The content of a member, or why it cannot be read."""
    if size > LARGEST:
        return ValueError(f"of {size:,} bytes")
    try:
        return read()
    except (*DAMAGED, NotImplementedError) as error:  # zipfile's for a compression it lacks, as Deflate64 of Windows
        return error


def _beside(read: Reader, size: int) -> bytes:
    """A label or a JSON; empty where it is too large or cannot be read."""
    content = _content(read, size) if size <= BESIDE else b""
    return content if isinstance(content, bytes) else b""


def _members(source: str, file: str) -> Iterator[tuple[str, int, Reader]]:
    """Name and size of the files in an archive, in order, and what reads each while it is the last.

    Links, folders, hidden files and what macOS adds are left out.
    """
    with _readable(source, file):
        for name, size, read in _zipped(file) if file.lower().endswith(".zip") else _tarred(file):
            name = name.removeprefix("./")
            if not any(part.startswith(".") or part == "__MACOSX" for part in name.split("/")):
                yield name, size, read


def _tarred(file: str) -> Iterator[tuple[str, int, Reader]]:
    with tarfile.open(file, "r:*") as archive:
        for member in archive:
            archive.members = []  # type: ignore[assignment] - a million of them need not be kept
            if member.isreg():
                yield member.name, member.size, lambda member=member: archive.extractfile(member).read()  # type: ignore


def _zipped(file: str) -> Iterator[tuple[str, int, Reader]]:
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.flag_bits & 1:
                raise RuntimeError("it asks for a password")
            if not member.is_dir():
                yield member.filename, member.file_size, lambda member=member: archive.read(member)


@contextmanager
def _readable(source: str, file: str) -> Iterator[None]:
    try:
        yield
    except (*DAMAGED, RuntimeError) as error:
        why = printable(one_line(getattr(error, "strerror", None) or error))
        raise InputError(f"data source {source!r}: {file} cannot be read ({why}); download or pack it again") from error
