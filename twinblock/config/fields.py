"""The parts of a run and their fields, apart from those that follow from a method's own classes."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from twinblock.config.data import Name
from twinblock.core.durations import Duration
from twinblock.core.types import NotNegative, Positive, Probability, Width
from twinblock.methods.parts import Part
from twinblock.nn.heads import Activation
from twinblock.nn.norms import parse_norm
from twinblock.views import View

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
Logger = Literal["tensorboard", "wandb", "mlflow"]
if TYPE_CHECKING:
    MicroBatch: TypeAlias = int | None  # of a resolved config
    Widths: TypeAlias = int | tuple[int, ...]
else:
    Widths = Annotated[
        Annotated[int, Field(ge=8, le=4096, multiple_of=8), Tag("one")]
        | Annotated[tuple[Width, ...], Field(min_length=1), Tag("of each layer")],
        Discriminator(lambda given: "of each layer" if isinstance(given, list | tuple) else "one"),
    ]
    MicroBatch = Literal["auto"] | Annotated[int, Field(ge=1)] | None


class ViewSpec(View, frozen=True):
    """How one view is made. `crop` and `flip` may be left to the data: a fifth of a digit can be any digit."""

    crop: tuple[float, float] | None | Literal["auto"] = "auto"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Range of the random crop's area; null: the central square; `auto`: by the data."""
    flip: Probability | Literal["auto"] = "auto"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Probability of a horizontal flip; `auto`: by the data."""


class EncoderSpec(Part):
    """The network that is kept."""

    kind: Annotated[str, AfterValidator(_without_weights)] = "auto"
    """A name of timm, `torchvision/NAME`, `resnet10`, `package.module:function`; `vgg6`, `vgg8b`, `vgg11_conv`; rows of
    layers, `mlp`, `sigmoid_mlp`, `convs`; `auto`: by the size of the images."""
    stem: Literal["auto", "standard", "cifar", "cifar_stride2"] = "auto"
    """First layers: `standard`; `cifar`, 3 x 3 without stride or pooling; `cifar_stride2`, with a stride of 2."""
    norm: Norm = "batch"
    """Norm of its layers: `batch`, `sync`, `layer`, `group`, `group8`, `none`; `rms` divides each sample by its root
    mean square, `standard` takes its mean away before; `+ws` standardises the weights."""
    width: Widths | None = None
    """Channels of the first stage of a ResNet, or of the first convolution of `vgg6` and its like; null: as
    published. Of `mlp`, `sigmoid_mlp` and `convs` the width of each layer, as [512, 512]."""
    patch: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Side of the patches of timm's ViT in pixels; null: that in its name."""
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

    dims: tuple[Width | Literal["classes", "same"], ...]
    """Width of each layer; `classes`: the number of classes; `same`: the width that it is given."""
    norm: Norm = "batch"
    """Norm after each hidden layer."""
    last_bias: bool = False
    """Whether the last layer has a bias."""
    last_norm: Norm = "none"
    """Norm after the last layer."""
    last_affine: bool = True
    """Whether that norm has weight and bias."""
    activation: Activation = "relu"
    """What follows each hidden layer: `relu` or `gelu`."""
    prototypes: Width | None = None
    """The embedding becomes its cosines with so many learned vectors, as DINO compares; null: it stays."""


class Head(Predictor):
    """Layers behind the encoder that give the embedding; they are dropped after training."""


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
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """The second beta of AdamW."""
    weight_decay: NotNegative = 0.0
    """Weight decay."""
    weight_decay_end: NotNegative | None = None
    """Weight decay at the end, which it nears by half a cosine; null: it stays."""
    exclude_bias_and_norm: bool = True
    """Whether biases and norms go without weight decay and without LARS's adaptation."""
    warmup: Duration = Duration.parse("0epochs")
    """Time in which the learning rate rises from 0."""
    end: Probability = 0.0
    """Last learning rate as a part of the peak."""
    milestones: tuple[Duration, ...] = ()
    """Times from each of which on the learning rate is `factor` of what it was; without any it falls by half a
    cosine."""
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """That factor."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor of the learning rate from one layer of the encoder to the one before it; the heads have the whole."""
    clip: Positive | None = None
    """Largest gradient norm of a Learner; null: any."""
    clip_each: Positive | None = None
    """Largest gradient norm of each parameter; null: any."""
    freeze_prototypes: Duration = Duration.parse("0epochs")
    """How long prototypes, those of the projector or of the objective, stay as they were drawn."""

    @model_validator(mode="after")
    def _one_schedule(self):
        if self.milestones and self.end:
            raise ValueError("end is for half a cosine; with milestones the last one and factor say where it ends")
        return self


class Train(Part):
    """How long, how exactly, and what is written down."""

    length: Annotated[Duration, BeforeValidator(Duration.of_run)] = Duration.parse("100epochs")
    """Length of the training, as `100epochs` or `5000steps`; or as `30min` or `2h`: the number of steps that fit into
    this time is measured before the first one, and kept."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """What all random draws follow from."""
    precision: Literal["auto", "fp32", "bf16", "fp64"] = "auto"
    """Number type; `auto`: bf16 where the processor is fast at it, else fp32."""
    micro_batch: MicroBatch = None
    """Images of a batch that go through the network at a time, on each process; null: all; `auto`: all if they fit into
    memory, else as many as do. It takes less memory and a third more time; the gradient is that of the whole batch, but
    a batch norm of the encoder sees each part alone."""
    parallel: Literal["data", "blocks"] = "data"
    """What the processes of a run share out: the images of a batch; or, with scope=blockwise, the blocks, and a batch
    only where there are more processes than blocks."""
    checkpoint_every: Duration = Duration.parse("1epochs")
    """Time from one checkpoint to the next."""
    keep: Duration | None = None
    """Time from one encoder that is kept to the next, in steps or epochs; null: the last one alone is kept."""
    deterministic: bool = False
    """Bit-exact on a GPU too, at some cost; a CPU is so anyway."""
    compile: bool = False
    """Whether to compile encoder, heads and loss with torch.compile."""
    loggers: tuple[Logger, ...] = ()
    """Where else to log: `tensorboard`, `wandb`, `mlflow`."""
    on_collapse: Literal["warn", "stop"] = "warn"
    """What a complete collapse does: `warn` goes on, `stop` saves and ends; exit code 3 for both."""

    @model_validator(mode="after")
    def _some_time(self):
        if not self.checkpoint_every.amount:
            raise ValueError("checkpoint_every is the time from one to the next; 100% is the end alone")
        if self.keep is not None and not self.keep.amount:
            raise ValueError("keep is the time from one encoder to the next; null keeps the last one alone")
        return self
