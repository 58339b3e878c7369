"""Published weights of timm as a starting point: `timm:NAME`, such as timm:resnet18.a1_in1k."""

from typing import Any

import timm
import torch

from twinblock.assembly.build import encoder_of
from twinblock.assembly.resolve import resolve
from twinblock.config.data import Data
from twinblock.config.recipes import compose
from twinblock.config.schema import Config
from twinblock.core.errors import InputError, first_line
from twinblock.data import Images
from twinblock.data.objects import describe, is_object
from twinblock.data.training import chosen, training
from twinblock.nn.encoders import Encoder, is_vit
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
    name = tag[len(PREFIX) :].partition(".")[0]
    config = compose("simclr", {"data": fields, "encoder": {"kind": name, "stem": "standard"}})
    source, images = chosen(config.data, held=held)
    config = resolve(config, training(source, images), torch.device("cpu"))
    weights = _model(tag, {}).pretrained_cfg
    if config.image_shape[0] == len(weights.get("mean", ())):
        seen = {"mean": tuple(weights["mean"]), "std": tuple(weights["std"])}
        config = config.model_copy(update={"data": config.data.model_copy(update=seen)})
    return _Named(config), source, images


def published(tag: str, config: Config) -> Encoder:
    """The encoder that a config would begin with, but with published weights, its own classifier left out."""
    name = tag[len(PREFIX) :].partition(".")[0]
    kind = config.encoder.model_copy(update={"kind": name, "stem": "standard", "width": None, "norm": "batch"})
    encoder = encoder_of(config.model_copy(update={"encoder": kind}))
    channels, size, _ = config.image_shape
    how: dict[str, Any] = {"in_chans": channels} if channels != 3 else {}
    weights = _model(tag, how | ({"img_size": size} if is_vit(name) else {})).state_dict()
    missing, _ = encoder.load_state_dict(weights, strict=False)
    if missing:
        raise InputError(f"{tag}: these weights lack {missing[0]}, which the network needs; choose another")
    return encoder.eval()


def _model(tag: str, how: dict[str, Any]) -> Any:
    try:
        return timm.create_model(tag[len(PREFIX) :], pretrained=True, num_classes=0, **how)
    except Exception as error:  # the hub's, timm's and the network's own
        raise InputError(
            f"{tag}: no such weights could be had ({first_line(error)}); check the name with timm.list_pretrained(), "
            "and load them once where there is a network, or set HF_HOME to a folder that holds them"
        ) from None
