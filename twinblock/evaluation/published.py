"""Published weights of timm as a starting point: `timm:NAME`, such as timm:resnet18.a1_in1k."""

from typing import Any

import torch

from twinblock.assembly.build import encoder_of
from twinblock.assembly.resolve import resolve
from twinblock.config.data import Data
from twinblock.config.recipes import compose
from twinblock.config.schema import Config
from twinblock.core.errors import InputError
from twinblock.data import Images
from twinblock.data.objects import describe, is_object
from twinblock.data.training import chosen, training
from twinblock.nn.encoders import Encoder
from twinblock.nn.fitting import start_from
from twinblock.nn.weights import Weights
from twinblock.nn.weights import published as weights_of
from twinblock.runs.run import Run

PREFIX = "timm:"


class _Named(Run):
    """A network that no run has trained: a config without a folder."""

    def __init__(self, config: Config):
        super().__init__("runs/none")
        self._config = config

    @property
    def config(self) -> Config:
        return self._config


def run_of(tag: str, data: Any) -> tuple[Run, Data, Images | None]:
    """What stands for a run of a network of timm on these images: its config, the data, and images held in Python."""
    if data is None:
        raise InputError(f"{tag}: published weights come without images; name labelled data: data=...")
    held = data if is_object(data) else None
    fields = {"source": describe(data)} if held is not None else data
    kind, weights = _named(tag)
    config = compose("simclr", {"data": fields, "encoder": {"kind": kind, "stem": "standard"}})
    source, images = chosen(config.data, held=held)
    config = resolve(config, training(source, images), torch.device("cpu"))
    seen = {"mean": weights.mean, "std": weights.std}
    if all(values is not None and len(values) == config.image_shape[0] for values in seen.values()):
        config = config.model_copy(update={"data": config.data.model_copy(update=seen)})
    return _Named(config), source, images


def published(tag: str, config: Config) -> Encoder:
    """The encoder that a config would begin with, but with published weights, its own classifier left out."""
    kind, weights = _named(tag)
    part = config.encoder.model_copy(update={"kind": kind, "stem": "standard", "width": None, "norm": "batch"})
    encoder = encoder_of(config.model_copy(update={"encoder": part}))
    start_from(encoder, weights, config.image_shape[0])
    return encoder.eval()


def _named(tag: str) -> tuple[str, Weights]:
    """The network of `timm:NAME`, and its weights. Raises InputError where they cannot be had."""
    name = tag.removeprefix(PREFIX)
    kind, dot, _ = name.partition(".")
    return kind, weights_of(kind, name if dot else None)
