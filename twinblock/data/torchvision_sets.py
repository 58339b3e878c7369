"""The data sets that torchvision knows: CIFAR-10, CIFAR-100 and STL-10."""

import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from twinblock.core.errors import InputError
from twinblock.data import Images
from twinblock.data.decode import printable
from twinblock.data.locks import locked
from twinblock.data.store import Columns, Pixels, build, cache, digest, finish, read


def cifar(source: str, root: Path, split: str, download: bool) -> Images:
    from torchvision.datasets import CIFAR10, CIFAR100

    kind = {"cifar10": CIFAR10, "cifar100": CIFAR100}[source]
    data = _official(source, kind, root, download, train=split == "train")
    pixels = np.ascontiguousarray(data.data)
    return Images(pixels, np.asarray(data.targets, np.int64), tuple(data.classes), name=source)


def stl10(root: Path, split: str, download: bool) -> Images:
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
        labelled = np.fromfile(labels, np.uint8).astype(np.int64) - 1
        count = 0
        with Pixels(temporary) as out:
            for file in files:
                planes = np.memmap(file, np.uint8, "r").reshape(-1, 3, 96, 96)  # columns before rows
                for start in range(0, len(planes), 1000):
                    out.write(planes[start : start + 1000].transpose(0, 3, 2, 1))
                count += len(planes)
        labelled = np.pad(labelled, (0, count - len(labelled)), constant_values=-1)
        finish(temporary, (count, 96, 96, 3), Columns(labelled, np.ones(count), out.sums), source="stl10")

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
            with locked(root / f"{source}.lock"), _patience(20):  # one process downloads, the others find it there
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
