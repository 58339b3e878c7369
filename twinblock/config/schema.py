"""The form of a run: strict models of its parts, and what may not stand together."""

from collections.abc import Mapping
from os import PathLike
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from twinblock.config.explain import explain
from twinblock.config.overrides import NO_MAPPING, merge
from twinblock.core.durations import Duration
from twinblock.core.errors import InputError
from twinblock.nn.norms import parse_norm
from twinblock.training.loggers import Logger
from twinblock.views import View


def _norm(text: str) -> str:
    parse_norm(text)
    return text


Norm = Annotated[str, AfterValidator(_norm)]  # batch, sync, layer, group, none; group8, group+ws and so on
Name = Annotated[str, BeforeValidator(lambda given: str(given) if isinstance(given, PathLike) else given)]  # or path
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Width = Annotated[int, Field(ge=1, le=65_536)]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LongTail(Part):
    """A long-tailed part of labelled training images."""

    imbalance: Annotated[float, Field(ge=1, allow_inf_nan=False)]  # of the most frequent class to the rarest
    kind: Literal["exp", "step", "balanced"] = "exp"  # balanced: as many images as exp has, in equal parts
    split: Annotated[int, Field(ge=0)] = 1  # which class is how frequent; 0: in order of label
    seed: Annotated[int, Field(ge=0)] = 0  # which images of a class
    largest: Annotated[int, Field(ge=1, le=2**31)] | None = (
        None  # images of the most frequent class; null: the smallest class's
    )


class Data(Part):
    source: Name = "photodigits"  # photodigits, cifar10, cifar100, stl10, a folder, a Hugging Face name
    root: Name | None = None  # where torchvision's sets lie
    batch: Annotated[int, Field(ge=1, le=2**20)] = 256  # images a step, over all processes
    size: Annotated[int, Field(ge=8, le=1024)] | None = None  # side of a view in pixels; null: from the images
    indices: Name | None = None  # .npy or text: the rows to train on
    longtail: LongTail | None = None  # of those


class ViewSpec(View, frozen=True):
    """A view whose crop and flip may be left to the data: what is a nuisance depends on what the images show."""

    crop: tuple[float, float] | None | Literal["auto"] = "auto"  # pyright: ignore[reportIncompatibleVariableOverride]
    flip: Probability | Literal["auto"] = "auto"  # pyright: ignore[reportIncompatibleVariableOverride]


class EncoderSpec(Part):
    kind: str = "auto"  # a timm name, torchvision/NAME, resnet10; auto: by the size of the images
    stem: Literal["auto", "standard", "cifar", "cifar_stride2"] = "auto"
    norm: Norm = "batch"
    width: Annotated[int, Field(ge=8, le=4096, multiple_of=8)] | None = None  # channels of a ResNet's first stage


class Predictor(Part):
    dims: tuple[Width | Literal["classes"], ...]
    norm: Norm = "batch"
    last_bias: bool = False


class Head(Predictor):
    last_norm: Norm = "none"
    last_affine: bool = True


class SharedSpec(Part):
    kind: Literal["shared"] = "shared"


class EMASpec(Part):
    kind: Literal["ema"]
    momentum: Probability
    schedule: Literal["cosine", "constant"] = "cosine"
    buffers: Literal["own", "average"] = "own"


class PrunedSpec(Part):
    kind: Literal["pruned"]
    ratio: Annotated[float, Field(ge=0, lt=1)]  # share of the layers' weights that the second view goes without
    every: Duration = Duration.parse("1epochs")  # time from one mask to the next
    random: Annotated[float, Field(ge=0, lt=1)] = 0.0  # chance of each weight left to be dropped as well


class ObjectiveSpec(Part):
    scale: Positive = 1.0  # factor of the loss


class NTXentSpec(ObjectiveSpec):
    kind: Literal["nt_xent"]
    temperature: Positive


class InfoNCESpec(ObjectiveSpec):
    kind: Literal["info_nce"]
    temperature: Positive
    queue: Annotated[int, Field(ge=1, le=2**22)]
    negatives: Annotated[int, Field(ge=1, le=2**53)] | None = None  # EqCo: count the queue as so many; null: as it is


class RegressionSpec(ObjectiveSpec):
    kind: Literal["regression"]


class BarlowTwinsSpec(ObjectiveSpec):
    kind: Literal["barlow_twins"]
    lambd: NotNegative


class VICRegSpec(ObjectiveSpec):
    kind: Literal["vicreg"]
    invariance: NotNegative
    variance: NotNegative
    covariance: NotNegative


class SupervisedSpec(ObjectiveSpec):
    kind: Literal["supervised"]


def _flat(fields: dict[str, Any]) -> dict[str, Any]:
    for name, value in fields.items():  # a tree may be billions of values in a few lines of YAML
        if any(isinstance(x, list | tuple | dict) for x in (value if isinstance(value, list | tuple) else [value])):
            raise ValueError(f"{name}: give one value, or a list of values")
    return fields


Fields = Annotated[dict[str, Any], AfterValidator(_flat)]


class OfBlock(Part):
    """What a block has of its own: fields of these parts, in place of those of the run."""

    objective: Fields = {}
    projector: Fields = {}
    predictor: Fields = {}
    optim: Fields = {}


class EndToEnd(Part):
    kind: Literal["end_to_end"] = "end_to_end"
    cuts: Literal["stages", "blocks"] | tuple[str, ...] = "stages"  # trains as one; the blocks are for the evaluation
    per_block: ClassVar[dict[int, OfBlock]] = {}


class InBlocks(Part):
    cuts: Literal["stages", "blocks"] | tuple[str, ...] = "stages"  # or the names of the modules that begin a block
    pool: Literal["gap", "local", "l2"] = "gap"
    grid: Annotated[int, Field(ge=1, le=64)] = 1  # windows a side, for local and l2
    expand: Width | None = None  # width of a 1x1 convolution before pooling
    noise: NotNegative = 0.0  # sigma, in units of the map's own std
    noise_over: Literal["all", "hw", "c"] = "all"  # what that std is over: the whole tensor, each map, each place
    per_block: dict[Annotated[int, Field(ge=1)], OfBlock] = {}  # by number of the block, from 1 on

    @model_validator(mode="after")
    def _windows(self):
        if self.pool == "gap" and self.grid != 1:
            raise ValueError("grid is for pool=local or pool=l2; global pooling has one window")
        return self


class Blockwise(InBlocks):
    kind: Literal["blockwise"]
    plan: Literal["simultaneous", "sequential"] = "simultaneous"
    budgets: tuple[Duration, ...] | None = None  # of the blocks of a sequential plan, in % or in steps; null: equal

    @model_validator(mode="after")
    def _whole(self):
        if self.budgets is None:
            return self
        if self.plan != "sequential":
            raise ValueError("budgets are for plan=sequential; simultaneous blocks train all the time")
        shares = [budget for budget in self.budgets if budget.unit == "%"]
        if shares and len(shares) < len(self.budgets):
            raise ValueError("budgets: give all of them in %, or none")
        if shares and sum(share.amount for share in shares) != 100:
            raise ValueError(f"budgets add up to {sum(share.amount for share in shares)}%; make it 100%")
        return self


class Overlapping(InBlocks):
    kind: Literal["overlapping"]

    @model_validator(mode="after")
    def _one_optimizer(self):
        for number, own in self.per_block.items():
            if own.optim:
                raise ValueError(f"per_block.{number}.optim: blocks that overlap share one optimizer; set optim itself")
        return self


class Optim(Part):
    kind: Literal["sgd", "lars", "adamw"]
    lr: Positive  # for 256 images a step; multiplied by batch / 256
    lr_bias: Positive | None = None  # own learning rate of biases and norms, for 256 images; null: lr
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NotNegative = 0.0
    exclude_bias_and_norm: bool = True  # from weight decay and from LARS's adaptation
    warmup: Duration = Duration.parse("0epochs")
    end: Probability = 0.0  # last learning rate as a part of the peak
    clip: Positive | None = None  # largest gradient norm of a Learner


class Train(Part):
    length: Duration = Duration.parse("100epochs")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    precision: Literal["auto", "fp32", "bf16", "fp64"] = "auto"
    checkpoint_every: Duration = Duration.parse("1epochs")
    deterministic: bool = False  # bit-exact on a GPU too, at some cost; a CPU is so anyway
    compile: bool = False  # torch.compile the encoder
    loggers: tuple[Logger, ...] = ()
    on_collapse: Literal["warn", "stop"] = "warn"  # warn: go on; stop: save and end; exit code 3 for both

    @model_validator(mode="after")
    def _some_time(self):
        if not self.checkpoint_every.amount:
            raise ValueError("checkpoint_every is the time from one to the next; 100% is the end alone")
        return self


Objective = Annotated[
    NTXentSpec | InfoNCESpec | RegressionSpec | BarlowTwinsSpec | VICRegSpec | SupervisedSpec,
    Field(discriminator="kind"),
]


class Config(Part):
    """One pretraining run. Every field of every recipe; unknown fields are errors."""

    data: Data = Data()
    views: Annotated[tuple[ViewSpec, ...], Field(min_length=1, max_length=2)]
    encoder: EncoderSpec = EncoderSpec()
    projector: Head
    predictor: Predictor | None = None
    target: Annotated[SharedSpec | EMASpec | PrunedSpec, Field(discriminator="kind")] = SharedSpec()
    objective: Objective
    scope: Annotated[EndToEnd | Blockwise | Overlapping, Field(discriminator="kind")] = EndToEnd()
    optim: Optim
    train: Train = Train()
    out: str | None = None

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
        if self.objective.kind == "supervised":
            if self.target.kind != "shared" or self.predictor is not None:
                raise ValueError(
                    "objective.kind=supervised compares with labels: use target.kind=shared and no predictor"
                )
        elif len(self.views) != 2:
            raise ValueError(f"views: objective.kind={self.objective.kind} compares two views, {len(self.views)} given")
        if self.target.kind == "pruned" and self.objective.kind == "regression" and self.predictor is None:
            raise ValueError(
                "target.kind=pruned with objective.kind=regression needs a predictor: each network regresses the "
                "other, and without one both collapse to a constant"
            )
        if self.data.batch == 1:
            for name in self.norms_of_batches():
                raise ValueError(f"data.batch=1 with {name}: one sample has no batch statistics")
            if self.objective.kind in ("nt_xent", "barlow_twins", "vicreg"):
                raise ValueError(f"data.batch=1: objective.kind={self.objective.kind} compares the images of a batch")
        for number in self.scope.per_block:
            try:
                self.of_block(number)
            except ValidationError as error:
                raise ValueError(f"scope.per_block.{number}.{explain(error, Config)}") from None
        return self

    def of_block(self, number: int) -> "Config":
        """The run as its block `number`, from 1 on, trains it: the block's own fields laid over the common ones."""
        own = self.scope.per_block.get(number)
        if own is None:
            return self
        tree = self.model_dump()
        tree["scope"]["per_block"] = {}
        for name, fields in own.model_dump().items():
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


def other_data(data: Data, given: str | PathLike[str] | Mapping[str, Any]) -> Data:
    """The data of a run with another source or other fields; InputError for what is no data."""
    changed: dict[str, Any] = {"source": given} if isinstance(given, str | PathLike) else dict(given)
    if str(changed.get("source", data.source)) != data.source:
        changed.setdefault("root", None)  # another source does not lie where that of the run does
    if changed.get("size", "") is None:
        changed.pop("size")  # as the run has it
    try:
        return Data.model_validate({**data.model_dump(), **changed})
    except ValidationError as error:
        raise InputError(explain(error, Data, "data.")) from None


def check(tree: Any) -> Config:
    """Validate a whole run; the first thing that is wrong becomes one line."""
    if not isinstance(tree, Mapping):
        raise InputError(NO_MAPPING)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise InputError(explain(error, Config)) from None
