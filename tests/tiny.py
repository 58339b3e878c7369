"""The smallest runs that exercise everything: images of 16 pixels, a ResNet of 8 channels, every method and scope."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from twinblock.assembly.build import encoder_of, make_learners
from twinblock.assembly.resolve import resolve
from twinblock.config.recipes import compose
from twinblock.config.schema import Config, check
from twinblock.core.console import Reporter
from twinblock.data import Images, training
from twinblock.evaluation import labelled
from twinblock.methods.learner import Network
from twinblock.nn import pooling as pooling
from twinblock.runs.run import Run
from twinblock.training.launch import make_fabric
from twinblock.training.trainer import Trainer

IN_BATCH = ("moco_v3", "nnclr", "dcl", "sup_con")
CLUSTERS = ("dino", "swav", "pcl")
LOCAL = ("lpl", "clapp_pp")  # rules of single layers
METHODS = ("simclr", "byol", "moco_v2", "simsiam", "barlow_twins", "vicreg", "supervised", *IN_BATCH, *CLUSTERS, *LOCAL)
# recipes with another target than theirs, by name
PRUNED = {"sdclr": "simclr", "sdclr_byol": "byol", "sdclr_moco": "moco_v2", "sdclr_barlow": "barlow_twins"}
PRUNED |= {"sdclr_vicreg": "vicreg", **{f"sdclr_{name}": name for name in (*IN_BATCH, *CLUSTERS, *LOCAL)}}
AVERAGED = {"simclr_ema": "simclr", "barlow_ema": "barlow_twins", "vicreg_ema": "vicreg", "swav_ema": "swav"}
AVERAGED |= {f"{name}_ema": name for name in (*IN_BATCH[1:], *LOCAL)}
SHARED = {"moco_shared": "moco_v2", "moco_v3_shared": "moco_v3", "dino_shared": "dino", "pcl_shared": "pcl"}
COMPOSITIONS = (*METHODS, *PRUNED, *AVERAGED, *SHARED)  # every objective with every target that it goes with
VIT = {"kind": "vit_tiny_patch16_224", "width": None, "stem": "standard"}  # as an encoder
SMALL_VIT = {"kind": "test_vit", "patch": 4, "stem": "standard"}  # 16 tokens of an image, and a class token
SCOPES = ("end_to_end", "simultaneous", "sequential", "overlapping")
CREDIT = ("direct", "sign_direct", "drtp", "feedback_alignment", "none")  # end to end, but for backpropagation
VGG = {"kind": "vgg8b", "width": 8, "stem": "standard"}
LAYERS = {"kind": "mlp", "width": [24, 16], "stem": "standard", "norm": "rms"}
PROBABILITIES = {**LAYERS, "kind": "sigmoid_mlp", "norm": "none"}
WITHOUT_NORMS = {"kind": "resnet10", "width": 8, "stem": "cifar", "norm": "none"}
GRID = {"patch": 8, "stride": 4, "steps": 1, "skip": 1}  # three rows of three patches
CONVS = {"kind": "convs", "width": [8, 12], "stem": "standard", "norm": "standard"}


class Other(NamedTuple):
    """A learner that is not siamese: its encoder, fields of its own, the scopes in which it trains, other fields."""

    encoder: dict
    learner: dict
    scopes: tuple[str, ...] = SCOPES[:3]
    tree: dict | None = None


OTHERS = {
    "mae": Other(SMALL_VIT, {"decoder_width": 16, "decoder_depth": 2, "decoder_heads": 2}),
    "local_losses": Other(VGG, {"inputs": 64}, SCOPES[:3], {"optim": {"lr": 0.1, "warmup": "0steps"}}),
    "forward_forward": Other(LAYERS, {}, SCOPES[1:3]),
    "dbn": Other(PROBABILITIES, {"chains": 6, "steps": 2}, SCOPES[1:3], {"optim": {"lr": 0.5}}),
    "vae": Other({**LAYERS, "norm": "none"}, {"code": 4, "decoder_width": 12}),
    "greedy_infomax": Other(WITHOUT_NORMS, {**GRID, "negatives": 5}),
    "clapp": Other(WITHOUT_NORMS, GRID),
    "scff": Other(CONVS, {"same": [1.0, 2.0], "other": [2.0], "penalty": [1e-3]}, SCOPES[1:3]),
}
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
        method = PRUNED[method]
    if method in AVERAGED:
        fields = {"target": {"kind": "ema", "momentum": 0.9}, **fields}
        method = AVERAGED[method]
    if method in SHARED:
        fields, method = {"target": {"kind": "shared"}, **fields}, SHARED[method]
    heads = {"byol": [24, 8], "simsiam": [24, 8], "supervised": ["classes"]}
    siamese = {
        "encoder": {"kind": "resnet10", "width": 8, "stem": "cifar", "norm": norm},
        "projector": {"dims": heads.get(method, [24, 8]), "norm": norm, "last_norm": "none"},
    }
    tree = {
        "data": {"batch": 16},
        **({"encoder": OTHERS[method].encoder, "learner": OTHERS[method].learner} if method in OTHERS else siamese),
        "optim": {"lr": 1.0, "warmup": "0steps"},
        "train": {"length": "5steps", "precision": precision},
    }
    if method in ("byol", "simsiam", "moco_v3", "nnclr"):
        tree["predictor"] = {"dims": [24, 8], "norm": norm}
    if method in ("moco_v2", "nnclr", "pcl"):
        tree["objective"] = {"queue": 40}
    if method in LOCAL:
        tree |= {"scope": {"kind": "end_to_end"}, "optim": {"lr": 0.002, "warmup": "0steps"}}
    if method == "dino":  # all that moves in time moves
        tree["projector"] |= {"prototypes": 12}
        tree["objective"] = {"first_temperature": 0.08, "warmup": "3steps"}
        tree["optim"] |= {"freeze_prototypes": "2steps", "weight_decay_end": 1e-2, "clip_each": 1.0}
    if method == "swav":
        tree["objective"] = {"prototypes": 12, "queue": 40}
        tree["optim"] |= {"lr": 0.01, "freeze_prototypes": "2steps"}
    if method == "pcl":  # fewer prototypes of the batch's images than there are others
        tree["objective"] |= {"queue": 8, "clusters": [6, 30], "warmup": "0epochs"}
    if scope == "expansion":  # as published; of more channels than are made at once
        tree["scope"] = {"kind": "blockwise", "expand": 160, "noise": 0.25}
    elif scope in CREDIT:
        tree |= {"scope": {"kind": "end_to_end", "credit": scope}, "optim": {"lr": 0.05, "warmup": "0steps"}}
    elif scope != "end_to_end":
        tree["scope"] = {"kind": "blockwise", "plan": scope} if scope != "overlapping" else {"kind": scope}
    if method == "mae" and scope != "end_to_end":
        tree["scope"]["cuts"] = ["blocks.2", "blocks.4"]
    if method == "local_losses":
        tree["encoder"] = {**tree["encoder"], "norm": norm}
        tree["scope"] = {**tree.get("scope", {"kind": "end_to_end"}), "cuts": ["block3", "block6"]}
    for part, values in (OTHERS[method].tree or {}).items() if method in OTHERS else ():
        tree[part] = {**tree.get(part, {}), **values}
    for part, values in fields.items():
        tree[part] = {**tree.get(part, {}), **values}
    return compose(method, tree)


CROPS = [{"crop": [0.4, 1.0], "count": 2}, {"like": 0, "crop": [0.1, 0.4], "size": 8, "count": 2}]


def cropped(config: Config) -> Config:
    """The run with two large and two small views."""
    return check({**config.model_dump(mode="json"), "views": CROPS})


def recipe(name: str, **train) -> Config:
    """A recipe with small sizes; its views, norms, layers of heads, target, objective, scope and optimizer stay."""
    tree = compose(name).model_dump(mode="json")
    tree["data"] |= {"batch": 16, "size": None, "longtail": None}
    small = {"kind": "resnet10", "width": 16, "stem": "cifar"}
    if tree["learner"] is not None:
        small = OTHERS[tree["learner"]["kind"]].encoder
        tree["learner"] |= OTHERS[tree["learner"]["kind"]].learner
    tree["encoder"] |= {**small, "weights": None, "freeze": []}
    for head in filter(None, (tree["projector"], tree["predictor"])):  # 32: for 16 groups
        head["dims"] = [dim if isinstance(dim, str) else 32 for dim in head["dims"]]
    if "queue" in (tree["objective"] or {}):
        tree["objective"] |= {"queue": 40}
    if "clusters" in (tree["objective"] or {}):
        tree["objective"] |= {"clusters": [6, 30], "warmup": "0epochs"}
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


def network() -> Network:
    return Network([nn.Conv2d(3, 4, 3)], pooling.Pooling(4), nn.Identity(), pooling.Noise(0.0))


def trainer(config: Config, out: Path, images_: Images | None = None) -> Trainer:
    fabric = make_fabric()
    data = images_ or images()
    config = resolve(config, data, torch.device("cpu"))
    run = Run(out)
    if fabric.is_global_zero:
        run.claim(config)
        run.write_config(config)
    return Trainer(config, data, fabric, run, Reporter(quiet=True))


def take_steps_by(trainer: Trainer, take: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Have this trainer take its steps by a function of theirs; returns the one that it took them by."""
    step, kind = trainer.train_step, type(trainer.train_step)
    step.__class__ = type("Replaced", (kind,), {"__call__": staticmethod(take)})
    return partial(kind.__call__, step)


def features_asked_of(module: ModuleType, monkeypatch) -> list[int]:
    """Of how many images each call of `module.features` is from now on."""
    asked, features = [], module.features

    def counted(encoder, images, **how):
        asked.append(len(images))
        return features(encoder, images, **how)

    monkeypatch.setattr(module, "features", counted)
    return asked


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: t.detach().clone() for name, t in trainer.state().items()}
