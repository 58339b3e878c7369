"""The form of a run: strict models of its parts, and what may not stand together."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import Discriminator, Field, Tag, ValidationError, model_validator

from twinblock.config.data import Data
from twinblock.config.explain import explain
from twinblock.config.fields import EncoderSpec, Head, Optim, Predictor, Train, ViewSpec
from twinblock.config.overrides import NO_MAPPING, merge
from twinblock.config.scopes import Blockwise, EndToEnd, InBlocks, Overlapping
from twinblock.core.errors import InputError
from twinblock.core.types import Positive
from twinblock.methods import learners, objectives, targets
from twinblock.methods.parts import Part, form_of, kind_of, one_of

RENAMED = {"branch": "target"}  # fields that had another name in 0.1


class ObjectiveFields(Part):
    scale: Positive = 1.0
    """Factor of the loss."""


OBJECTIVES = {kind: form_of(kind, cls, ObjectiveFields) for kind, cls in objectives.KINDS.items()}
TARGETS = {kind: form_of(kind, cls) for kind, cls in targets.KINDS.items()}
LEARNERS = {kind: form_of(kind, cls) for kind, cls in learners.KINDS.items()}
if TYPE_CHECKING:
    ObjectivePart: TypeAlias = Any
    TargetPart: TypeAlias = Any
    LearnerPart: TypeAlias = Any
else:
    ObjectivePart = one_of(OBJECTIVES, ObjectiveFields) | None
    TargetPart = one_of(TARGETS)
    LearnerPart = one_of(LEARNERS) | None


Scope: TypeAlias = Annotated[
    Annotated[EndToEnd, Tag("end_to_end")]
    | Annotated[Blockwise, Tag("blockwise")]
    | Annotated[Overlapping, Tag("overlapping")],
    Discriminator(kind_of),
]


class Config(Part):
    """One pretraining run. Every field of every recipe; unknown fields are errors."""

    data: Data = Data()
    """The images."""
    views: Annotated[tuple[ViewSpec, ...], Field(min_length=1)]
    """The random views of an image; `{like: 0, ...}` is view 0 with other fields."""
    encoder: EncoderSpec = EncoderSpec()
    """The network that is kept."""
    learner: LearnerPart = None
    """One that compares no views, or your own, `package.module:Class`; null: the siamese one, of the next four."""
    projector: Head | None = None
    """Layers that give the embedding."""
    predictor: Predictor | None = None
    """Layers that predict the target's embedding; null: none."""
    target: TargetPart = TARGETS["shared"](kind="shared")  # pyright: ignore[reportCallIssue]
    """The network that makes the embeddings to compare with."""
    objective: ObjectivePart = None
    """The loss."""
    scope: Scope = EndToEnd()
    """Which blocks learn from which loss."""
    optim: Optim
    """The optimizer."""
    train: Train = Train()
    """Length, precision, checkpoints."""
    out: str | None = None
    """The folder of the run; null: runs/ and the recipe's name."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a view. Only of a resolved config; one of before 0.3 has 3 channels."""
        assert self.data.size is not None, "the config is not resolved"
        return (3 if self.data.channels == "auto" else self.data.channels, self.data.size, self.data.size)

    @property
    def view_sizes(self) -> list[int]:
        """The side of each view in pixels, with a view of count n listed n times. Only of a resolved config."""
        assert self.data.size is not None, "the config is not resolved"
        return [view.size or self.data.size for view in self.views for _ in range(view.count)]

    @property
    def objective_class(self) -> type[objectives.Objective] | None:
        """The objective's class, which knows facts of it; None where it is not one of ours."""
        return None if self.objective is None else objectives.KINDS.get(self.objective.kind)

    @property
    def labelled(self) -> bool:
        """Whether the objective or the learner is one of ours that needs labels."""
        if self.learner is not None:
            return getattr(learners.KINDS.get(self.learner.kind), "labelled", False)
        return self.objective_class is not None and self.objective_class.labelled

    def norms_of_batches(self) -> list[str]:
        """The fields that ask for batch statistics, as `projector.norm=batch`."""
        used = {"encoder.norm": self.encoder.norm}
        for name, head in (("projector", self.projector), ("predictor", self.predictor)):
            if head is not None:
                used |= {f"{name}.norm": head.norm} if len(head.dims) > 1 else {}
                used |= {f"{name}.last_norm": head.last_norm} if head.dims else {}
        return [f"{field}={norm}" for field, norm in used.items() if norm.removesuffix("+ws") in ("batch", "sync")]

    @model_validator(mode="before")
    @classmethod
    def _views_like_others(cls, fields: Any) -> Any:
        if isinstance(fields, Mapping) and isinstance(fields.get("views"), list | tuple):
            return {**fields, "views": _like(list(fields["views"]))}
        return fields

    @model_validator(mode="after")
    def _sensible(self):
        if self.data.batch == 1:
            for name in self.norms_of_batches():
                raise ValueError(f"data.batch=1 with {name}: one sample has no batch statistics")
        budgets = getattr(self.scope, "budgets", None)
        if self.train.length.on_the_clock and budgets and budgets[0].unit != "%":
            raise ValueError(f"train.length={self.train.length}: give scope.budgets in percent of it")
        if self.train.parallel == "blocks":
            if self.scope.kind != "blockwise":
                raise ValueError(f"train.parallel=blocks: scope.kind={self.scope.kind} trains blocks as one; use data")
            if "auto" in (self.data.batch, self.train.micro_batch):
                raise ValueError("train.parallel=blocks: the memory of a stage is not foreseen; give a number for auto")
            if self.train.length.on_the_clock:
                raise ValueError(
                    "train.parallel=blocks: the pace of stages is not measured; give train.length in steps"
                )
        if self.learner is None:
            self._siamese()
        else:
            self._without_views_to_compare()
        for number in self.scope.per_block:
            try:
                self.of_block(number)
            except ValidationError as error:
                raise ValueError(explain(error, Config, f"scope.per_block.{number}.")) from None
        return self

    @model_validator(mode="after")
    def _drops_where_it_can(self):
        if self.encoder.drop_path:
            if self.train.compile:
                raise ValueError("encoder.drop_path draws by hand, which train.compile cannot follow: leave one out")
            if self.learner is not None:
                raise ValueError("encoder.drop_path is for the siamese learner, which says when and what to draw")
        return self

    @model_validator(mode="after")
    def _error_can_be_fed_back(self):
        rule = getattr(self.scope, "credit", "backprop")
        if rule == "backprop":
            return self
        conflicts = {
            "the siamese learner: leave learner out": self.learner is not None,
            "networks as they are: leave train.compile out": self.train.compile,
            "whole batches: leave train.micro_batch out": self.train.micro_batch is not None,
            "one network: take another target than pruned": self.target.kind == "pruned",
            "views of one size: leave views.size out": len({view.size for view in self.views}) > 1,
        }
        for what, is_so in conflicts.items():
            if is_so:
                raise ValueError(f"scope.credit={rule} is for {what}")
        return self

    def _without_views_to_compare(self) -> None:
        """What is for the siamese Learner alone, and what a learner of ours needs."""
        kind = self.learner.kind
        if self.train.micro_batch is not None:
            raise ValueError(f"train.micro_batch: learner.kind={kind} takes its batch as a whole; leave it out")
        if self.train.compile:
            raise ValueError(f"train.compile: learner.kind={kind} runs as it is; leave it out")
        for number, block in self.scope.per_block.items():
            for name in ("objective", "projector", "predictor"):
                if getattr(block, name):
                    raise ValueError(f"scope.per_block.{number}.{name}: learner.kind={kind} has none; leave it out")
        cls = learners.KINDS.get(kind)
        if cls is None:
            return
        given = sum(view.count for view in self.views)
        if given != cls.views:
            raise ValueError(f"views: learner.kind={kind} sees {cls.views} of an image, {given} given; see its recipe")
        if self.scope.kind not in cls.scopes:
            raise ValueError(f"scope.kind={self.scope.kind}: learner.kind={kind} trains with {' or '.join(cls.scopes)}")
        for name in ("pool", "grid", "expand", "noise"):
            if getattr(self.scope, name, None) not in (None, InBlocks.model_fields[name].default):
                raise ValueError(f"scope.{name}: learner.kind={kind} has no pooling and adds no noise; leave it out")

    def _siamese(self) -> None:
        """What the parts of the siamese Learner need of each other."""
        for name in ("projector", "objective"):
            if getattr(self, name) is None:
                raise ValueError(f"{name}: required, but missing; only a learner of your own goes without")
        kind, facts = self.objective.kind, self.objective_class
        if facts is None:
            return
        if facts.labelled:
            if self.target.kind != "shared" or self.predictor is not None:
                raise ValueError(f"objective.kind={kind} compares with labels: use target.kind=shared and no predictor")
        elif sum(view.count for view in self.views) < 2:
            raise ValueError(f"views: objective.kind={kind} compares two views or more, 1 given")
        if self.target.kind == "pruned" and not facts.repels and self.predictor is None:
            raise ValueError(
                f"target.kind=pruned with objective.kind={kind} needs a predictor: each network follows the other, and "
                "without one both collapse to a constant"
            )
        if self.data.batch == 1 and facts.compares_images:
            raise ValueError(f"data.batch=1: objective.kind={kind} compares the images of a batch")

    def of_block(self, number: int) -> "Config":
        """The run as its block `number`, from 1 on, trains it: the block's own fields laid over the common ones."""
        settings = self.scope.per_block.get(number)
        if settings is None:
            return self
        tree = self.model_dump()
        tree["scope"]["per_block"] = {}
        for name, fields in settings.model_dump().items():
            if fields:
                merge(tree, name, fields)
        return Config.model_validate(tree)


def _like(views: list[Any]) -> list[Any]:
    """`{like: 0, blur: 0.1}` is view 0 with another blur."""
    full: list[Any] = []
    for i, view in enumerate(views):
        if isinstance(view, Mapping) and "like" in view:
            other = view["like"]
            if not isinstance(other, int) or not 0 <= other < i:
                given = f"={other}" if isinstance(other, int) else ""  # it may be a tree of billions of values
                raise ValueError(f"views.{i}.like{given} must be the number of an earlier view")
            base = full[other] if isinstance(full[other], Mapping) else {}
            view = {**base, **{k: v for k, v in view.items() if k != "like"}}
        full.append(view)
    return full


def check(tree: Any) -> Config:
    """Validate a whole run; the first thing that is wrong becomes one line."""
    if not isinstance(tree, Mapping):
        raise InputError(NO_MAPPING)
    for old, new in RENAMED.items():
        if old in tree:
            raise InputError(f"{old}: this part is called {new} now; write {new}.kind=... in place of {old}.kind=...")
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise InputError(explain(error, Config)) from None
