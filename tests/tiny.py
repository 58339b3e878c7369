"""The smallest runs that exercise everything: images of 16 pixels, a ResNet of 8 channels, every method and scope."""

from pathlib import Path

import numpy as np
import torch

from twinblock.assembly.build import encoder_of, make_learners
from twinblock.assembly.resolve import resolve
from twinblock.config.recipes import compose
from twinblock.config.schema import Config, check
from twinblock.core.console import Reporter
from twinblock.data import Images, training
from twinblock.evaluation import labelled
from twinblock.nn import pooling as pooling
from twinblock.runs.run import Run
from twinblock.training.launch import make_fabric
from twinblock.training.trainer import Trainer

METHODS = ("simclr", "byol", "moco_v2", "simsiam", "barlow_twins", "vicreg", "supervised")
PRUNED = ("sdclr", "sdclr_byol", "sdclr_moco", "sdclr_barlow", "sdclr_vicreg")  # a recipe with another target
AVERAGED = ("simclr_ema", "barlow_ema", "vicreg_ema")
COMPOSITIONS = (*METHODS, *PRUNED, *AVERAGED, "moco_shared")  # every objective with every target that it goes with
VIT = {"kind": "vit_tiny_patch16_224", "width": None, "stem": "standard"}  # as an encoder
SCOPES = ("end_to_end", "simultaneous", "sequential", "overlapping")
pooling.PART = 1  # here and in the processes of the tests, so that tiny maps of an expansion are made in parts too


def images(count: int = 48, side: int = 16) -> Images:
    """Coloured noise whose mean colour is the class."""
    rng = np.random.Generator(np.random.PCG64(0))
    labels = rng.integers(0, 3, count)
    pixels = rng.integers(0, 120, (count, side, side, 3), dtype=np.uint8)
    pixels[np.arange(count), :, :, labels] += 100
    return Images(pixels, labels.astype(np.int64), ("red", "green", "blue"))


def in_place_of_any_source(monkeypatch, count: int) -> Images:
    """Make `twinblock.data.load` give these images, as training and as test images, where runs are measured."""
    found = images(count)
    for module in (training, labelled):
        monkeypatch.setattr(module, "split_of", lambda *_: found)
    return found


def config(method: str, scope: str = "end_to_end", norm: str = "batch", precision: str = "fp64", **fields) -> Config:
    """A recipe shrunk: narrow heads, few steps, a learning rate that moves the weights."""
    if method in PRUNED:
        fields = {"target": {"kind": "pruned", "ratio": 0.5, "every": "2steps", "random": 0.1}, **fields}
        method = dict(zip(PRUNED, ("simclr", "byol", "moco_v2", "barlow_twins", "vicreg"), strict=True))[method]
    if method in AVERAGED:
        fields = {"target": {"kind": "ema", "momentum": 0.9}, **fields}
        method = dict(zip(AVERAGED, ("simclr", "barlow_twins", "vicreg"), strict=True))[method]
    if method == "moco_shared":
        fields, method = {"target": {"kind": "shared"}, **fields}, "moco_v2"
    heads = {"byol": [24, 8], "simsiam": [24, 8], "supervised": ["classes"]}
    tree = {
        "data": {"batch": 16},
        "encoder": {"kind": "resnet10", "width": 8, "stem": "cifar", "norm": norm},
        "projector": {"dims": heads.get(method, [24, 8]), "norm": norm, "last_norm": "none"},
        "optim": {"lr": 1.0, "warmup": "0steps"},
        "train": {"length": "5steps", "precision": precision},
    }
    if method in ("byol", "simsiam"):
        tree["predictor"] = {"dims": [24, 8], "norm": norm}
    if method == "moco_v2":
        tree["objective"] = {"queue": 40}
    if scope == "expansion":  # as published; of more channels than are made at once
        tree["scope"] = {"kind": "blockwise", "expand": 160, "noise": 0.25}
    elif scope != "end_to_end":
        tree["scope"] = {"kind": "blockwise", "plan": scope} if scope != "overlapping" else {"kind": scope}
    for part, values in fields.items():
        tree[part] = {**tree.get(part, {}), **values}
    return compose(method, tree)


def recipe(name: str, **train) -> Config:
    """A recipe with small sizes; its views, norms, layers of heads, target, objective, scope and optimizer stay."""
    tree = compose(name).model_dump(mode="json")
    tree["data"] |= {"batch": 16, "size": None, "longtail": None}
    tree["encoder"] |= {"kind": "resnet10", "width": 16, "stem": "cifar", "weights": None}
    for head in filter(None, (tree["projector"], tree["predictor"])):  # 32: for 16 groups
        head["dims"] = [dim if dim == "classes" else 32 for dim in head["dims"]]
    if "queue" in tree["objective"]:
        tree["objective"] |= {"queue": 40}
    if tree["scope"].get("expand"):
        tree["scope"]["expand"] = 32
    tree["train"] |= {"precision": "fp32", **train}
    return check(tree)


def trainer_config(method: str, scope: str, width: int = 8, **fields) -> Config:
    """A resolved config."""
    return resolve(config(method, scope, encoder={"width": width}, **fields), images(), torch.device("cpu"))


def learners(method: str, scope: str = "simultaneous", of_scope: dict | None = None, **fields):
    """A resolved config with these fields of its scope, its encoder and its Learners, in double precision."""
    found = config(method, scope, **fields)
    tree = found.model_dump(mode="json")
    tree["scope"] |= of_scope or {}
    found = resolve(check(tree), images(), torch.device("cpu"))
    encoder = encoder_of(found).double()
    return found, encoder, [learner.double() for learner in make_learners(found, encoder, 3, None)]


def trainer(config: Config, out: Path, images_: Images | None = None) -> Trainer:
    fabric = make_fabric()
    data = images_ or images()
    config = resolve(config, data, torch.device("cpu"))
    run = Run(out)
    if fabric.is_global_zero:
        run.claim(config)
        run.write_config(config)
    return Trainer(config, data, fabric, run, Reporter(quiet=True))


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: t.detach().clone() for name, t in trainer.state().items()}
