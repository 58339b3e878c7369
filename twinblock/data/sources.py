"""Where images come from: the built-in sets, a folder of files, a Hugging Face data set."""

import os
import re
import socket
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock

from twinblock.core.errors import InputError, nearest
from twinblock.data import Images
from twinblock.data import huggingface as hf
from twinblock.data.decode import printable
from twinblock.data.store import Encoded, Item, build, cache, digest, finish, packed, read

LOOSE = 0.1  # a larger share of images beside the folders of a source, and those are no classes
BUILT_IN = ("photodigits", "cifar10", "cifar100", "stl10")
EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k"),
)


def load(
    source: str, root: str | None, split: Literal["train", "test"], size: int | None, download: bool
) -> Images | None:
    """See `twinblock.data.load`."""
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
        return _cifar(source, Path(root or cache() / source).expanduser(), split, download)
    if source == "stl10":
        return _stl10(Path(root or cache() / source).expanduser(), split, download)
    path = os.path.expanduser(os.path.join(root or "", source))
    if not os.path.isdir(path):
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


# ---- a folder


def _here(source: str, path: str, split: str) -> Encoded | None:
    """The images of a folder of parquet files, or of image files; InputError where it could be either."""
    tables = hf.parquet_files(Path(path))
    files = listing(path)[0] if tables else []
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


def _folder(source: str, path: str, split: str) -> Encoded | None:
    """The images below a folder, or below its `train` and `test` or `val` folders where it has them.

    Labels are the names of the first level of folders, where there are at least two. At most a tenth of the images may
    lie beside them, and have no label; where more do, folders are not taken for classes.
    """
    folder, *tests = _split_folders(source, path)
    if split == "test" and not tests:
        return None
    files, key = listing(folder)
    if not files:
        deeper = next((str(file) for file in Path(folder).rglob("*.parquet")), None)
        hint = f", but {printable(deeper)}: give the folder of its splits" if deeper else ""
        raise InputError(f"data source {source!r}: there are no image files in {folder!r}{hint}")
    classes = names if len(names := _first_level(files)) > 1 else []
    if split == "test":
        found = [(test, *inside) for test in tests if (inside := listing(test))[0]]
        if not found:
            return None
        alike = [one for one in found if set(_first_level(one[1])) & set(classes)]
        folder, files, key = (alike or found)[0]
        # A class that is not in training keeps a label of its own, so that its images count as missed.
        classes = classes + sorted(set(_first_level(files)) - set(classes)) if alike else []
    label = {name: i for i, name in enumerate(classes)}
    below = "" if folder == path else os.path.relpath(folder, path)

    def items() -> Iterator[Item]:
        for file in files:
            name, first = os.path.join(below, file), file.split(os.sep, 1)[0]
            yield name, os.path.join(folder, file), label.get(first, -1)

    some = [os.path.join(folder, file) for file in files[:: -(-len(files) // 1000)]]
    key = digest(key, below, *classes, *map(_beginning, some[:: -(-len(some) // 16)]))
    return Encoded(source, key, len(files), items, lambda: some, tuple(map(printable, classes)) or None)


def listing(folder: str) -> tuple[list[str], str]:
    """The image files below `folder` in order of name, and a digest of their names, sizes and times.

    Hidden files are left out. Links are followed, but never to a folder that we are in. A folder or link that
    leads nowhere is listed as a file, so that it is counted as unreadable.
    """
    found, total = [], blake2b(digest_size=16)
    waiting: list[tuple[str, tuple]] = [("", ())]  # folders, and those above them
    while waiting:
        inner, above = waiting.pop()
        try:
            names = sorted(os.listdir(os.path.join(folder, inner)))
            status = os.stat(os.path.join(folder, inner))
        except OSError:
            found.append(inner)
            continue
        if (here := (status.st_dev, status.st_ino)) in above:
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
                found.extend([path] if image else [])
                continue
            if stat.S_ISDIR(status.st_mode):
                folders.append((path, (*above, here)))
            elif image and stat.S_ISREG(status.st_mode):
                found.append(path)
                total.update(os.fsencode(f"{path}\0{status.st_size} {status.st_mtime_ns}\n"))
        waiting.extend(reversed(folders))
    return found, digest(total.hexdigest(), len(found))


def _split_folders(source: str, path: str) -> list[str]:
    """The folder of the training images, and those that may be the test split."""
    try:
        names = [name for name in os.listdir(path) if not name.startswith(".")]
    except OSError as error:
        raise InputError(f"data source {source!r}: cannot list the folder ({error.strerror})") from error
    folders = [name for name in names if os.path.isdir(os.path.join(path, name))]
    inner = {name.lower(): os.path.join(path, name) for name in folders}
    tests = [inner[name] for name in hf.TESTS if name in inner]
    stray = any(name.lower().endswith(EXTENSIONS) for name in names)
    alone = len(folders) == 1 and (not stray or _few_loose(listing(path)[0]))
    return [inner["train"], *tests] if "train" in inner and (tests or alone) else [path]


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


# ---- torchvision's sets


def _cifar(source: str, root: Path, split: str, download: bool) -> Images:
    from torchvision.datasets import CIFAR10, CIFAR100

    kind = {"cifar10": CIFAR10, "cifar100": CIFAR100}[source]
    data = _official(source, kind, root, download, train=split == "train")
    pixels = np.ascontiguousarray(data.data)
    return Images(pixels, np.asarray(data.targets, np.int64), tuple(data.classes), name=source)


def _stl10(root: Path, split: str, download: bool) -> Images:
    """For training the 5 000 labelled images and then the 100 000 without."""
    from torchvision.datasets import STL10

    folder = root / STL10.base_folder
    files = [folder / f"{part}_X.bin" for part in {"train": ("train", "unlabeled"), "test": ("test",)}[split]]
    labels, names = folder / f"{split}_y.bin", folder / STL10.class_names_file
    if not all(file.is_file() for file in (*files, labels)):
        _official("stl10", STL10, root, download, split="test")
    key = digest("stl10", [(one.st_size, one.st_mtime_ns) for one in map(os.stat, (*files, labels))])
    store, classes = cache() / f"{key}-stl10", tuple(names.read_text().split()) if names.is_file() else None

    def write(temporary: Path) -> None:
        _official("stl10", STL10, root, download, split="test")
        known = np.fromfile(labels, np.uint8).astype(np.int64) - 1
        count = 0
        with open(temporary / "pixels.u8", "wb") as out:
            for file in files:
                planes = np.memmap(file, np.uint8, "r").reshape(-1, 3, 96, 96)  # columns before rows
                for start in range(0, len(planes), 1000):
                    out.write(planes[start : start + 1000].transpose(0, 3, 2, 1).tobytes())
                count += len(planes)
        known = np.pad(known, (0, count - len(known)), constant_values=-1)
        finish(temporary, (count, 96, 96, 3), known, np.ones(count), [])

    if (images := read(store, "stl10", classes)) is None:
        build(store, write)
        images = read(store, "stl10", classes)
    assert images is not None
    return images


def _official(source: str, kind: Any, root: Path, download: bool, **split) -> Any:
    """torchvision's data set, which opens its files, pickles even, only when their md5 sums are official."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's, about old pickles
            try:
                return kind(root, download=False, **split)
            except RuntimeError:
                if not download:
                    raise
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / f"{source}.lock"), _patience(20):  # one process downloads, the others find it there
                return kind(root, download=True, **split)
    except (RuntimeError, OSError, EOFError) as error:
        tried = f" and the download failed ({printable(str(error))})" if download else ""
        raise InputError(
            f"{source}: {_problem(kind, root)}{tried}: unpack the official {kind.filename} into {root}, "
            "or give the folder that holds it as data.root"
        ) from error


def _problem(kind: Any, root: Path) -> str:
    from torchvision.datasets.utils import check_integrity

    meta = [(kind.meta["filename"], kind.meta["md5"])] if hasattr(kind, "meta") else []
    for name, md5 in (*kind.train_list, *kind.test_list, *meta):
        file = root / kind.base_folder / name
        if not check_integrity(file, md5):
            return f"{file} is not the official file (its md5 differs)" if file.exists() else f"{file} is missing"
    return f"{root} cannot be read"


@contextmanager
def _patience(seconds: int) -> Iterator[None]:
    """A time limit on each wait for the network: a firewall that never answers would hold us for minutes."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
