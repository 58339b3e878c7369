"""The fields of a run's images."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import numpy as np
from pydantic import BeforeValidator, Field, FiniteFloat, ValidationError, model_validator

from twinblock.config.explain import explain
from twinblock.core.errors import InputError
from twinblock.core.types import NotNegative, Positive
from twinblock.methods.parts import Part
from twinblock.nn.imagenet import MEAN, STD
from twinblock.views import EIGHT_BITS

Name = Annotated[str, BeforeValidator(lambda given: str(given) if isinstance(given, PathLike) else given)]  # or path


if TYPE_CHECKING:
    Batch: TypeAlias = int  # of a resolved config
else:
    Batch = Literal["auto"] | Annotated[int, Field(ge=1, le=2**20)]
LowHigh = tuple[FiniteFloat, FiniteFloat]


class LongTail(Part):
    """A long-tailed part of labelled training images, by published counts."""

    imbalance: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    """Images of the most frequent class for one of the rarest."""
    kind: Literal["exp", "step", "balanced"] = "exp"
    """How class sizes fall: `exp` exponentially, `step` in one step; `balanced` has as many images in equal parts."""
    split: Annotated[int, Field(ge=0)] = 1
    """Which class is how frequent; 0: in order of label."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Which images of a class are kept."""
    largest: Annotated[int, Field(ge=1, le=2**31)] | None = None
    """Images of the most frequent class; null: as many as the smallest class has."""


class Tile(Part):
    """Tiles of large images, at their own resolution."""

    size: Annotated[int, Field(ge=8, le=4096)]
    """Side of a tile in pixels of the image."""
    overlap: Annotated[int, Field(ge=0)] = 0
    """Pixels that neighbouring tiles share."""
    skip_empty: NotNegative | None = None
    """Tiles whose values have a smaller standard deviation are left out; null: none are."""

    @model_validator(mode="after")
    def _moves_on(self) -> "Tile":
        if self.overlap >= self.size:
            raise ValueError(f"overlap: {self.overlap} should be less than the tile's size, {self.size}")
        return self


class Data(Part):
    """The images, and how many make a step."""

    source: Name | Annotated[tuple[Name, ...], Field(min_length=1)] = "photodigits"
    """A folder of images, or a list of them; a CSV of paths, a .tar, a .zip, parquet files, or a pattern of these, as
    `a/*.jpg`; the URL of a folder that `twinblock pack` made; a Hugging Face name; `photodigits`, `cifar10`, `cifar100`
    or `stl10`."""
    root: Name | None = None
    """The folder in which a relative source begins, or the paths of a table, or torchvision's sets; null: the current
    one, that of the table, the cache."""
    labels: Name = "auto"
    """What classes are. `auto`: top folders, a usual column, or what WebDataset writes; `none`: there are none; a CSV
    file with the columns file and label, or with a column of 0 and 1 for each class; the name of a column."""
    separator: Annotated[str, Field(min_length=1, max_length=8)] | None = None
    """What stands between the classes of an image in a column of a CSV, as `;`; null: an image is of one class."""
    batch: Batch = 256
    """Images in a step, over all processes; `auto`: as many as fit into memory, a power of two on each process, at most
    4096 in all and an eighth of the images. The learning rate grows with it."""
    size: Annotated[int, Field(ge=8, le=1024)] | None = None
    """Side of a view in pixels; null: that of small images of one size, else 224."""
    stored: Annotated[int, Field(ge=8, le=4096)] | None = None
    """Side in pixels at which large images, and those of mixed sizes, are packed; null: 8/7 of `size`."""
    jpeg: Annotated[int, Field(ge=1, le=100)] | None = None
    """Packed 8-bit pictures are JPEGs of this quality: at 90 about a tenth of the disk, and nearly the same pixels.
    null: their pixels, as they are."""
    tile: Tile | None = None
    """Tiles of each image file, at its own resolution, in place of the whole image; null: the image."""
    fps: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Frames of a video that are taken in a second, as images; less than 1 for one in several seconds; null: videos are
    left out."""
    max_pixels: Annotated[int, Field(ge=1, le=2**40)] | None = None
    """Pixels of the largest image that is read; null: 89,478,485, Pillow's limit against files that fill the memory."""
    channels: Literal["auto"] | Annotated[int, Field(ge=1, le=256)] = "auto"
    """Channels of an image; `auto`: of the files, and 3 for 8-bit pictures, grey or not."""
    pages: Literal["auto", "first", "channels", "images"] = "auto"
    """What the pages or frames of a file are; `auto`: files of several pages are refused."""
    range: Literal["auto", "dtype", "percentile"] | LowHigh | Annotated[tuple[LowHigh, ...], Field(min_length=1)] = (
        "auto"
    )
    """The values that become 0 and 1, as [low, high], or a list of these, one of each channel. `dtype`: all that the
    type holds; `percentile`: 0.1 % and 99.9 % of a sample."""
    mean: Literal["auto", "imagenet", "measured"] | Annotated[tuple[FiniteFloat, ...], Field(min_length=1)] = "auto"
    """Subtracted from each channel in [0, 1]; `auto`: ImageNet's for 8-bit RGB, else measured in a sample."""
    std: Literal["auto", "imagenet", "measured"] | Annotated[tuple[Positive, ...], Field(min_length=1)] = "auto"
    """What each channel is then divided by; as `mean`."""
    indices: Name | None = None
    """A .npy or text file of the rows to train on; null: all."""
    longtail: LongTail | None = None
    """A long-tailed part of these; null: all."""

    @property
    def source_name(self) -> str:
        """The source, or all of them, for a message."""
        return self.source if isinstance(self.source, str) else ", ".join(self.source)

    @model_validator(mode="after")
    def _low_is_below_high(self):
        if not isinstance(self.range, str) and not np.less(*np.transpose(self.range)).all():
            given = np.array(self.range).tolist()
            raise ValueError(f"range is {given}, but must be [low, high], or a list of these, one of each channel")
        return self

    @model_validator(mode="after")
    def _tiles_are_of_images(self):
        if self.tile is not None and self.fps is not None:
            raise ValueError("tile and fps do not go together: frames of a video are not cut into tiles")
        if self.tile is not None and self.stored is not None:
            raise ValueError("tile and stored do not go together: tiles are packed at their own size")
        return self

    @property
    def seen(self) -> dict[str, Any]:
        """How `Views` and `centre` take values, of a resolved config; one of before 0.3 is of 8-bit RGB."""
        return {
            "mean": MEAN if isinstance(self.mean, str) else self.mean,
            "std": STD if isinstance(self.std, str) else self.std,
            "value_range": EIGHT_BITS if isinstance(self.range, str) else self.range,
        }


def other_data(data: Data, given: str | PathLike[str] | Sequence[str | PathLike[str]] | Mapping[str, Any]) -> Data:
    """The data of a run with another source or other fields; InputError for what is no data."""
    changed: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {"source": given}
    if changed.get("source", data.source) not in (data.source, data.source_name):
        changed.setdefault("root", None)  # another source does not lie where that of the run does
        changed.setdefault("labels", "auto")  # nor are its labels those of the run's
    if "labels" in changed:
        changed.setdefault("separator", None)
    if changed.get("size", "") is None:
        changed.pop("size")  # as the run has it
    try:
        return Data.model_validate({**data.model_dump(), **changed})
    except ValidationError as error:
        raise InputError(explain(error, Data, "data.")) from None
