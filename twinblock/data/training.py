"""The images that a run trains on."""

from twinblock.config.schema import Data
from twinblock.core.errors import InputError
from twinblock.data import Images, load, take
from twinblock.data.tails import read_indices, subset


def training(data: Data, images: Images | None = None) -> Images:
    """The training images of a run: those of its source, or the part that `indices` and then `longtail` leave.

    `images`: those of the source, where the caller holds them already, as `objects.images_from` gives them.
    """
    images = load(data.source, data.root, "train", data.size) if images is None else images
    assert images is not None, "every source has a training split"
    if data.indices is not None:
        if images.skipped:
            raise InputError(
                f"data.indices={data.indices}: {len(images.skipped)} files of {data.source} could not be read, so "
                "its numbers would mean other images; mend or remove those files"
            )
        images = take(images, read_indices(data.indices, len(images)))
    if data.longtail is not None:
        if images.labels is None:
            raise InputError(f"data.longtail needs labels, and {data.source} has none; use data.indices")
        images = take(images, subset(images.labels, data.longtail, images.classes))
    return images


def whole(data: Data) -> Data:
    """The same source without its subset."""
    return data.model_copy(update={"indices": None, "longtail": None})
