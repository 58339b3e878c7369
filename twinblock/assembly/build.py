"""From a resolved config to the encoder and its Learners."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from twinblock.config.fields import Head, Predictor
from twinblock.config.schema import Config
from twinblock.config.scopes import Blockwise, EndToEnd, InBlocks, Overlapping
from twinblock.core.errors import InputError, first_line
from twinblock.core.seeding import hashed, seeded
from twinblock.methods import objectives, targets
from twinblock.methods.credit import BROADCAST, Broadcast, FeedbackAlignment
from twinblock.methods.learner import Batch, Learner, Network, Passes, asks_for_batch
from twinblock.methods.learners import KINDS as LEARNERS
from twinblock.methods.overlapping import OverlappingLearners
from twinblock.methods.parts import OURS, how_to_give, make
from twinblock.nn.encoders import Encoder, build_encoder, own_encoder
from twinblock.nn.heads import Prototypes, mlp
from twinblock.nn.modes import evaluating, has_batch_norm
from twinblock.nn.pooling import Noise, Pooling

Objects = Mapping[str, Any]  # Python objects of the caller's own, by the part of the run that they are


def encoder_of(config: Config, objects: Objects | None = None, one_size: bool = False) -> Encoder:
    """The untrained encoder of a resolved config: the same weights that its training starts from.

    `one_size`: for images of `data.size` alone, not for all views: simpler to export. Raises InputError where it is a
    module of the caller's own that `objects` does not hold.
    """
    e = config.encoder
    if ":" not in e.kind:
        channels, size, _ = config.image_shape
        several = not one_size and len({*config.view_sizes}) > 1
        how = size, config.train.seed, config.scope.cuts, channels, e.drop_path, several, e.patch
        return build_encoder(e.kind, e.stem, e.norm, e.width, *how)
    module = (objects or {}).get("encoder")
    if module is None and e.kind in OURS:
        module = OURS[e.kind]()
    if not isinstance(module, nn.Module):
        raise InputError(f"encoder={e.kind}: {how_to_give(e.kind)}, as encoder=module")
    for name, default in (("stem", ("auto", "standard")), ("width", (None,)), ("patch", (None,)), ("drop_path", (0,))):
        if getattr(e, name) not in default:
            raise InputError(f"encoder.{name}={getattr(e, name)} is for named networks; leave it out for your own")
    channels, size, _ = config.image_shape
    return own_encoder(module, size, config.scope.cuts, e.norm, channels)


@dataclass(frozen=True)
class Cut:
    """What one Learner trains: blocks by number, and the shapes of what they are given and give."""

    blocks: Sequence[nn.Module]
    first: int
    last: int
    input_shape: tuple[int, ...]
    shape: tuple[int, ...]


def make_learners(
    config: Config,
    encoder: Encoder,
    classes: int | None,
    autocast: torch.dtype | None,
    epoch_steps: int = 1,
    objects: Objects | None = None,
    images: int = 0,
) -> list[Any]:
    """The Learners of a run: one with all blocks, one for each block, or one of overlapping pairs.

    Weights are drawn from the run's seed. `epoch_steps` matters to what is done every few epochs of training, the
    number of `images` to what is kept of each; `objects` are parts of the caller's own. Raises InputError for what does
    not fit together.
    """
    cuts = _cuts(config, encoder)
    _check_views(config, encoder)
    learners: list[Any] = []
    later = Passes.of(())
    for k in reversed(range(len(cuts))):  # a Learner runs the passes that those after it need
        of_block = config.of_block(k + 1)
        with seeded(hashed("heads", config.train.seed, k)):
            if config.learner is not None:
                given = {"classes": classes, "epoch_steps": epoch_steps, "prefix": encoder.prefix, "autocast": autocast}
                learner = _another_learner(config, cuts[k], k, given, objects or {})
            else:
                build = _Siamese(of_block, cuts[k], k, classes, epoch_steps, images, objects or {})
                learner = build(encoder, _norm_of_expansions(config, encoder), autocast, later)
                later = learner.passes
        learners.insert(0, learner)
    return [OverlappingLearners(learners)] if isinstance(config.scope, Overlapping) else learners


def _cuts(config: Config, encoder: Encoder) -> list[Cut]:
    """What each Learner trains."""
    blocks, shapes, scope = encoder.as_blocks(), encoder.shapes, config.scope
    image = config.image_shape
    if isinstance(scope, EndToEnd):
        return [Cut([nn.Sequential(*blocks)], 0, len(blocks) - 1, image, shapes[-1])]
    if encoder.uncut is not None or (len(blocks) == 1 and ":" in config.encoder.kind):
        why = encoder.uncut or "nothing in it begins a stage; blocks=[...] names the modules that begin one"
        raise InputError(
            f"scope.kind={scope.kind} needs an encoder in blocks, and this one is a single block: {why}; or use "
            "scope=end_to_end"
        )
    together = 2 if isinstance(scope, Overlapping) else 1
    if len(blocks) < together:
        raise InputError("scope.kind=overlapping joins pairs of blocks, but this encoder is cut into one: scope.cuts")
    given = [image, *shapes]
    starts = range(len(blocks) - together + 1)
    cuts = [Cut(blocks[k : k + together], k, k + together - 1, given[k], shapes[k + together - 1]) for k in starts]
    for number in scope.per_block:
        if number > len(cuts):
            what = "pairs of blocks" if together == 2 else "blocks"
            raise InputError(f"scope.per_block.{number}: there are {len(cuts)} {what}, counted from 1")
    return cuts


def _check_views(config: Config, encoder: Encoder) -> None:
    """Raises InputError where the encoder, or what blocks do with its maps, does not take the size of a view."""
    for size in sorted({*config.view_sizes} - {config.data.size}):
        try:
            with torch.no_grad(), evaluating(encoder):
                images = torch.zeros(1, config.image_shape[0], size, size, dtype=next(encoder.parameters()).dtype)
                shapes = [tuple(x.shape[1:]) for x in encoder.maps(images)]
        except (RuntimeError, ValueError, AssertionError) as error:
            raise InputError(
                f"views: encoder.kind={config.encoder.kind} does not take images of {size} px beside those of "
                f"{config.data.size} ({first_line(error)}); choose another size for that view"
            ) from None
        for number, shape in enumerate(shapes, start=1):
            if isinstance(config.scope, InBlocks) and len(shape) == 3:
                _check_map(config.scope, shape, f"block {number} for views of {size} px")


def _norm_of_expansions(config: Config, encoder: Encoder) -> str:
    """An expansion has the norm of its encoder, or layer norm where the encoder has no batch norm of its own."""
    return config.encoder.norm if has_batch_norm(encoder) or config.encoder.norm != "batch" else "layer"


@dataclass(frozen=True)
class _Siamese:
    """Builds the siamese Learner of one cut, number `k`, by the config of that block."""

    config: Config
    cut: Cut
    k: int
    classes: int | None
    epoch_steps: int
    images: int
    objects: Objects

    def __call__(self, encoder: Encoder, norm: str, autocast: torch.dtype | None, later: Passes) -> Learner:
        config, cut = self.config, self.cut
        assert config.projector is not None and config.objective is not None
        scope = Blockwise(kind="blockwise") if isinstance(config.scope, EndToEnd) else config.scope
        pooling = pooling_of(scope, norm, cut.shape, encoder.prefix, cut.last + 1)
        projector, dim = _head(config.projector, pooling.width, self.classes)
        objective = self.objective(dim)
        predictor, predicted = (None, dim) if config.predictor is None else _head(config.predictor, dim, self.classes)
        if predicted != dim:
            raise InputError(
                f"predictor.dims ends in {predicted}, but it predicts the projector's {dim}: make them equal"
            )
        noise = Noise(scope.noise, scope.noise_over)
        rest = (pooling, projector, noise, cut.first, config.train.micro_batch)
        network, learner = self.credited(cut.blocks, rest, encoder, dim)
        target = make(
            config.target,
            targets.KINDS,
            self.objects.get("target"),
            network=network,
            dim=dim,
            seed=hashed("prune", config.train.seed, self.k),
            epoch_steps=self.epoch_steps,
        )
        return learner(
            network,
            predictor,
            target,
            objective,
            config.view_sizes,
            scale=config.objective.scale,
            autocast=autocast,
            later=later,
        )

    def credited(
        self, blocks: Sequence[nn.Module], network: tuple[Any, ...], encoder: Encoder, dim: int
    ) -> tuple[Network, Any]:
        """The network and the Learner's class, by how errors reach the blocks; `network`: its arguments but these."""
        rule, seed = getattr(self.config.scope, "credit", "backprop"), hashed("credit", self.config.train.seed)
        if rule in BROADCAST:
            if rule == "drtp" and self.classes is None:
                raise InputError("scope.credit=drtp broadcasts labels, and this data has none; take direct")
            taught = {"rows": self.classes if rule == "drtp" else dim, "shapes": encoder.shapes, "seed": seed}
            return Broadcast(encoder.as_blocks(), *network, rule=rule, **taught), Learner
        if rule == "feedback_alignment":
            return Network(blocks, *network), partial(FeedbackAlignment, seed=seed)
        if rule == "none":
            if self.config.predictor is None and not [*network[1].parameters()]:
                raise InputError("scope.credit=none trains the heads alone, and there are none: set projector.dims")
            for block in blocks:
                block.requires_grad_(False)
        return Network(blocks, *network), Learner

    def objective(self, dim: int) -> nn.Module:
        """The objective, and whether its embeddings and labels are what it needs."""
        config, classes, number = self.config, self.classes, self.k + 1
        assert config.objective is not None
        kind = config.objective.kind
        objective = make(
            config.objective,
            objectives.KINDS,
            self.objects.get("objective"),
            dim=dim,
            classes=classes,
            seed=hashed("queue", config.train.seed, self.k),
            epoch_steps=self.epoch_steps,
            images=self.images,
        )
        if any(getattr(objective, fact, False) for fact in ("labelled", "needs_labels")) and classes is None:
            raise InputError(f"objective.kind={kind} of block {number} needs labels, and this data has none")
        if config.labelled and dim != classes:
            raise InputError(
                f"projector.dims of block {number} ends in {dim}, but the data has {classes} classes: let it end in "
                "classes"
            )
        if kind not in objectives.KINDS:
            try_objective(objective, kind, dim, classes)
        return objective


def try_objective(objective: Any, kind: str, dim: int, classes: int | None) -> None:
    """Raises InputError unless a loss of one's own gives one finite number with a gradient for a batch of noise."""
    generator = torch.Generator().manual_seed(0)
    z, t = torch.randn(2, 8, dim, generator=generator, requires_grad=True)
    labels = None if classes is None else torch.arange(8) % classes
    if getattr(objective, "labelled", False):
        assert labels is not None
        t = labels
    batch = (Batch(labels, (0, 0), 0, torch.arange(8)),) if asks_for_batch(objective) else ()
    try:
        loss = objective(z, t, *batch)
    except Exception as error:  # whatever the caller's own code raises
        raise InputError(
            f"objective.kind={kind} fails on two batches of 8 embeddings of width {dim}: "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error
    if not isinstance(loss, Tensor) or loss.shape != ():
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise InputError(f"objective.kind={kind} gives {shape}; it should give one number, a tensor of shape ()")
    if not loss.isfinite() or not loss.requires_grad:
        what = "has no gradient" if loss.isfinite() else f"is {loss.item()}"
        raise InputError(f"objective.kind={kind}: the loss of two batches of 8 random embeddings {what}")


def _another_learner(config: Config, cut: Cut, k: int, given: Mapping[str, Any], objects: Objects) -> nn.Module:
    """A learner that is not siamese, and whether it has what training and diagnosis call."""
    learner = make(
        config.learner,
        LEARNERS,
        objects.get("learner"),
        blocks=nn.Sequential(*cut.blocks),
        image_shape=config.image_shape,
        input_shape=cut.input_shape,
        shape=cut.shape,
        number=k,
        seed=hashed("learner", config.train.seed, k),
        **given,
    )
    assert config.learner is not None
    called = ("forward", "pass_on", "after_step", "outputs")  # a module has a forward that only raises
    missing = [name for name in called if getattr(type(learner), name, None) in (None, nn.Module.forward)]
    if not isinstance(learner, nn.Module) or missing:
        what = f"has no {', '.join(missing)}" if missing else "is no torch.nn.Module"
        raise InputError(f"learner.kind={config.learner.kind} {what}; see the page on a learner of your own")
    return learner


def pooling_of(scope: InBlocks, norm: str, shape: tuple[int, ...], prefix: int, number: int) -> Pooling:
    """The pooling of block `number`, which gives `shape`; an expansion has the norm `norm`."""
    if len(shape) != 3:
        for name, value in (("pool", scope.pool != "gap"), ("expand", scope.expand)):
            if value:
                given = f"scope.{name}={getattr(scope, name)}"
                gives = "tokens" if len(shape) == 2 else "vectors"
                raise InputError(f"{given} is for maps, but this encoder gives {gives}; leave {name} out")
        return Pooling(shape[-1], prefix=prefix)
    _check_map(scope, shape, f"block {number}")
    return Pooling(shape[0], scope.pool, scope.grid, scope.expand, norm)


def _check_map(scope: InBlocks, shape: tuple[int, ...], of: str) -> None:
    """Raises InputError where a map (c, h, w) has fewer places than the scope asks for."""
    _, height, width = shape
    if scope.grid > min(height, width):
        raise InputError(f"scope.grid={scope.grid} is more than the {height} x {width} map of {of} has")
    if scope.noise and scope.noise_over == "hw" and height * width == 1:
        raise InputError(f"scope.noise_over=hw: the map of {of} is one place, which has no spread; use all")


def _head(spec: Predictor, width: int, classes: int | None) -> tuple[nn.Module, int]:
    if "classes" in spec.dims and classes is None:
        raise InputError("projector.dims asks for the number of classes, but this data has no labels")
    by_name = {"classes": classes, "same": width}
    dims: Sequence[int] = [by_name.get(d, d) for d in spec.dims]  # pyright: ignore[reportArgumentType, reportAssignmentType, reportCallIssue]
    dim = dims[-1] if dims else width
    last = (spec.last_norm, spec.last_affine, spec.last_bias)
    if not isinstance(spec, Head):
        return mlp(width, dims, spec.norm, *last), dim
    head = mlp(width, dims, spec.norm, *last, spec.activation)
    if spec.prototypes is None:
        return head, dim
    return head.append(Prototypes(dim, spec.prototypes)), spec.prototypes
