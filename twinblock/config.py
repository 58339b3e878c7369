"""The form of a run: strict models, recipes in YAML, overrides as `a.b=c`, and errors that a person can read."""

import copy
import difflib
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from twinblock.durations import Duration
from twinblock.errors import InputError
from twinblock.loggers import Logger
from twinblock.norms import parse_norm
from twinblock.presets import preset
from twinblock.views import View


def _norm(text: str) -> str:
    parse_norm(text)
    return text


Norm = Annotated[str, AfterValidator(_norm)]  # batch, sync, layer, group, none; group8, group+ws and so on
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Width = Annotated[int, Field(ge=1, le=65_536)]


PLAIN_TEXT = ("out", "data", "data.source", "data.root", "data.indices")  # paths are not YAML
KINDS = ("branch", "objective", "scope")  # parts whose fields depend on their kind


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
    source: str = "photodigits"  # photodigits, cifar10, cifar100, stl10, a folder, a Hugging Face name
    root: str | None = None  # where torchvision's sets lie
    batch: Annotated[int, Field(ge=1, le=2**20)] = 256  # images a step, over all processes
    size: Annotated[int, Field(ge=8, le=1024)] | None = None  # side of a view in pixels; null: from the images
    indices: str | None = None  # .npy or text: the rows to train on
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
    ratio: Annotated[float, Field(ge=0, lt=1)]  # share of the convolutions' weights that the second view goes without
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
    negatives: Annotated[int, Field(ge=1)] | None = None  # EqCo: count the queue as so many; null: as it is


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


class OfBlock(Part):
    """What a block has of its own: fields of these parts, in place of those of the run."""

    objective: dict[str, Any] = {}
    projector: dict[str, Any] = {}
    predictor: dict[str, Any] = {}
    optim: dict[str, Any] = {}


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
    branch: Annotated[SharedSpec | EMASpec | PrunedSpec, Field(discriminator="kind")] = SharedSpec()
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
    def _short_forms(cls, fields: Any) -> Any:
        if not isinstance(fields, Mapping):
            return fields
        fields = dict(fields)
        if isinstance(fields.get("data"), str):
            fields["data"] = {"source": fields["data"]}
        if isinstance(fields.get("views"), list | tuple):
            fields["views"] = _like(list(fields["views"]))
        return fields

    @model_validator(mode="after")
    def _sensible(self):
        if self.objective.kind == "supervised":
            if self.branch.kind != "shared" or self.predictor is not None:
                raise ValueError(
                    "objective.kind=supervised compares with labels: use branch.kind=shared and no predictor"
                )
        elif len(self.views) != 2:
            raise ValueError(f"views: objective.kind={self.objective.kind} compares two views, {len(self.views)} given")
        if self.branch.kind == "pruned" and self.objective.kind == "regression" and self.predictor is None:
            raise ValueError(
                "branch.kind=pruned with objective.kind=regression needs a predictor: each network regresses the "
                "other, and without one both collapse to a constant"
            )
        for name in self.norms_of_batches() if self.data.batch == 1 else ():
            raise ValueError(f"data.batch=1 with {name}: one sample has no batch statistics")
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
                _merge(tree, name, fields)
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


def recipes() -> dict[str, Path]:
    """The built-in recipes by name."""
    return {Path(str(f)).stem: Path(str(f)) for f in files("twinblock.recipes").iterdir() if f.name.endswith(".yaml")}


def compose(recipe: str | Path, fields: Mapping[str, Any] | None = None, overrides: Iterable[str] = ()) -> Config:
    """A recipe by name or path, with nested `fields` and `a.b=c` overrides laid over it, checked."""
    tree, overrides = _read(recipe), list(overrides)
    presets = tree.pop("presets", None) if isinstance(tree, dict) else None
    if presets is not None:
        length = _laid_over(copy.deepcopy(tree), fields, overrides).get("train", {}).get("length", Train().length)
        chosen = preset(presets, length, Path(recipe).stem)
        lay_over(tree, [f"{name}={value}" for name, value in chosen.items()])
    return check(_laid_over(tree, fields, overrides))


def _laid_over(tree: Any, fields: Mapping[str, Any] | None, overrides: Iterable[str]) -> Any:
    for key, value in (fields or {}).items():
        _merge(tree, key, value)
    return lay_over(tree, overrides)


def lay_over(tree: Any, overrides: Iterable[str]) -> Any:
    """Set fields of a tree, in place, by texts of the form `a.b=c`; kinds first, since they clear their part."""
    pairs = [text.partition("=") for text in overrides]
    for name, sign, value in sorted(pairs, key=lambda pair: not pair[0].endswith(".kind")):
        if not sign or not name:
            raise InputError(f"cannot read {name + sign + value!r}; overrides have the form a.b=c, e.g. data.batch=512")
        if not isinstance(tree, dict):
            raise InputError("a run is a YAML mapping with data, views, encoder, ...; `twinblock show byol` prints one")
        _set(tree, name, value if name in PLAIN_TEXT and value != "null" else _parse(value, name))
    return tree


def other_data(data: Data, given: str | Mapping[str, Any]) -> Data:
    """The data of a run with another source or other fields."""
    changed = {"source": given, "root": None} if isinstance(given, str) else dict(given)
    try:
        return Data.model_validate({**data.model_dump(), **changed})
    except ValidationError as error:
        raise InputError(explain(error, Data, "data.")) from None


def check(tree: Any) -> Config:
    """Validate a whole run; the first thing that is wrong becomes one line."""
    if not isinstance(tree, Mapping):
        raise InputError("a run is a YAML mapping with data, views, encoder, ...; `twinblock show byol` prints one")
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise InputError(explain(error, Config)) from None


def _read(recipe: str | Path) -> Any:
    known = recipes()
    path = known.get(str(recipe), Path(recipe))
    if not path.is_file():
        near = difflib.get_close_matches(str(recipe), known, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"no recipe {str(recipe)!r}{hint} Known: {', '.join(sorted(known))}, or a path to a YAML file")
    try:
        return _parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the recipe {path}: {error}") from None


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = getattr(error, "problem", None) or str(error)
        raise InputError(f"{where}: not valid YAML: {' '.join(str(reason).split())}") from None


def _merge(tree: Any, key: str, value: Any) -> None:
    if isinstance(value, Mapping) and isinstance(tree.get(key), Mapping):
        other = key in KINDS and "kind" in value and value["kind"] != tree[key].get("kind")
        tree[key] = dict(value) if other else {**tree[key], **value}
    elif key == "data" and not isinstance(value, Mapping):
        tree[key] = {**(tree.get("data") or {}), "source": str(value)}
    else:
        tree[key] = value


def _set(tree: Any, name: str, value: Any) -> None:
    *path, last = name.split(".")
    node = tree
    for i, part in enumerate(path):
        child = _child(node, part)
        if child is None and isinstance(node, dict):
            child = node[part] = {}
        if not isinstance(child, dict | list):
            raise InputError(f"{name}: {'.'.join(path[: i + 1])} has no fields; see `twinblock show`")
        node = child
    if isinstance(node, list):
        if _child(node, last) is None:
            raise InputError(f"{name}: there is no number {last}; {'.'.join(path)} has {len(node)} entries")
        node[int(last)] = value
    elif path:
        # another kind of part starts from its own defaults: the old kind's fields mean nothing to it
        if last == "kind" and path[0] in KINDS and node.get("kind") != value:
            node.clear()
        node[last] = value
    else:
        _merge(node, last, value)


def _child(node: Any, part: str) -> Any:
    if isinstance(node, list):
        return node[int(part)] if part.isdigit() and int(part) < len(node) else None
    return node.get(part)


def explain(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """The first fault of a validation in one line: where, what, and the nearest valid word."""
    fault = error.errors(include_url=False)[0]
    location = [str(part) for part in fault["loc"]]
    # pydantic's path also names the kinds and types it tried; the user wrote fields and numbers only
    where = prefix + ".".join(p for i, p in enumerate(location) if _is_written(model, location[:i], p))
    if fault["type"] == "extra_forbidden":
        where = prefix + ".".join([*where.removeprefix(prefix).split("."), location[-1]]).lstrip(".")
        known = sorted({name for m in _models_at(model, location[:-1]) for name in m.model_fields})
        return unknown_field(where, known)
    if fault["type"] in ("union_tag_invalid", "union_tag_not_found"):
        tags = [t.strip("'") for t in fault.get("ctx", {}).get("expected_tags", "").split(", ") if t]
        given = fault.get("ctx", {}).get("tag")
        near = difflib.get_close_matches(str(given), tags, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"{where}.kind: {'missing' if given is None else f'unknown kind {given!r}'}; {hint}" + (
            f"Known: {', '.join(tags)}" if tags else ""
        )
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if fault["type"] in ("model_type", "model_attributes_type", "dict_type"):
        message = "a mapping of fields"
    if fault["type"] == "missing":
        return f"{where}: required, but missing"
    value = f" (got {fault['input']!r})" if isinstance(fault["input"], str | int | float | bool | None) else ""
    if not where or fault["type"] == "value_error":
        return f"{where}: {message}{value}" if where else message
    return f"{where}: should be {message}{value}" if fault["msg"].startswith("Input") else f"{where}: {message}{value}"


def unknown_field(where: str, known: Iterable[str]) -> str:
    """What is said of a field that there is not, with the nearest of those that there are."""
    near = difflib.get_close_matches(where.rpartition(".")[2], known := list(known), n=1, cutoff=0.5)
    return f"{where}: unknown field; " + (f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}")


def _models_at(model: type[BaseModel], path: list[str]) -> list[type[BaseModel]]:
    """The models that a path of pydantic's error leads to; kinds and numbers in it choose among them."""
    models = [model]
    for part in path:
        tagged = [m for m in models if part in _tags(m)]
        if tagged:
            models = tagged
        elif not part.isdigit():
            inner = [m.model_fields[part].annotation for m in models if part in m.model_fields]
            models = [m for annotation in inner for m in _models_in(annotation)]
    return models


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _tags(model: type[BaseModel]) -> tuple:
    return get_args(model.model_fields["kind"].annotation) if "kind" in model.model_fields else ()


def _is_written(model: type[BaseModel], path: list[str], part: str) -> bool:
    return part.isdigit() or any(part in m.model_fields for m in _models_at(model, path))
