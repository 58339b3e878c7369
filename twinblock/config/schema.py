"""The form of a run: strict models of its parts, and what may not stand together."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from twinblock.config.data import Data, Name
from twinblock.config.explain import explain
from twinblock.config.overrides import NO_MAPPING, merge
from twinblock.config.scopes import Blockwise, EndToEnd, Overlapping
from twinblock.core.durations import Duration
from twinblock.core.errors import InputError
from twinblock.core.types import NotNegative, Positive, Probability, Width
from twinblock.methods import objectives, targets
from twinblock.methods.parts import Part, form_of, one_of, other
from twinblock.nn.norms import parse_norm
from twinblock.views import View

RENAMED = {"branch": "target"}  # fields that had another name in 0.1
WITH_WEIGHTS = ("hf-hub:", "hf_hub:", "local-dir:")  # how timm names weights of a hub or folder


def _norm(text: str) -> str:
    parse_norm(text)
    return text


def _without_weights(kind: str) -> str:
    if kind.startswith(WITH_WEIGHTS) or ("." in kind and ":" not in kind):  # as timm's resnet18.a1_in1k
        name, _, tag = kind.rpartition("/")[2].rpartition(":")[2].partition(".")
        raise ValueError(f"a network's name with weights: write encoder={name} encoder.weights=timm:{tag or 'TAG'}")
    return kind


def _weights(text: str) -> str:
    if text == "timm:":
        raise ValueError("timm: and then a tag, as timm:a1_in1k; pretrained is timm's own choice")
    return text


def _one_or_more(given: Any) -> Any:
    return (given,) if isinstance(given, str) else given


Norm = Annotated[str, AfterValidator(_norm)]  # batch, sync, layer, group, none; group8, group+ws and so on
Logger = Literal["tensorboard", "wandb"]


class ViewSpec(View, frozen=True):
    """How one view is made. `crop` and `flip` may be left to the data: a fifth of a digit can be any digit."""

    crop: tuple[float, float] | None | Literal["auto"] = "auto"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Range of the random crop's area; null: the central square; `auto`: by the data."""
    flip: Probability | Literal["auto"] = "auto"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Probability of a horizontal flip; `auto`: by the data."""


class EncoderSpec(Part):
    """The network that is kept."""

    kind: Annotated[str, AfterValidator(_without_weights)] = "auto"
    """A name of timm, `torchvision/NAME`, `resnet10`, `package.module:function`; `auto`: by the size of the images."""
    stem: Literal["auto", "standard", "cifar", "cifar_stride2"] = "auto"
    """First layers: `standard`; `cifar`, 3 x 3 without stride or pooling; `cifar_stride2`, with a stride of 2."""
    norm: Norm = "batch"
    """Norm of its layers: `batch`, `sync`, `layer`, `group`, `group8`, `none`; `+ws` standardises the weights."""
    width: Annotated[int, Field(ge=8, le=4096, multiple_of=8)] | None = None
    """Channels of a ResNet's first stage; null: as published."""
    weights: Annotated[Name, AfterValidator(_weights)] | None = None
    """What training starts from: `pretrained`, the library's own weights; `timm:TAG`, others of timm; a .safetensors,
    .pth or .pt file; the folder of a run; null: weights drawn from the seed."""
    weights_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """The SHA-256 that the file of these weights must have; null: any. The run keeps the one it was."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Drop path: how often the last residual block is left out for a sample in training; earlier ones less often."""
    freeze: Annotated[tuple[str, ...], BeforeValidator(_one_or_more)] = ()
    """Modules or parameters of the encoder that stay as they are, by name, or `all`."""
    freeze_for: Duration = Duration.parse("100%")
    """How long these stay so, from the start on."""


class Predictor(Part):
    """Layers behind the projector, of the online network alone."""

    dims: tuple[Width | Literal["classes"], ...]
    """Width of each layer; `classes`: the number of classes."""
    norm: Norm = "batch"
    """Norm after each hidden layer."""
    last_bias: bool = False
    """Whether the last layer has a bias."""


class Head(Predictor):
    """Layers behind the encoder that give the embedding; they are dropped after training."""

    last_norm: Norm = "none"
    """Norm after the last layer."""
    last_affine: bool = True
    """Whether that norm has weight and bias."""


class ObjectiveFields(Part):
    scale: Positive = 1.0
    """Factor of the loss."""


OBJECTIVES = {kind: form_of(kind, cls, ObjectiveFields) for kind, cls in objectives.KINDS.items()}
TARGETS = {kind: form_of(kind, cls) for kind, cls in targets.KINDS.items()}
if TYPE_CHECKING:
    ObjectivePart: TypeAlias = Any
    TargetPart: TypeAlias = Any
    LearnerPart: TypeAlias = Any
else:
    ObjectivePart = one_of(OBJECTIVES, ObjectiveFields) | None
    TargetPart = one_of(TARGETS)
    LearnerPart = other() | None


class Optim(Part):
    """The optimizer of each Learner."""

    kind: Literal["sgd", "lars", "adamw"]
    """`sgd`, `lars` or `adamw`."""
    lr: Positive
    """Peak learning rate for 256 images a step; it is multiplied by batch / 256."""
    lr_bias: Positive | None = None
    """Peak for biases and norms; null: `lr`."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum; the first beta of AdamW."""
    weight_decay: NotNegative = 0.0
    """Weight decay."""
    exclude_bias_and_norm: bool = True
    """Whether biases and norms go without weight decay and without LARS's adaptation."""
    warmup: Duration = Duration.parse("0epochs")
    """Time in which the learning rate rises from 0."""
    end: Probability = 0.0
    """Last learning rate as a part of the peak."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor of the learning rate from one layer of the encoder to the one before it; the heads have the whole."""
    clip: Positive | None = None
    """Largest gradient norm of a Learner; null: any."""


class Train(Part):
    """How long, how exactly, and what is written down."""

    length: Duration = Duration.parse("100epochs")
    """Length of the training, as `100epochs` or `5000steps`."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """What all random draws follow from."""
    precision: Literal["auto", "fp32", "bf16", "fp64"] = "auto"
    """Number type; `auto`: bf16 where the processor is fast at it, else fp32."""
    micro_batch: Annotated[int, Field(ge=1)] | None = None
    """Images of a batch that go through the network at a time, on each process; null: all. It takes less memory and a
    third more time; the gradient is that of the whole batch, but a batch norm of the encoder sees each part alone."""
    checkpoint_every: Duration = Duration.parse("1epochs")
    """Time from one checkpoint to the next."""
    keep: Duration | None = None
    """Time from one encoder that is kept to the next, in steps or epochs; null: the last one alone is kept."""
    deterministic: bool = False
    """Bit-exact on a GPU too, at some cost; a CPU is so anyway."""
    compile: bool = False
    """Whether to compile the encoder with torch.compile."""
    loggers: tuple[Logger, ...] = ()
    """Where else to log: `tensorboard`, `wandb`."""
    on_collapse: Literal["warn", "stop"] = "warn"
    """What a complete collapse does: `warn` goes on, `stop` saves and ends; exit code 3 for both."""

    @model_validator(mode="after")
    def _some_time(self):
        if not self.checkpoint_every.amount:
            raise ValueError("checkpoint_every is the time from one to the next; 100% is the end alone")
        if self.keep is not None and not self.keep.amount:
            raise ValueError("keep is the time from one encoder to the next; null keeps the last one alone")
        return self


class Config(Part):
    """One pretraining run. Every field of every recipe; unknown fields are errors."""

    data: Data = Data()
    """The images."""
    views: Annotated[tuple[ViewSpec, ...], Field(min_length=1)]
    """The random views of an image; `{like: 0, ...}` is view 0 with other fields."""
    encoder: EncoderSpec = EncoderSpec()
    """The network that is kept."""
    learner: LearnerPart = None
    """A learner of your own, `package.module:Class`; null: the siamese one, made of the next four parts."""
    projector: Head | None = None
    """Layers that give the embedding."""
    predictor: Predictor | None = None
    """Layers that predict the target's embedding; null: none."""
    target: TargetPart = TARGETS["shared"](kind="shared")  # pyright: ignore[reportCallIssue]
    """The network that makes the embeddings to compare with."""
    objective: ObjectivePart = None
    """The loss."""
    scope: Annotated[EndToEnd | Blockwise | Overlapping, Field(discriminator="kind")] = EndToEnd()
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
    def labelled(self) -> bool:
        """Whether the objective is one of ours that compares with labels."""
        return self.objective is not None and getattr(objectives.KINDS.get(self.objective.kind), "labelled", False)

    def norms_of_batches(self) -> list[str]:
        """The fields that ask for batch statistics, as `projector.norm=batch`."""
        used = {"encoder.norm": self.encoder.norm}
        for name, head in (("projector", self.projector), ("predictor", self.predictor)):
            if head is not None:
                used |= {f"{name}.norm": head.norm} if len(head.dims) > 1 else {}
                used |= {f"{name}.last_norm": head.last_norm} if isinstance(head, Head) and head.dims else {}
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
        if self.learner is None:
            self._siamese()
        elif self.train.micro_batch is not None:
            raise ValueError("train.micro_batch: a learner of your own divides its batch itself; leave it out")
        for number in self.scope.per_block:
            try:
                self.of_block(number)
            except ValidationError as error:
                raise ValueError(f"scope.per_block.{number}.{explain(error, Config)}") from None
        return self

    @model_validator(mode="after")
    def _drops_where_it_can(self):
        if self.encoder.drop_path:
            if self.train.compile:
                raise ValueError("encoder.drop_path draws by hand, which train.compile cannot follow: leave one out")
            if self.learner is not None:
                raise ValueError("encoder.drop_path is for the siamese learner, which says when and what to draw")
        return self

    def _siamese(self) -> None:
        """What the parts of the siamese Learner need of each other."""
        for name in ("projector", "objective"):
            if getattr(self, name) is None:
                raise ValueError(f"{name}: required, but missing; only a learner of your own goes without")
        kind = self.objective.kind
        if self.labelled:
            if self.target.kind != "shared" or self.predictor is not None:
                raise ValueError(f"objective.kind={kind} compares with labels: use target.kind=shared and no predictor")
        elif kind in objectives.KINDS and sum(view.count for view in self.views) < 2:
            raise ValueError(f"views: objective.kind={kind} compares two views or more, 1 given")
        if self.target.kind == "pruned" and kind == "regression" and self.predictor is None:
            raise ValueError(
                "target.kind=pruned with objective.kind=regression needs a predictor: each network regresses the "
                "other, and without one both collapse to a constant"
            )
        if self.data.batch == 1 and kind in ("nt_xent", "barlow_twins", "vicreg"):
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
                raise ValueError(f"views.{i}.like={other!r} must be the number of an earlier view")
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
