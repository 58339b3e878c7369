"""Where images come from: the built-in sets, a folder of files, a Hugging Face data set."""

import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Literal

from twinblock.core.errors import InputError, nearest
from twinblock.data import Images, torchvision_sets
from twinblock.data import huggingface as hf
from twinblock.data.decode import printable
from twinblock.data.store import Encoded, Item, cache, digest, packed, say_once

LOOSE = 0.1  # a larger share of images beside the folders of a source, and those are no classes
BUILT_IN = ("photodigits", "cifar10", "cifar100", "stl10")
EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k"),
)
UNREAD = {  # pictures of phones, cameras, hospitals and microscopes, drawings and videos: they are counted
    *(".heic", ".heif", ".jxl", ".cr2", ".cr3", ".crw", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2", ".pef", ".srw"),
    *(".dcm", ".dicom", ".nii", ".mha", ".mhd", ".nrrd", ".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".czi", ".lif"),
    *(".nd2", ".lsm", ".vsi", ".oib", ".oif", ".fits", ".fit", ".exr", ".hdr", ".tga", ".psd", ".xcf", ".svg", ".ico"),
    *(".mp4", ".mov", ".avi", ".mkv", ".webm", ".npy", ".npz"),
}
# train, Training, val2017, test_images, unlabeled2017 and so on
SPLIT = re.compile(
    r"(train|training|test|testing|val|valid|validation|unlabell?ed)([-_ ]?(set|data|images?|split))?([-_ ]?\d{4})?",
    re.IGNORECASE,
)


def load(
    source: str, root: str | None, split: Literal["train", "test"], size: int | None, download: bool
) -> Images | None:
    """See `twinblock.data.load`."""
    if source in BUILT_IN and os.path.isdir(source):
        say_once(f"data source {source} is the built-in set; for the folder of that name here, write ./{source}")
    if source.startswith("<") and source.endswith(">"):
        if split == "test":
            return None
        raise InputError(f"the run's images were a Python object, {source}; give them again: data=...")
    if source == "photodigits":
        from twinblock.data.photodigits import photodigits

        return photodigits(split)
    if root is not None and not os.path.isdir(os.path.expanduser(root)):  # never made: it may stand in others' configs
        raise InputError(f"data.root={root}: there is no such folder; make it, or leave data.root out")
    if source in ("cifar10", "cifar100"):
        return torchvision_sets.cifar(source, Path(root or cache() / source).expanduser(), split, download)
    if source == "stl10":
        return torchvision_sets.stl10(Path(root or cache() / source).expanduser(), split, download)
    path = os.path.expanduser(os.path.join(root or "", source))
    try:
        is_folder = stat.S_ISDIR(os.stat(path).st_mode)
    except PermissionError as error:
        raise InputError(f"data source {source!r} may not be entered ({error.strerror}): ask for access") from error
    except (OSError, ValueError):
        is_folder = False
    if not is_folder and os.path.isfile(path) and path.lower().endswith(EXTENSIONS):
        encoded = _one_file(path, split)
    elif not is_folder:
        _refuse(source, path)
        encoded = hf.hub(source, root, split, download)
    else:
        encoded = _here(source, path, split)
    return encoded and packed(encoded, size)


def _refuse(source: str, path: str) -> None:
    """Raise where this cannot mean a data set on the Hugging Face hub, `user/name` or `name`."""
    if os.path.exists(path):
        raise InputError(f"data source {source!r} is a file: give the folder that holds it")
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", source, re.ASCII):
        raise InputError(f"data source {source!r}: there is no such folder")
    if "/" not in source and (near := nearest(source, BUILT_IN)):
        raise InputError(
            f"unknown data source {source!r}: did you mean {near[0]!r}? Known: {', '.join(BUILT_IN)}, "
            "the path of a folder, or a Hugging Face id such as user/name"
        )


def _here(source: str, path: str, split: str) -> Encoded | None:
    """The images of a folder of parquet files, or of image files; InputError where it could be either."""
    try:
        tables = hf.parquet_files(Path(path))
    except OSError as error:
        raise InputError(f"data source {source!r}: cannot list the folder ({error.strerror})") from error
    files = listing(path).files if tables else []
    if not tables or (files and not hf.hold_images(source, tables)):  # a table among image files may hold features
        return _folder(source, path, split)
    encoded = hf.parquet(source, Path(path), tables, split)
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
    key = digest("file", name, status.st_size, status.st_mtime_ns, _beginning(path))
    items = [(name, path, -1)]
    return Encoded(path, key, 1, lambda: iter(items), lambda: [path]) if split == "train" else None


def _folder(source: str, path: str, split: str) -> Encoded | None:
    """The images below a folder, or below its training and test folders where it has them (`_splits`).

    Labels are the names of the first level of folders, where there are at least two. At most a tenth of the images may
    lie beside them, and have no label; where more do, folders are not taken for classes.
    """
    folder, *tests = _splits(source, path)
    if split == "test" and not tests:
        return None
    inside = listing(folder)
    _say_left_out(source, inside)
    if not inside.files:
        raise InputError(f"data source {source!r}: there are no image files in {folder!r}{_instead(folder, inside)}")
    classes = names if len(names := _first_level(inside.files)) > 1 else []
    if classes and all(map(_role, classes)):
        say_once(f"{source}: {_few(classes)} are named as splits and not taken for classes")
        classes = []
    if split == "test":
        filled = [(test, inside) for test in tests if (inside := listing(test)).files]
        if not filled:
            return None
        alike = [one for one in filled if set(_first_level(one[1].files)) & set(classes)]
        folder, inside = (alike or filled)[0]
        # A class that is not in training keeps a label of its own, so that its images count as missed.
        classes = classes + sorted(set(_first_level(inside.files)) - set(classes)) if alike else []
    label = {name: i for i, name in enumerate(classes)}
    below = "" if folder == path else os.path.relpath(folder, path)

    def items() -> Iterator[Item]:
        for file in inside.files:
            name, first = os.path.join(below, file), file.split(os.sep, 1)[0]
            yield name, os.path.join(folder, file), label.get(first, -1)

    some = [os.path.join(folder, file) for file in inside.files[:: -(-len(inside.files) // 1000)]]
    key = digest(inside.key, below, *classes, *map(_beginning, some[:: -(-len(some) // 16)]))
    of = f" of {printable(below)}" if below else ""
    classes_from = f"{len(classes)} top folders{of}: {_few(classes)}"
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


def listing(folder: str) -> Listing:
    """What lies below `folder`.

    Hidden files are left out. Links are followed, but never to a folder that we are in. A folder or link that
    leads nowhere is listed as a file, so that it is counted as unreadable.
    """
    files, runs, unread, total = [], [], Counter(), blake2b(digest_size=16)
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
        folders = []
        for name in names:
            if name.startswith("."):
                continue
            path = f"{inner}{os.sep}{name}" if inner else name
            image = name.lower().endswith(EXTENSIONS)
            try:
                status = os.stat(f"{folder}{os.sep}{path}")
            except OSError:  # a link to nowhere, or to itself
                files.extend([path] if image else [])
                continue
            if stat.S_ISDIR(status.st_mode):
                folders.append((path, (*above, here)))
            elif image and stat.S_ISREG(status.st_mode):
                files.append(path)
                total.update(os.fsencode(f"{path}\0{status.st_size} {status.st_mtime_ns}\n"))
            elif (ending := os.path.splitext(name.lower().removesuffix(".gz"))[1]) in UNREAD:
                unread[ending] += 1
        waiting.extend(reversed(folders))
    return Listing(files, digest(total.hexdigest(), len(files)), runs, unread)


def _is_run(names: list[str]) -> bool:
    """Whether a folder with these names in it is one that a training wrote."""
    return "config.yaml" in names and ("metrics.jsonl" in names or "checkpoint" in names)


def _say_left_out(source: str, inside: Listing) -> None:
    if inside.runs:
        say_once(f"{source}: folders of runs hold no data and are left out: {_few(inside.runs)}")
    if inside.unread and inside.files:
        say_once(f"{source}: {_counted(inside.unread)} are not read; convert them to JPEG or PNG to use them")


def _instead(folder: str, inside: Listing) -> str:
    """What a folder without image files holds, and what to do with it."""
    if inside.unread:
        return f", but {_counted(inside.unread)}: convert them to JPEG or PNG"
    deeper = next((str(file) for file in Path(folder).rglob("*.parquet")), None)
    return f", but {printable(deeper)}: give the folder of its splits" if deeper else ""


def _counted(endings: Counter[str]) -> str:
    return ", ".join(f"{count:,} {ending} files" for ending, count in endings.most_common(3))


def _few(names: list[str]) -> str:
    """The first names, for a line of text."""
    return ", ".join(map(printable, names[:3])) + ", ..." * (len(names) > 3)


def _role(name: str) -> str | None:
    """The split that a folder's name stands for: train, test, val or unlabel; None for all other names."""
    if SPLIT.fullmatch(name) is None:
        return None
    return next(role for role in ("train", "test", "val", "unlabel") if name.lower().startswith(role))


def _splits(source: str, path: str) -> list[str]:
    """The folder of the training images, and those that may be the test split, the likeliest first.

    That is `path` itself where no folder in it is named for training, or other images lie beside that one and none is
    named for testing.
    """
    try:
        names = sorted(name for name in os.listdir(path) if not name.startswith("."))
    except OSError as error:
        raise InputError(f"data source {source!r}: cannot list the folder ({error.strerror})") from error
    folders = [name for name in names if os.path.isdir(os.path.join(path, name))]
    roles = {name: role for name in folders if (role := _role(name))}
    train = [name for name in roles if roles[name] == "train"]
    tests = [name for name in roles if roles[name] in ("test", "val")]
    tests.sort(key=lambda name: ([*hf.TESTS, name.lower()].index(name.lower()), roles[name] != "test"))
    others = (
        [name for name in folders if name not in roles and _holds_images(os.path.join(path, name))] if train else []
    )
    stray = any(name.lower().endswith(EXTENSIONS) for name in names)
    if not train or not (tests or (not others and (not stray or _few_loose(listing(path).files)))):
        return [path]
    train = [name for name in train if name.lower() == "train"] or train
    if len(train) > 1:
        raise InputError(
            f"data source {source!r} has several folders for training ({_few(train)}); give one of them as data"
        )
    unused = others + [name for name in roles if name != train[0] and name not in tests]
    if unused or train[0].lower() != "train":
        testing = f", {_few(tests)} for testing" if tests else ""
        left_out = f"; {_few(unused)} left out, give its path as data to train on it" if unused else ""
        say_once(f"{source}: {printable(train[0])} is for training{testing}{left_out}")
    return [os.path.join(path, name) for name in (*train, *tests)]


def _holds_images(folder: str) -> bool:
    inside = ((inner, names) for inner, folders, names in os.walk(folder) if not _is_run([*folders, *names]))
    return any(name.lower().endswith(EXTENSIONS) for _, names in inside for name in names)


def _first_level(files: list[str]) -> list[str]:
    """The names of the folders that the files lie in; none where too many lie in no folder."""
    return sorted({file.split(os.sep, 1)[0] for file in files if os.sep in file}) if _few_loose(files) else []


def _few_loose(files: list[str]) -> bool:
    return sum(os.sep not in file for file in files) <= LOOSE * len(files)


def _beginning(path: str) -> bytes:
    """Some content, to tell apart files of one name, size and time."""
    try:
        with open(path, "rb") as file:
            return file.read(2**16)
    except OSError:
        return b""
