"""Scopes: which blocks form a Learner, and which Learners train when."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from twinblock.config import schema as c
from twinblock.config.schema import Config
from twinblock.core.errors import InputError
from twinblock.core.seeding import hashed
from twinblock.methods.learner import Learner, Network
from twinblock.methods.objectives import BarlowTwins, InfoNCE, NTXent, Regression, Supervised, VICReg
from twinblock.methods.objectives.objective import Objective
from twinblock.methods.overlapping import Overlapping
from twinblock.methods.targets import Shared, Target
from twinblock.methods.targets.ema import EMA
from twinblock.methods.targets.pruned import Pruned
from twinblock.nn.encoders import Encoder, build_encoder
from twinblock.nn.heads import mlp
from twinblock.nn.pooling import Noise, Pooling


def encoder_of(config: Config) -> Encoder:
    """The untrained encoder of a resolved config: the same weights that its training starts from."""
    e = config.encoder
    assert config.data.size is not None, "the config is not resolved"
    return build_encoder(e.kind, e.stem, e.norm, e.width, config.data.size, config.train.seed, config.scope.cuts)


def make_learners(
    config: c.Config, encoder: Encoder, classes: int | None, autocast: torch.dtype | None, epoch_steps: int = 1
) -> list[Learner | Overlapping]:
    """The Learners of a run: one with all blocks, one for each block, or one of overlapping pairs.

    Weights are drawn from the run's seed. `epoch_steps` matters to what is done every few epochs of training.
    """
    blocks, shapes = encoder.as_blocks(), encoder.shapes
    scope, count = config.scope, len(blocks)
    own_batch_norms = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in encoder.modules())
    norm = config.encoder.norm if own_batch_norms or config.encoder.norm != "batch" else "layer"
    if isinstance(scope, c.EndToEnd):
        scope = c.Blockwise(kind="blockwise")
        blocks, shapes, ranges = [nn.Sequential(*blocks)], shapes[-1:], [range(1)]
    elif isinstance(scope, c.Overlapping):
        if count < 2:
            raise InputError(
                "scope.kind=overlapping joins pairs of blocks, but this encoder is cut into one: scope.cuts"
            )
        ranges = [range(k, k + 2) for k in range(count - 1)]
    else:
        ranges = [range(k, k + 1) for k in range(count)]
    for number in scope.per_block:
        if number > len(ranges):
            what = "pairs of blocks" if isinstance(scope, c.Overlapping) else "blocks"
            raise InputError(f"scope.per_block.{number}: there are {len(ranges)} {what}, counted from 1")
    learners = []
    for k, covered in enumerate(ranges):
        own = config.of_block(k + 1)
        if own.objective.kind == "supervised" and classes is None:
            raise InputError(f"objective.kind=supervised of block {k + 1} needs labels, and this data has none")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hashed("heads", config.train.seed, k))
            pooling = pooling_of(scope, norm, shapes[covered[-1]], encoder.prefix, covered[-1] + 1)
            projector, dim = _head(own.projector, pooling.width, classes)
            if own.objective.kind == "supervised" and dim != classes:
                raise InputError(
                    f"projector.dims of block {k + 1} ends in {dim}, but the data has {classes} classes: let it end in "
                    "classes"
                )
            predictor, predicted = (None, dim) if own.predictor is None else _head(own.predictor, dim, classes)
            if predicted != dim:
                raise InputError(
                    f"predictor.dims ends in {predicted}, but it predicts the projector's {dim}: make them equal"
                )
            noise = Noise(scope.noise, scope.noise_over)
            network = Network([blocks[i] for i in covered], pooling, projector, noise, covered[0])
            learners.append(
                Learner(
                    network,
                    predictor,
                    _target(config.target, network, epoch_steps, hashed("prune", config.train.seed, k)),
                    _objective(own.objective, dim, hashed("queue", config.train.seed, k)),
                    views=len(config.views),
                    scale=own.objective.scale,
                    autocast=autocast,
                )
            )
    for following, learner in pairwise(reversed(learners)):
        learner.passes = tuple(a | b for a, b in zip(learner.passes, following.passes, strict=True))
    return [Overlapping(learners)] if isinstance(scope, c.Overlapping) else learners


def pooling_of(scope: c.InBlocks, norm: str, shape: tuple[int, ...], prefix: int, number: int) -> Pooling:
    """The pooling of block `number`, which gives `shape`; an expansion has the norm `norm`."""
    if len(shape) == 2:
        for name, value in (("pool", scope.pool != "gap"), ("expand", scope.expand)):
            if value:
                given = f"scope.{name}={getattr(scope, name)}"
                raise InputError(f"{given} is for maps, but this encoder gives tokens; leave {name} out")
        return Pooling(shape[1], prefix=prefix)
    channels, height, width = shape
    if scope.grid > min(height, width):
        raise InputError(f"scope.grid={scope.grid} is more than the {height} x {width} map of block {number} has")
    if scope.noise and scope.noise_over == "hw" and height * width == 1:
        raise InputError(f"scope.noise_over=hw: the map of block {number} is one place, which has no spread; use all")
    return Pooling(channels, scope.pool, scope.grid, scope.expand, norm)


def _head(spec: c.Predictor, width: int, classes: int | None) -> tuple[nn.Module, int]:
    if "classes" in spec.dims and classes is None:
        raise InputError("projector.dims asks for the number of classes, but this data has no labels")
    dims: Sequence[int] = [classes if d == "classes" else d for d in spec.dims]  # type: ignore[misc]
    last = (spec.last_norm, spec.last_affine) if isinstance(spec, c.Head) else ("none", True)
    head = mlp(width, dims, spec.norm, *last, spec.last_bias)
    return head, dims[-1] if dims else width


def _target(spec: c.SharedSpec | c.EMASpec | c.PrunedSpec, network: Network, epoch_steps: int, seed: int) -> Target:
    if isinstance(spec, c.EMASpec):
        return EMA(network, spec.momentum, spec.schedule, spec.buffers)
    if isinstance(spec, c.PrunedSpec):
        return Pruned(network, spec.ratio, spec.every, epoch_steps, spec.random, seed)
    return Shared()


def _objective(spec: c.Objective, dim: int, seed: int) -> Objective:
    match spec:
        case c.NTXentSpec():
            return NTXent(spec.temperature)
        case c.InfoNCESpec():
            return InfoNCE(dim, spec.queue, spec.temperature, seed, spec.negatives)
        case c.RegressionSpec():
            return Regression()
        case c.BarlowTwinsSpec():
            return BarlowTwins(spec.lambd)
        case c.VICRegSpec():
            return VICReg(spec.invariance, spec.variance, spec.covariance)
        case c.SupervisedSpec():
            return Supervised()
