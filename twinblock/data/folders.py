"""A folder of image files: what lies in it, its splits and its classes."""

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from twinblock.core.errors import InputError
from twinblock.data import endings
from twinblock.data.archives import is_archive
from twinblock.data.decode import printable
from twinblock.data.endings import counted, is_image, remedy
from twinblock.data.layout import TESTS, both_classes, classes_of, few, few_loose, first_level, role, said
from twinblock.data.store import Encoded, Item, digest, say_once
from twinblock.data.tables import LABELS, Table, beginning, read_table


def folder_of_images(source: str, path: str, split: str, videos: bool = False) -> Encoded | None:
    """The images below a folder, or below its training and test folders where it has them (`_splits`).

    Labels are the names of the first level of folders, where there are at least two. At most a tenth of the images may
    lie beside them, and have no label; where more do, folders are not taken for classes.
    """
    folder, *tests = _splits(source, path, videos)
    if split == "test" and not tests:
        return None
    inside = listing(folder, videos)
    _say_left_out(source, inside)
    if not inside.files:
        raise InputError(f"data source {source!r}: there are no image files in {folder!r}{_instead(folder, inside)}")
    classes = classes_of(source, inside.files)
    if split == "test":
        filled = [(test, inside) for test in tests if (inside := listing(test, videos)).files]
        if not filled:
            return None
        alike = [one for one in filled if set(first_level(one[1].files)) & set(classes)]
        folder, inside = (alike or filled)[0]
        # A class that is not in training keeps a label of its own, so that its images count as missed.
        classes = both_classes(classes, inside.files)
    label = {name: i for i, name in enumerate(classes)}
    below = "" if folder == path else os.path.relpath(folder, path)

    def items() -> Iterator[Item]:
        for file in inside.files:
            name, first = os.path.join(below, file), file.split(os.sep, 1)[0]
            yield name, os.path.join(folder, file), label.get(first, -1)

    some = [os.path.join(folder, file) for file in inside.files[:: -(-len(inside.files) // 1000)]]
    key = digest(inside.key, below, *classes, *map(beginning, some[:: -(-len(some) // 16)]))
    classes_from = said(classes, below) if classes else None
    return Encoded(
        source, key, len(inside.files), items, lambda: some, tuple(map(printable, classes)) or None, classes_from
    )


@dataclass(frozen=True)
class Listing:
    """The image files below a folder in order of name, and what else lies there."""

    files: list[str]
    key: str  # a digest of their names, sizes and times
    runs: list[str]  # folders of trained runs, which are left out
    unread: Counter[str]  # pictures and videos of formats that are not read, by ending


def listing(folder: str, videos: bool = False) -> Listing:
    """What lies below `folder`; `videos` are image files.

    Hidden files are left out. Links are followed, but never to a folder that we are in. A folder or link that
    leads nowhere is listed as a file, so that it is counted as unreadable.
    """
    files, arrays, runs, unread, total = [], [], [], Counter(), blake2b(digest_size=16)
    waiting: list[tuple[str, tuple]] = [("", ())]  # folders, and those above them
    while waiting:
        inner, above = waiting.pop()
        try:
            names = sorted(os.listdir(os.path.join(folder, inner)))
            status = os.stat(os.path.join(folder, inner))
        except OSError:
            files.append(inner)
            continue
        if (here := (status.st_dev, status.st_ino)) in above:
            continue
        if inner and _is_run(names):
            runs.append(inner)
            continue
        if "pixels.u8" in names and "meta.json" in names:  # packed images, of `twinblock pack`
            continue
        folders = []
        for name in names:
            if name.startswith("."):
                continue
            path = f"{inner}{os.sep}{name}" if inner else name
            image = is_image(name, videos)
            try:
                status = os.stat(f"{folder}{os.sep}{path}")
            except OSError:  # a link to nowhere, or to itself
                files.extend([path] if image else [])
                continue
            if stat.S_ISDIR(status.st_mode):
                folders.append((path, (*above, here)))
            elif (image or name.lower().endswith(endings.ARRAYS)) and stat.S_ISREG(status.st_mode):
                (files if image else arrays).append(path)
                total.update(os.fsencode(f"{path}\0{status.st_size} {status.st_mtime_ns}\n"))
            elif ending := endings.unread(name):
                unread[ending] += 1
        waiting.extend(reversed(folders))
    if files and arrays:
        unread[endings.ARRAYS] = len(arrays)
    files = files or arrays
    return Listing(files, digest(total.hexdigest(), len(files)), runs, unread)


def _is_run(names: list[str]) -> bool:
    """Whether a folder with these names in it is one that a training wrote."""
    return "config.yaml" in names and ("metrics.jsonl" in names or "checkpoint" in names)


def _say_left_out(source: str, inside: Listing) -> None:
    if inside.runs:
        say_once(f"{source}: folders of runs hold no data and are left out: {few(inside.runs)}")
    if inside.unread and inside.files:
        say_once(f"{source}: {counted(inside.unread)} are not read; {remedy(inside.unread)}")


def _instead(folder: str, inside: Listing) -> str:
    """What a folder without image files holds, and what to do with it."""
    if inside.unread:
        return f", but {counted(inside.unread)}: {remedy(inside.unread)}"
    deeper = next((str(file) for file in Path(folder).rglob("*.parquet")), None)
    if deeper:
        return f", but {printable(deeper)}: give the folder of its splits"
    other = next((str(file) for file in sorted(Path(folder).rglob("*")) if is_archive(file.name)), None)
    other = other or next((str(file) for file in sorted(Path(folder).glob("*.csv"))), None)
    return f", but {printable(other)}: give that file, data={printable(other)}" if other else ""


def metadata(path: str) -> Table | None:
    """The labels of `metadata.csv`, in the folder or in the folders of its splits, as the imagefolder of Hugging Face
    has it: a column `file_name`, from that folder on, and one of a usual name for labels. None: there are none.
    """
    tops = [name for name in sorted(os.listdir(path)) if role(name)] if os.path.isdir(path) else []
    files, labels, column = [], [], ""
    for top in ("", *tops):
        file = os.path.join(path, top, "metadata.csv")
        if not os.path.isfile(file):
            continue
        table = read_table(file)
        column = table.usual(LABELS) or ""
        if "file_name" in table.columns and column:
            files += [os.path.join(top, name) for name in table.columns["file_name"]]
            labels += table.columns[column]
    return Table("metadata.csv", {"file_name": files, column: labels}) if files else None


def _splits(source: str, path: str, videos: bool) -> list[str]:
    """The folder of the training images, and those that may be the test split, the likeliest first.

    That is `path` itself where no folder in it is named for training, or other images lie beside that one and none is
    named for testing.
    """
    try:
        names = sorted(name for name in os.listdir(path) if not name.startswith("."))
    except OSError as error:
        raise InputError(f"data source {source!r}: cannot list the folder ({error.strerror})") from error
    folders = [name for name in names if os.path.isdir(os.path.join(path, name))]
    roles = {name: found for name in folders if (found := role(name))}
    train = [name for name in roles if roles[name] == "train"]
    tests = [name for name in roles if roles[name] in ("test", "val")]
    tests.sort(key=lambda name: ([*TESTS, name.lower()].index(name.lower()), roles[name] != "test"))
    others = [name for name in folders if train and name not in roles]
    others = [name for name in others if _holds_images(os.path.join(path, name), videos)]
    stray = any(is_image(name, videos) for name in names)
    if not train or not (tests or (not others and (not stray or few_loose(listing(path, videos).files)))):
        return [path]
    train = [name for name in train if name.lower() == "train"] or train
    if len(train) > 1:
        raise InputError(
            f"data source {source!r} has several folders for training ({few(train)}); give one of them as data"
        )
    unused = others + [name for name in roles if name != train[0] and name not in tests]
    if unused or train[0].lower() != "train":
        testing = f", {few(tests)} for testing" if tests else ""
        left_out = f"; {few(unused)} left out, give its path as data to train on it" if unused else ""
        say_once(f"{source}: {printable(train[0])} is for training{testing}{left_out}")
    return [os.path.join(path, name) for name in (*train, *tests)]


def _holds_images(folder: str, videos: bool) -> bool:
    inside = ((inner, names) for inner, folders, names in os.walk(folder) if not _is_run([*folders, *names]))
    return any(is_image(name, videos) for _, names in inside for name in names)
