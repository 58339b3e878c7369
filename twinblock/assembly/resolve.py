"""What a recipe leaves to the data and the machine."""

import torch

from twinblock.assembly.build import Objects
from twinblock.assembly.precision import precision_of
from twinblock.config.schema import Config
from twinblock.data import Images
from twinblock.data.values import fitted
from twinblock.nn.libraries import has_a_stem

NATIVE_SIDE = 128  # images of one size up to this side are trained on at that size
LARGE_SIDE = 224
PHOTO_VIEW = (0.2, 1.0), 0.5  # crop and flip for photographs: common CIFAR-10 recipes
DIGIT_VIEW = (0.5, 1.0), 0.0  # a fifth of a digit can be any digit, and a mirrored one is none
SMALL_STEM_SIDE = 64  # up to this side the stem keeps the resolution


def resolve(config: Config, images: Images, device: torch.device, objects: Objects | None = None) -> Config:
    """Fill in what the recipe leaves to the data and the machine; the run's folder keeps the result.

    `objects`: the Python objects that the config names as parts.
    """
    height, width = images.pixels.shape[1:3]
    native = max(height, width) if images.aspect is None and max(height, width) <= NATIVE_SIDE else LARGE_SIDE
    size = config.data.size or native
    e = config.encoder
    kind, channels, stem = e.kind, e.width, e.stem
    if kind == "auto" and config.data.source == "photodigits":
        kind, channels, stem = "resnet10", channels or 16, "cifar_stride2" if stem == "auto" else stem
    elif kind == "auto":
        kind = "resnet18" if size <= NATIVE_SIDE else "resnet50"
    if stem == "auto":
        small = size <= SMALL_STEM_SIDE and has_a_stem(kind) and e.weights is None
        stem = "cifar" if small else "standard"
    crop, flip = DIGIT_VIEW if config.data.source == "photodigits" else PHOTO_VIEW
    views = tuple(
        view.model_copy(
            update={
                "crop": crop if view.crop == "auto" else view.crop,
                "flip": flip if view.flip == "auto" else view.flip,
            }
        )
        for view in config.views
    )
    config = config.model_copy(
        update={
            "views": views,
            "data": fitted(config.data, images).model_copy(update={"size": size}),
            "encoder": e.model_copy(update={"kind": kind, "stem": stem, "width": channels}),
        }
    )
    train = config.train.model_copy(update={"precision": precision_of(config, device, objects)})
    return config.model_copy(update={"train": train})
