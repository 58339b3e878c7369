"""The images of a run."""

from collections.abc import Mapping
from typing import Any, Literal

from twinblock.config.data import Data, other_data
from twinblock.core.errors import InputError
from twinblock.data import Images, load, take
from twinblock.data.forms import Wanted
from twinblock.data.labels import column_of, labelled_by, no_columns
from twinblock.data.objects import describe, images_from, is_object
from twinblock.data.tails import read_indices, subset


def split_of(data: Data, split: Literal["train", "test"] = "train") -> Images | None:
    """All images of a split of a source, as the fields of the run have it; None where there is no such split."""
    return load(data.source, data.root, split, data.size, labels=data.labels, wanted=wanted(data))


def wanted(data: Data) -> Wanted:
    """How files are read, as the fields of a run have it."""
    return Wanted(
        None if data.channels == "auto" else data.channels,
        data.pages,
        data.max_pixels,
        data.tile,
        data.fps,
        data.separator,
        data.stored,
        data.jpeg,
    )


def training(data: Data, images: Images | None = None) -> Images:
    """The training images of a run: those of its source, or the part that `indices` and then `longtail` leave.

    `images`: those of the source, where the caller holds them already, as `objects.images_from` gives them.
    """
    images = split_of(data) if images is None else images
    assert images is not None, "every source has a training split"
    if data.indices is not None:
        if images.skipped:
            raise InputError(
                f"data.indices={data.indices}: {len(images.skipped)} files of {data.source_name} could not be read, so "
                "its numbers would mean other images; mend or remove those files"
            )
        images = take(images, read_indices(data.indices, len(images)))
    if data.longtail is not None:
        if images.labels is None:
            raise InputError(f"data.longtail needs labels, and {data.source_name} has none; use data.indices")
        images = take(images, subset(images.labels, data.longtail, images.classes))
    return images


def whole(data: Data) -> Data:
    """The same source without its subset."""
    return data.model_copy(update={"indices": None, "longtail": None})


def chosen(data: Data, given: Any = None, held: Any = None) -> tuple[Data, Images | None]:
    """The data of a run, or what is `given` in their place; and the images, where those are a Python object.

    `given`: a source, fields, or images as `objects.images_from` takes them; None: the run's own data, which are `held`
    where they are a Python object. Raises InputError for what is no data.
    """
    source = given.get("source") if isinstance(given, Mapping) else given
    if is_object(source):
        given = {**(given if isinstance(given, Mapping) else {}), "source": describe(source)}
    elif source is None and held is not None:
        source = held
    data = data if given is None else other_data(data, given)
    if not is_object(source):
        return data, None
    if column_of(data.labels):
        raise no_columns(data.source_name, data.labels)
    return data, labelled_by(images_from(source, data.size, wanted=wanted(data)), data.labels, data.separator)
