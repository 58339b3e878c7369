"""Images that a caller holds as a Python object: an array, a tensor, a list of files, a torch data set."""

import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeGuard
from uuid import uuid4

import numpy as np
import torch
from PIL import Image

from twinblock.core.errors import InputError, first_line
from twinblock.data import Images, endings
from twinblock.data.decode import printable, quiet, rgb
from twinblock.data.forms import Wanted
from twinblock.data.indicators import are_several, indicated, of_values
from twinblock.data.packing import not_of_files, packed
from twinblock.data.readers import MOST_CHANNELS, channels_last
from twinblock.data.store import Encoded, Item, cache, digest

log = logging.getLogger(__name__)

SAMPLED = 16  # items of a data set whose size decides how all are stored
CONVERTED = 2**26  # values of floats that are looked at at a time
HOLDERS = (*endings.ARCHIVES, *endings.TABLES, ".parquet")
CLASSES = 65_536  # labels are numbers below this
LAYOUTS = "(n, height, width, channels), (n, channels, height, width) or grey (n, height, width)"


def is_object(given: Any) -> bool:
    """Whether `data=` holds images in Python, and no name of a source, no path and no fields of a config."""
    return given is not None and not isinstance(given, str | os.PathLike | Mapping) and not _are_sources(given)


def _are_sources(given: Any) -> bool:
    """Whether this lists folders, archives or tables, and not image files."""
    paths = isinstance(given, list | tuple) and bool(given) and all(map(_is_path, given))
    return paths and any(os.path.isdir(one) or str(one).lower().endswith(HOLDERS) for one in given)


def images_from(given: Any, size: int | None = None, labels: Any = None, wanted: Wanted = Wanted()) -> Images:  # noqa: B008 - frozen
    """The images that a Python object holds.

    `given`, or a pair `(given, labels)`, is one of

    - `Images`: returned as they are.
    - A NumPy array or torch tensor (n, h, w, c), (n, c, h, w), or grey (n, h, w), with one channel or none. uint8,
      uint16, int16 or floats; NaN stands for no value. Bytes of grey become three equal channels. Pixels of
      (n, h, w, c) are used in place.
    - A list or tuple of paths of image files. They are decoded once into the cache; unreadable ones are left out.
    - A map-style torch `Dataset`: anything with `__len__` and `__getitem__`. An item is an image (PIL, array, tensor),
      or (image, label). Each is read once, in every process of a run, into a file of the cache that lasts as long as
      the process. `classes`, where the data set has them, name its labels. A transform that draws at random draws once.

    `size`: side of a view in pixels; large files and items of mixed sizes are stored accordingly. `wanted`: channels of
    an image, where they are not taken as they are, and how files are read.
    `labels`: of each image a number from 0 on, or -1 for none; or its class as text. Of several classes an image: a
    list of them for each, or an array with a column a class, of 0, 1 and -1 (not known).
    Raises InputError, one line, for everything else.
    """
    if labels is None and _is_pair(given):
        given, labels = given
    if isinstance(given, Images):
        return given if labels is None else _with_labels(given, labels, None, describe(given))
    name = describe(given)
    if _is_array(given):
        not_of_files(wanted, f"data={name}")
        images = Images(_pixels(given, name, wanted.channels), name=name)
        return images if labels is None else _with_labels(images, labels, None, name)
    if isinstance(given, list | tuple) and given and all(map(_is_path, given)):
        return _files([os.fspath(path) for path in given], size, labels, name, wanted)
    not_of_files(wanted, f"data={name}")
    if not hasattr(given, "__len__") or not hasattr(given, "__getitem__"):
        hint = "; give its .dataset" if hasattr(given, "dataset") else ""
        raise InputError(
            f"data={name} gives no image by its number{hint or ' (no __len__ and __getitem__)'}: give an array or "
            "tensor, a list of paths, or a map-style data set"
        )
    return _dataset(given, size, labels, name, wanted)


def describe(given: Any) -> str:
    """What a run's config says of a Python object: `<array of 500 images>`, `<dataset birds.Birds of 500 images>`."""
    given = given[0] if _is_pair(given) else given
    kind = f"{type(given).__module__}.{type(given).__qualname__}"
    if isinstance(given, np.ndarray | torch.Tensor):
        what, kind = "images", "array" if isinstance(given, np.ndarray) else "tensor"
    elif isinstance(given, Images):
        what, kind = "images", printable(given.name).strip("<>") or "images"
    elif isinstance(given, list | tuple):
        what, kind = "files" if given and all(map(_is_path, given)) else "images", type(given).__name__
    else:
        what, kind = "images", f"dataset {kind}"
    try:
        return f"<{kind} of {len(given)} {what}>"
    except Exception:  # a tensor without axes, a data set without length
        return f"<{kind}>"


def _is_pair(given: Any) -> bool:
    """Whether this is (images, labels), and not a tuple of two files or two images."""
    return isinstance(given, tuple) and len(given) == 2 and not isinstance(given[0], str | os.PathLike | Image.Image)


def _is_path(value: Any) -> bool:
    return isinstance(value, str | os.PathLike)


def _is_array(value: Any) -> TypeGuard[Any]:
    return isinstance(value, np.ndarray | torch.Tensor)


# ---- arrays and tensors


def _pixels(given: Any, name: str, channels: int | None) -> np.ndarray:
    """(n, h, w, c) of a stack of images."""
    if given.ndim not in (3, 4) or (given.ndim == 3 and given.shape[-1] in (3, 4)):
        one = "; one image needs an axis more, image[None]" if given.ndim == 3 else ""
        raise InputError(f"data={name}: its shape is {tuple(given.shape)}; give {LAYOUTS}{one}")
    if 0 in given.shape:
        raise InputError(f"data={name}: its shape is {tuple(given.shape)}: it holds no pixels")
    return _pictures(_with_channels(_numbers(given, f"data={name}"), f"data={name}"), channels)


def _numbers(given: Any, where: str, eight: bool | None = None) -> np.ndarray:
    """The values as one of the types that are stored: floats become bytes where they are 255ths, which is exact, else
    float32. `eight` False: never bytes.
    """
    if isinstance(given, torch.Tensor):
        given = given.detach().cpu().resolve_conj().resolve_neg()
        given = (given.float() if given.dtype == torch.bfloat16 else given).numpy()
    if given.dtype.kind == "f":
        floats = given.astype(np.float32, copy=False)
        return floats if eight is False or not _of_bytes(floats) else np.rint(floats * 255).astype(np.uint8)
    if given.dtype.name not in ("uint8", "uint16", "int16"):
        raise InputError(f"{where}: values are {given.dtype}; give uint8, uint16, int16 or floats")
    return given


def _of_bytes(floats: np.ndarray) -> bool:
    """Whether all values are 0/255, 1/255, ..., 255/255, as `ToTensor` makes them."""
    if not (floats.size and floats.flat[0] >= 0):
        return False
    for part in np.array_split(floats, max(1, floats.size // CONVERTED)):
        levels = np.rint(part * 255)
        if not ((part >= 0) & (part <= 1) & (levels / np.float32(255) == part)).all():
            return False
    return True


def _with_channels(stack: np.ndarray, where: str) -> np.ndarray:
    """(n, h, w, c) of images with their channels last, first, or with none."""
    if stack.ndim == 3:
        return stack[..., None]
    ends = stack.shape[1], stack.shape[3]
    if min(ends) > MOST_CHANNELS:
        raise InputError(f"{where}: the shape of an image is {stack.shape[1:]}; give {MOST_CHANNELS} channels at most")
    try:
        return np.ascontiguousarray(channels_last(stack))
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None


def _pictures(stack: np.ndarray, channels: int | None) -> np.ndarray:
    """Bytes of grey as three equal channels, unless one is asked for."""
    grey = stack.dtype == np.uint8 and stack.shape[3] == 1 and channels in (None, 3)
    return np.ascontiguousarray(np.broadcast_to(stack, (*stack.shape[:3], 3))) if grey else stack


def _of_pil(image: Image.Image) -> np.ndarray:
    """RGB of a picture of 8 bits, else its values."""
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        return values.astype(np.uint16 if image.mode.startswith("I;16") else np.float32)
    with quiet():
        return np.asarray(rgb(image))


# ---- a list of files


def _files(paths: list[str | bytes], size: int | None, labels: Any, name: str, wanted: Wanted) -> Images:
    files = [os.fsdecode(path) for path in paths]
    several = labels is not None and are_several(labels)
    if labels is None or several:  # of several classes the row is packed, since files may be left out
        numbers, classes = range(len(files)) if several else [-1] * len(files), None
    else:
        numbers, classes = _numbered(labels, len(files), None, name)
    facts = [(os.path.abspath(file), *_stat(file)) for file in files]
    some = files[:: -(-len(files) // 1000)]

    def items() -> Iterator[Item]:
        yield from ((file, os.path.expanduser(file), int(number)) for file, number in zip(files, numbers, strict=True))

    key = digest("files", facts, [int(number) for number in numbers])
    images = packed(
        Encoded(name, key, len(files), items, lambda: [*map(os.path.expanduser, some)], classes, "the labels given"),
        size,
        wanted,
    )
    if not several or images.labels is None:
        return images
    matrix, named = of_values(labels, len(files), None, name)
    return indicated(images, matrix[images.labels], named, "the labels given")


def _stat(file: str) -> tuple[int, int]:
    try:
        status = os.stat(os.path.expanduser(file))
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


# ---- a data set


def _dataset(data: Any, size: int | None, labels: Any, name: str, wanted: Wanted) -> Images:
    """The items of a data set in a store without a name: its space is free again when the process ends."""
    count = len(data)
    if count == 0:
        raise InputError(f"data={name} is empty")
    reader = _Reader(data, name)
    early = {
        i: reader.read(i) for i in dict.fromkeys(np.linspace(0, count - 1, min(count, SAMPLED)).astype(int).tolist())
    }

    def items() -> Iterator[Item]:
        for i in range(count):
            yield f"item {i}", early.pop(i) if i in early else reader.read(i), -1

    key = f"object-{uuid4().hex}"
    images = packed(Encoded(name, key, count, items, lambda: list(early.values())), size, wanted)
    for folder in cache().glob(f"{key}-*"):  # the mapped pixels stay until nobody uses them, even after a kill
        shutil.rmtree(folder, ignore_errors=True) if folder.is_dir() else folder.unlink(missing_ok=True)
    images = replace(images, names=None)
    if labels is None:
        given = [reader.labels[i] for i in range(count)]
        labels = None if all(label is None for label in given) else given
    return images if labels is None else _with_labels(images, labels, getattr(data, "classes", None), name)


class _Reader:
    """Items of a data set as arrays (h, w, c); their labels are kept."""

    def __init__(self, data: Any, name: str):
        self.data, self.name = data, name
        self.labels: dict[int, Any] = {}
        self.first: tuple[int, str, int] | None = None  # channels and type of the first item, and its number
        self.eight = True  # whether floats may be bytes

    def read(self, i: int) -> np.ndarray:
        """(h, w, c) of item i; grey bytes are three equal channels."""
        try:
            item = self.data[i]
        except Exception as error:  # code of others raises anything
            raise InputError(
                f"data={self.name}: item {i} raises {type(error).__name__} ({first_line(error)})"
            ) from error
        is_pair = isinstance(item, tuple | list) and len(item) == 2
        image, label = item if is_pair else (item, None)
        where = f"data={self.name}: item {i}"
        if not isinstance(image, Image.Image) and not _is_array(image):
            raise InputError(f"{where} is {_kind(item)}; give an image (PIL, array, tensor) or (image, label)")
        self.labels[i] = _label(label, item, where)
        if isinstance(image, Image.Image):
            image = _of_pil(image)
        if image.ndim not in (2, 3) or 0 in image.shape:
            raise InputError(
                f"{where} is {_kind(item)}; give an image of (height, width, channels) or (channels, height, width)"
            )
        where = f"{where} ({_kind(item)})"
        pixels = _pictures(_with_channels(_numbers(image, where, self.eight)[None], where), None)[0]
        self.eight = self.eight and pixels.dtype == np.uint8
        self._alike(pixels, i, where)
        return pixels

    def _alike(self, pixels: np.ndarray, i: int, where: str) -> None:
        kind = pixels.shape[2], pixels.dtype.name
        self.first = self.first or (*kind, i)
        if kind != self.first[:2]:
            there = f"{self.first[0]} channels of {self.first[1]}"
            raise InputError(
                f"{where} has {kind[0]} channels of {kind[1]} and item {self.first[2]} {there}; give all alike"
            )


def _kind(item: Any) -> str:
    """The type of an item, with its shape: `Tensor of (2, 3)`, `(Image, str)`."""
    if _is_array(item):
        return f"{type(item).__name__} of {tuple(item.shape)}"
    if isinstance(item, tuple | list):
        return f"({', '.join(map(_kind, item))})" if len(item) < 5 else f"{type(item).__name__} of {len(item)}"
    return type(item).__name__


def _label(label: Any, item: Any, where: str) -> int | str | None:
    if (_is_array(label) and label.ndim == 0) or isinstance(label, np.generic):
        label = label.item()
    if label is not None and not isinstance(label, int | str):
        raise InputError(f"{where} is {_kind(item)}: its label is neither a whole number nor text")
    return label


# ---- labels


def _with_labels(images: Images, labels: Any, names: Sequence[str] | None, name: str) -> Images:
    if are_several(labels):
        return indicated(images, *of_values(labels, len(images), names, name), "the labels given")
    numbers, classes = _numbered(labels, len(images), names, name)
    if not (numbers >= 0).any():
        return replace(images, labels=None, classes=None)
    return replace(images, labels=numbers, classes=classes, classes_from="the labels given")


def _numbered(
    labels: Any, count: int, names: Sequence[str] | None, name: str
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """(n,) int64 and the names of classes, where there are any: texts are numbered in alphabetic order."""
    values = labels.tolist() if _is_array(labels) else list(labels) if isinstance(labels, Sequence) else None
    if values is None or len(values) != count:
        what = f"{len(values)} labels" if values is not None else f"labels of type {type(labels).__name__}"
        raise InputError(f"data={name}: {what} for {count} images; give one for each")
    values = [-1 if value is None else value.item() if isinstance(value, np.generic) else value for value in values]
    texts = sorted({value for value in values if isinstance(value, str)})
    number: dict[Any, int] = {text: i for i, text in enumerate(texts)}
    for i, value in enumerate(values):
        known = isinstance(value, str) or (value == -1 if texts else isinstance(value, int) and -1 <= value < CLASSES)
        if not known:
            kind = f"{value!r}"[:40]
            raise InputError(
                f"data={name}: label {i} is {printable(kind)}; give whole numbers from 0 to {CLASSES - 1}, or -1 for "
                "none, or text for all"
            )
    numbers = np.array([number.get(value, value) for value in values], np.int64)
    if texts:
        return numbers, tuple(map(printable, texts))
    usable = (
        isinstance(names, list | tuple) and all(isinstance(one, str) for one in names) and len(names) > numbers.max()
    )
    return numbers, tuple(map(printable, names)) if usable and names is not None else None
