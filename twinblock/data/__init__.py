"""Images in memory maps: where they come from (`load`) and how batches leave (`Images.batch`)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor

from twinblock.data.rows import Rows, rows_of

if TYPE_CHECKING:
    from twinblock.data.forms import Wanted

FINGERPRINTED = 64  # images whose pixels are compared when a run goes on

__all__ = ["Images", "Names", "columns_of", "load", "take"]


class Names(Sequence[str]):
    """The names of images, each decoded when it is looked at: a million of them may lie in a mapped file.

    `text` holds all in UTF-8; name i is `text[starts[i] : ends[i]]`. Bytes of a file's name that are no UTF-8 become
    lone surrogates, as `os.fsdecode` has it. `names[rows]` are the names of these rows (slice, list, array, tensor).
    """

    def __init__(self, text: UInt8[np.ndarray, " b"], starts: Int[np.ndarray, " n"], ends: Int[np.ndarray, " n"]):
        self.text, self.starts, self.ends = text, starts, ends

    @classmethod
    def of(cls, names: Iterable[str]) -> "Names":
        """These names, in memory."""
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), np.append(0, ends)[:-1], ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: Any) -> Any:
        i = i if isinstance(i, slice) else np.asarray(i)
        starts, ends = self.starts[i], self.ends[i]
        if np.ndim(starts) == 0:
            return self.text[starts:ends].tobytes().decode("utf-8", "surrogateescape")
        return Names(self.text, starts, ends)

    def __repr__(self) -> str:
        """The first names: `Names('a.png', 'b.png', ... 500)`."""
        shown = ", ".join(map(repr, self[:3]))
        return f"Names({shown}{f', ... {len(self)}' * (len(self) > 3)})"


@dataclass(frozen=True)
class Images:
    """A set of images of one stored size, in an array, a memory map, a file of JPEGs or on a server.

    `rows`: which of the stored ones they are, in order; None: all. The other columns are of the images themselves.
    `aspect` is the original width / height where pixels were squashed, None where they are undistorted.
    An image of label -1 has none. Images of several classes each have `indicators` in place of labels: a row an image,
    a column a class; 1: it is of this class, 0: it is not, -1: not known. `names`: of files, relative to the folder of
    the source; of rows of a table, which row; None where images have none. `skipped` lists (name, reason) of the files
    that could not be read.
    `classes_from` says what the labels are: "top folder: cat, dog", "column label", "the labels given". Images of one
    group, 0 or more, are tested together or not at all; -1: a group of its own. An epoch draws images by `weights`,
    with replacement.
    `check(rows, pixels)` raises InputError where stored images are damaged; `batch` calls it. `kind`: what files they
    are of, as "16-bit TIFF". `parts`: where they are in their files, if they are tiles or frames (`parts.TILES`,
    `parts.FRAMES`); those of one file are a group.
    """

    pixels: np.ndarray | Rows  # (stored, h, w, c), the files' own values: uint8, uint16, int16 or float32; NaN: none
    labels: np.ndarray | None = None  # (n,) int64
    classes: tuple[str, ...] | None = None
    aspect: np.ndarray | None = None  # (n,) float32
    name: str = ""
    names: Names | None = None
    skipped: tuple[tuple[str, str], ...] = ()
    rows: np.ndarray | None = None  # (n,) int64
    classes_from: str | None = None
    check: Callable[[np.ndarray, np.ndarray], None] | None = None
    groups: np.ndarray | None = None  # (n,) int64
    weights: np.ndarray | None = None  # (n,) float64
    kind: str = ""
    parts: np.ndarray | None = None  # (n,) of records
    indicators: np.ndarray | None = None  # (n, c) int8

    @property
    def channels(self) -> int:
        return self.pixels.shape[3]

    @property
    def tiled(self) -> bool:
        """Whether they are tiles of larger images."""
        return self.parts is not None and "top" in (self.parts.dtype.names or ())

    def __repr__(self) -> str:
        """`Images(photos: 500 of 32 x 32, 10 classes)`."""
        height, width = self.pixels.shape[1:3]
        classes = "no labels" if self.labels is None else f"{self.labels.max() + 1} classes"
        if self.indicators is not None:
            classes = f"{self.indicators.shape[1]} classes, several an image"
        return f"Images({self.name or 'unnamed'}: {len(self)} of {width} x {height}, {classes})"

    def __len__(self) -> int:
        return len(self.pixels if self.rows is None else self.rows)

    def fingerprint(self) -> dict[str, Any]:
        """Their number, and a digest: whether they are still those of another time.

        The digest is of labels, names and rows, and of the pixels of a few of them.
        """
        digest = blake2b(digest_size=16)
        names = None if self.names is None else self.names.text
        for column in (self.labels, names, self.rows, self.weights, self.indicators):
            digest.update(b"" if column is None else np.ascontiguousarray(column).data)
        digest.update(self.batch(np.linspace(0, len(self) - 1, min(len(self), FINGERPRINTED)).astype(int)).numpy().data)
        return {"images": len(self), "digest": digest.hexdigest()}

    def batch(self, index: Sequence[int] | np.ndarray | Tensor) -> Shaped[Tensor, "n h w c"]:
        """The images at these places, copied: their own values."""
        index = np.asarray(index, dtype=np.int64)
        rows = index if self.rows is None else self.rows[index]
        pixels = rows_of(self.pixels, rows)
        if self.check is not None:
            self.check(rows, pixels)
        return torch.from_numpy(pixels)

    def soon(self, index: np.ndarray) -> None:
        """Have the images at these places come in the background, where they lie on a server."""
        if isinstance(self.pixels, Rows):
            self.pixels.soon(index if self.rows is None else self.rows[index])

    def aspects(self, index: Sequence[int] | np.ndarray | Tensor) -> Float[Tensor, " n"] | None:
        """`aspect` of the images at these places, as views take it."""
        return None if self.aspect is None else torch.from_numpy(np.take(self.aspect, np.asarray(index)))


def take(images: Images, rows: np.ndarray) -> Images:
    """The images at these places; their pixels stay where they are. Where none of them has a label, there are none."""
    pick = lambda column: None if column is None else column[rows]  # noqa: E731
    names = "labels", "indicators", "aspect", "names", "groups", "weights", "parts"
    columns = {name: pick(getattr(images, name)) for name in names}
    for name in names[:2]:
        column = columns[name]
        if column is not None and not (column >= 0).any():
            columns[name] = None
    return replace(images, rows=rows if images.rows is None else images.rows[rows], **columns)


def columns_of(images: Images, rows: np.ndarray) -> dict[str, Any]:
    """What a table says of these images, as columns: their number, and name, label and class, or classes, where there
    are any; of tiles and frames the name of their file, and where they are in it.
    """
    columns: dict[str, Any] = {"image": rows}
    if images.names is not None:
        columns["name"] = images.names[rows]
    if images.parts is not None and images.names is not None:
        from twinblock.data.parts import file_of

        columns["name"] = [file_of(name) for name in images.names[rows]]
        columns |= {field: images.parts[field][rows] for field in (images.parts.dtype.names or ())[1:]}
    if images.labels is not None:
        columns["label"] = images.labels[rows]
        if images.classes:
            columns["class"] = [images.classes[i] if i >= 0 else "" for i in columns["label"].tolist()]
    if images.indicators is not None:
        from twinblock.data.indicators import named

        columns["classes"] = [named(row, images.classes) for row in images.indicators[rows]]
    return columns


def load(
    source: str | Sequence[str],
    root: str | None = None,
    split: Literal["train", "test"] = "train",
    size: int | None = None,
    download: bool = True,
    labels: str = "auto",
    wanted: "Wanted | None" = None,
) -> Images | None:
    """The images of one split of a source, or of several; None where there is no such split.

    `labels`: the field of `data`; `wanted`: how files are read.
    """
    from twinblock.data.forms import Wanted
    from twinblock.data.sources import load as load_source

    return load_source(source, root, split, size, download, labels, wanted or Wanted())
