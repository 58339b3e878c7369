"""Long-tailed and other subsets of labelled images: by published counts, or by lists of indices."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int

from twinblock.config.data import LongTail
from twinblock.core.errors import InputError
from twinblock.core.seeding import hashed


def counts(
    largest: int, classes: int, imbalance: float, kind: Literal["exp", "step", "balanced"] = "exp"
) -> Int[np.ndarray, " c"]:
    """Images of each class, from the most frequent to the rarest.

    `exp`: `floor(largest imbalance^(-c / (C - 1)))`; `step`: `largest` for half of the classes, `largest / imbalance`
    for the others (Cao et al. 2019, LDAM); `balanced`: as many as `exp` has in all, in equal parts, rounded down.
    """
    if classes < 2:
        raise InputError(f"data.longtail needs at least 2 classes; this data has {classes}")
    rank = np.arange(classes)
    exponent = rank / (classes - 1) if kind != "step" else rank >= classes // 2
    # 500 / 10 must not be floored to 49 because a power of 10 was rounded
    sizes = np.floor(largest * float(imbalance) ** -exponent.astype(float) + 1e-9).astype(np.int64)
    return np.full(classes, sizes.sum() // classes) if kind == "balanced" else sizes


def subset(labels: Int[np.ndarray, " n"], spec: LongTail, names: Sequence[str] | None = None) -> Int[np.ndarray, " m"]:
    """Rows of a long-tailed part, in order. Which class is how frequent follows from `split` (0: in order of label).

    Of each class the first so many in an order of the seed: what a rarer class keeps, a more frequent one of the same
    seed keeps too, and so do the balanced twin and `few_shot`. Images without label are left out.
    Raises InputError where a class has too few images, or would have none.
    """
    rows = by_class(labels, spec.seed, len(names or ()))
    have = np.array([len(r) for r in rows])
    shown = [str(i) if not names else names[i] for i in range(len(rows))]
    if not have.all():
        raise InputError(f"data.longtail: class {shown[int(have.argmin())]} has no image; leave it out of the data")
    wanted = counts(spec.largest or int(have.min()), len(rows), spec.imbalance, spec.kind)
    rng = np.random.Generator(np.random.PCG64(hashed("longtail", spec.split)))
    rank = np.arange(len(rows)) if spec.split == 0 else rng.permutation(len(rows))
    for label, rows_wanted in enumerate(wanted[rank]):
        if rows_wanted == 0:
            raise InputError(
                f"data.longtail.imbalance={spec.imbalance:g} leaves class {shown[label]} no image; lower it"
            )
        if rows_wanted > have[label]:
            raise InputError(
                f"data.longtail.largest={spec.largest}: class {shown[label]} should have {rows_wanted} images and "
                f"has {have[label]}; take at most {have.min()}"
            )
    return np.sort(np.concatenate([r[:n] for r, n in zip(rows, wanted[rank], strict=True)]))


def few_shot(labels: Int[np.ndarray, " n"], shots: int, seed: int = 0) -> Int[np.ndarray, " m"]:
    """Rows of `shots` images of each class that has any, in order. Raises InputError where one has fewer."""
    rows = [r for r in by_class(labels, seed) if len(r)]
    fewest = min(len(r) for r in rows)
    if shots < 1 or shots > fewest:
        raise InputError(f"{shots} shots: the smallest class has {fewest} images; ask for 1 to {fewest} of each")
    return np.sort(np.concatenate([r[:shots] for r in rows]))


def by_class(labels: Int[np.ndarray, " n"], seed: int, classes: int = 0) -> list[Int[np.ndarray, " k"]]:
    """The rows of each class, shuffled."""
    rows_of = [np.flatnonzero(labels == label) for label in range(max(classes, int(labels.max()) + 1))]
    return [
        np.random.Generator(np.random.PCG64(hashed("subset", seed, label))).permutation(rows)
        for label, rows in enumerate(rows_of)
    ]


def read_indices(path: str, count: int) -> Int[np.ndarray, " m"]:
    """A list of row numbers: `.npy` of integers, or text with one number a line. Raises InputError unless all fit."""
    where = f"data.indices={path}"
    try:
        file = Path(path).expanduser()
        if file.suffix == ".npy":
            index = np.load(file, mmap_mode="r")  # a header that lies about the size is found out
        else:
            index = np.array([int(word) for word in file.read_text("utf-8").split()], np.int64)
    except OSError as error:
        raise InputError(f"{where}: cannot read the file ({error.strerror or error})") from None
    except (ValueError, EOFError, OverflowError):
        raise InputError(f"{where}: give whole numbers, as .npy or as text with one a line") from None
    if not isinstance(index, np.ndarray) or index.ndim != 1 or index.dtype.kind not in "iu" or not len(index):
        raise InputError(f"{where}: give one row of whole numbers, at least one; this is not it")
    wrong = index[(index < 0) | (index >= count)]
    if len(wrong):
        raise InputError(f"{where}: index {wrong[0]} is out of range; the data has images 0 to {count - 1}")
    return index.astype(np.int64)
