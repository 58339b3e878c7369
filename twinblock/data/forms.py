"""The form that the images of a set are stored in, found in some of them: their type, channels and pages."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from math import ceil
from typing import Any, TypeGuard

import numpy as np
from jaxtyping import Shaped
from numpy import ndarray as Array

from twinblock.core.errors import InputError
from twinblock.data import video
from twinblock.data.endings import is_video
from twinblock.data.parts import FRAMES, TILES, frame_name
from twinblock.data.pillow import printable
from twinblock.data.readers import Facts, File, Page, facts, planes

log = logging.getLogger(__name__)

SURVEYED, READ = 64, 16  # files whose headers and whose values are looked at
ODD = 0.05  # a larger share of another kind, and a set is refused; a smaller one is left out and listed
NO_VALUE = (
    -9999.0,
    -99999.0,
    -32768.0,
    -32767.0,
)  # that stand for none, by custom, where they lie apart from all others
HUGE = 1e30  # beyond it, too

# the type that a file's values are kept in, exactly
STORED = {"bool": "uint8", "uint8": "uint8", "uint16": "uint16", "int8": "int16", "int16": "int16"}
BITS = {"uint8": "8-bit", "uint16": "16-bit", "int16": "signed 16-bit", "int32": "32-bit", "float32": "float"}
PAGES = "data.pages=first takes the first, images takes each as an image, channels all as the channels of one"


@dataclass(frozen=True)
class Wanted:
    """How files are read, as the fields of `data` say; None and `auto`: nothing is said."""

    channels: int | None = None
    pages: str = "auto"
    max_pixels: int | None = None
    tile: Any = None  # a `Tile` of the config
    fps: float | None = None  # frames a second that are taken of videos
    separator: str | None = None  # what stands between the classes of an image in a table
    stored: int | None = None  # side of packed pictures
    jpeg: int | None = None  # quality at which they are kept as JPEG

    @property
    def parts(self) -> np.dtype | None:
        """What is kept of images that may be parts of a file."""
        return TILES if self.tile is not None else FRAMES if self.fps is not None else None

    @property
    def key(self) -> list[str]:
        """What other images follow from than without a wish, but for channels."""
        key = [] if self.pages == "auto" else [self.pages]
        key += [] if self.max_pixels is None else [f"{self.max_pixels}px"]
        key += [] if self.fps is None else [f"{Fraction(str(self.fps))}fps".replace("/", "in")]
        return (
            key if self.tile is None else [*key, "t".join(map(str, self.tile.model_dump().values())).replace(".", "p")]
        )


@dataclass(frozen=True)
class Form:
    """How the images of a set are stored: `dtype` and `channels`; of files of type `of`.

    `picture`: as 8-bit RGB, which Pillow gives. `converted`: the number of channels was asked for. `missing`: values
    that become NaN. `kind`: in words.
    """

    dtype: str = "uint8"
    channels: int = 3
    of: str = "uint8"
    picture: bool = True
    converted: bool = False
    pages: str = "auto"
    missing: tuple[float, ...] = ()
    kind: str = ""

    def fit(self, values: Shaped[Array, "pages h w c"]) -> Shaped[Array, "h w k"]:
        """An image in this form; ValueError, which says why, for one of another kind."""
        if len(values) > 1 and self.pages == "channels":
            values = values.transpose(1, 2, 0, 3).reshape(1, *values.shape[1:3], -1)
        elif len(values) > 1 and self.pages != "first":
            raise ValueError(f"{len(values)} pages or frames; {PAGES}")
        if _type(values.dtype) != self.of:
            raise ValueError(f"{_bits(_type(values.dtype))}, and most others {_bits(self.of)}")
        image = values[0]
        if self.channels != image.shape[2]:
            if not self.converted and not (self.picture and image.shape[2] == 1):
                raise ValueError(f"{image.shape[2]} channels, and most others {self.channels}")
            image = _converted(image, self.channels)
        if self.missing or self.dtype == "float32":
            image = image.astype(np.float32)
            for value in self.missing:
                image = np.where(image == np.float32(value), np.nan, image)
            image = np.where(np.abs(image) > HUGE, np.nan, image)
        return np.ascontiguousarray(image.astype(self.dtype, copy=False))


def own_form(file: File) -> Form:
    """The form of one file by itself."""
    found = facts(file)
    of = _type(np.dtype(found.dtype))
    return Form(STORED.get(of, "float32"), found.shape[3], of, found.picture, pages="first")


def _converted(image: Shaped[Array, "h w c"], channels: int) -> Shaped[Array, "h w k"]:
    """The first channels; gray as three equal ones, or three as their luma; ValueError for all else."""
    have = image.shape[2]
    if have in (1, 2) and channels == 3:
        return np.repeat(image[..., :1], 3, 2)
    if have in (3, 4) and channels == 1:
        luma = image[..., :3].astype(np.float64) @ (0.299, 0.587, 0.114)
        return (np.rint(luma) if image.dtype.kind in "iu" else luma).astype(image.dtype)[..., None]
    if channels < have:
        return image[..., :channels]
    raise ValueError(f"{have} channels, and data.channels={channels}")


def survey(name: str, sample: Iterable[File], wanted: Wanted) -> Form:
    """The form of a set by some of its files.

    Pictures of 8 bits are stored in RGB, grey or not. Raises InputError for sets of several kinds, and for what no
    header tells: whether a fourth channel is opacity, what several pages are.
    """
    some = sample[:: -(-len(sample) // SURVEYED)] if isinstance(sample, list) else islice(sample, 0, 8 * SURVEYED, 8)
    found: list[tuple[File, Facts]] = []
    for file in some:
        try:
            found.append((file, facts(file)))
        except Exception:  # counted and listed when it is packed
            continue
    several = [(file, one) for file, one in found if one.shape[0] > 1]
    if wanted.pages == "auto" and len(several) > ODD * len(found):
        raise InputError(f"{name}: {_called(several[0][0])} has {several[0][1].shape[0]} pages or frames; {PAGES}")
    found = [(file, one) for file, one in found if one.shape[0] == 1 or wanted.pages != "auto"]
    pictures = all(one.picture and (one.shape[0] == 1 or wanted.pages == "first") for _, one in found)
    if pictures and wanted.channels in (None, 3):
        _say_kept(name, {one.missing for _, one in found})
        return Form(pages=wanted.pages, converted=wanted.channels is not None)
    groups = Counter(_group(one, wanted) for _, one in found)
    (of, channels), count = groups.most_common(1)[0]
    if count < (1 - ODD) * len(found):
        raise InputError(f"{name}: {_mixed(found, groups, wanted)}")
    alike = [(file, one) for file, one in found if _group(one, wanted) == (of, channels)]
    form = Form(
        STORED.get(of, "float32"), wanted.channels or channels, of, False, wanted.channels is not None, wanted.pages
    )
    form = replace(form, kind=f"{_bits(of)} {alike[0][1].kind}")
    return _by_values(name, form, alike, wanted)


def by_pages(source: Any) -> Any:
    """The source `Encoded` with each page of its files as an image."""

    def items() -> Iterator[tuple[str, File, int]]:
        for name, file, label in source.items():
            try:
                count = facts(file).shape[0]
            except Exception:  # counted and listed when it is packed
                count = 1
            pages = [(f"{name}[{i}]", Page(file, i), label) for i in range(count)]
            yield from pages if count > 1 else [(name, file, label)]

    return replace(source, count=sum(1 for _ in items()), items=items)


def by_frames(source: Any, fps: float) -> Any:
    """The source `Encoded` with frames in place of its videos: `clip.mp4@12.500s`; its images are as they are.

    Of a damaged video the frames before the damage are there, and it is one of the files that could not be read. Raises
    InputError where there are videos, and what reads them is not installed.
    """
    count, deep = 0, ""
    for name, file, _ in source.items():
        if not _is_video(file):
            count += 1
            continue
        if not video.installed():
            raise InputError(f"{source.name}: {printable(name)} and other {video.EXTRA}")
        try:
            header = video.header(file)
        except Exception:  # counted and listed when it is packed
            count += 1
        else:
            count += max(1, ceil(header.seconds * fps))
            deep = deep or (name if header.bits > 8 else "")
    if deep:
        log.warning(f"{source.name}: {printable(deep)} has more than 8 bits, of which 8 are seen")

    def items() -> Iterator[tuple[str, File, int]]:
        for name, file, label in source.items():
            if not _is_video(file):
                yield name, file, label
                continue
            try:
                for time, pixels in video.frames(file, fps):
                    yield frame_name(name, time), pixels, label
            except Exception as error:  # damaged files make decoders raise anything: the store lists it
                yield name, error, label

    return replace(source, count=count, items=items)


def _is_video(file: File) -> TypeGuard[str]:
    return isinstance(file, str) and is_video(file)


def _group(one: Facts, wanted: Wanted) -> tuple[str, int]:
    """Type and channels that must be one for a set."""
    pages = one.shape[0] if wanted.pages == "channels" else 1
    picture = one.picture and wanted.channels is None
    return _type(np.dtype(one.dtype)), 0 if wanted.channels is not None else 3 if picture else one.shape[3] * pages


def _by_values(name: str, form: Form, alike: list[tuple[File, Facts]], wanted: Wanted) -> Form:
    """The form, as what the files hold completes it: opacity that is full everywhere is none, and missing values."""
    spread = alike[:: -(-len(alike) // READ)]
    values = []
    for file, _ in spread:
        try:
            values.append(planes(file))
        except Exception:  # counted and listed when it is packed
            continue
    if form.of == "uint8" and form.channels == 4 and wanted.channels is None and alike[0][1].opacity:
        if not all((one[..., 3] == 255).all() for one in values):
            raise InputError(
                f"{name}: the fourth channel of {_called(alike[0][0])} is called opacity, as GDAL calls any: "
                "data.channels=4 keeps it as a channel, data.channels=3 leaves it out"
            )
        form = replace(form, channels=3, converted=True)
    declared = {one.missing for _, one in alike} - {None, 0.0}
    missing = {float(value) for value in declared if value is not None and np.isfinite(value)}
    if form.of != "uint8" and values:
        flat = np.unique(np.concatenate([np.unique(one) for one in values]).astype(np.float64))
        flat = flat[np.isfinite(flat) & (np.abs(flat) < HUGE) & ~np.isin(flat, [*missing])]
        if len(flat) > 2 and flat[0] in NO_VALUE and flat[1] - flat[0] > flat[-1] - flat[1]:
            missing.add(float(flat[0]))
    _say_kept(name, {one.missing for _, one in alike} - missing)
    if not missing:
        return form
    kind = f"{form.kind} with nodata {' and '.join(f'{value:.10g}' for value in sorted(missing))}"
    return replace(form, missing=tuple(sorted(missing)), dtype="float32", kind=kind)


def _say_kept(name: str, declared: set[float | None]) -> None:
    """Say which of these values, that files call none, are seen as all others; NaN is none anyway."""
    if kept := sorted(value for value in declared if value is not None and np.isfinite(value)):
        words = " and ".join(f"{value:.10g}" for value in kept)
        log.warning(f"{name}: nodata {words} is kept as a value, as are all of 8-bit pictures and any 0")


def _mixed(found: list[tuple[File, Facts]], groups: Counter, wanted: Wanted) -> str:
    first: dict[tuple[str, int], str] = {}
    for file, one in found:
        first.setdefault(_group(one, wanted), _called(file))
    kinds = [
        f"{_bits(of)}{f' of {channels} channels' if channels else ''} ({first[of, channels]} and {count - 1} more)"
        for (of, channels), count in groups.most_common(3)
    ]
    depths = len({of for of, _ in groups})
    do = "put each kind into a folder of its own" if depths > 1 else "data.channels=N makes them alike"
    return f"images are of several kinds: {'; '.join(kinds)}; {do}"


def _type(dtype: np.dtype) -> str:
    if dtype.kind not in "biuf":
        raise ValueError(f"values are {dtype}")
    return "float32" if dtype.kind == "f" else "uint8" if dtype.kind == "b" else dtype.newbyteorder("=").name


def _bits(of: str) -> str:
    return BITS.get(of, of)


def _called(file: File) -> str:
    return printable(file) if isinstance(file, str) else "an image"
