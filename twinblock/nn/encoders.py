"""Image encoders as ordered blocks: any timm or torchvision network whose stages follow each other, and ViTs."""

import copy
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torchvision.ops import Permute, StochasticDepth

from twinblock.core.errors import InputError, first_line
from twinblock.core.seeding import seeded
from twinblock.nn.cuts import Blocks, Cuts, Shape, cut_network, prefix_of, probe_images
from twinblock.nn.droppath import key_drop_paths
from twinblock.nn.imagenet import MEAN, STD
from twinblock.nn.layers import layers_of
from twinblock.nn.libraries import create, is_vit, small_stem
from twinblock.nn.norms import convert_norms
from twinblock.nn.pooling import Average, average

__all__ = ["MEAN", "STD", "Encoder", "build_encoder", "is_vit", "own_encoder"]


class Encoder(nn.Module):
    """A network cut into blocks; images in, globally averaged features of the last block out.

    Parameters keep their names in the network, so `state_dict()` loads there. `cuts` lists for each block the modules
    that it runs, by name; `shapes` what it gives for an image: a map (c, h, w), the tokens (t, d) of a ViT, or a vector
    (d,). `depths`: that of each parameter, by name. The first `prefix` tokens (class token, registers) show no
    place and are not averaged. `uncut` is None, or why the network is one block. `notes`: what differs from the network
    as it was given, a sentence each.
    """

    shapes: list[Shape]
    channels_last: list[bool]
    uncut: str | None
    prefix: int
    depths: dict[str, int]
    notes: tuple[str, ...]

    def __init__(self, model: nn.Module, blocks: Blocks, notes: Sequence[str] = ()):
        super().__init__()
        # the dictionaries themselves: whatever changes a parameter here changes it in the network's own code
        self._parameters, self._buffers = model._parameters, model._buffers
        self._non_persistent_buffers_set = model._non_persistent_buffers_set
        tops = dict.fromkeys(path.split(".")[0] for path in blocks.paths)
        self._modules = model._modules if blocks.uncut else {name: model._modules[name] for name in tops}
        self._steps = blocks.steps
        # a network may have a module of one of these names, which torch does not let an attribute take
        vars(self).update(shapes=blocks.shapes, channels_last=blocks.channels_last, uncut=blocks.uncut)
        vars(self).update(prefix=prefix_of(model, blocks.shapes[-1]), notes=tuple(notes))
        depths = layers_of(model, ([module for _, module in steps] for steps in blocks.steps))
        vars(self).update(depths=depths)

    @property
    def cuts(self) -> list[list[str]]:
        return [[name for name, _ in steps] for steps in self._steps]

    @property
    def widths(self) -> list[int]:
        return [shape[0] if len(shape) == 3 else shape[-1] for shape in self.shapes]

    @property
    def width(self) -> int:
        return self.widths[-1]

    def as_blocks(self) -> list[nn.Sequential]:
        """The blocks in order; they share their modules with the encoder. Maps have their channels first between."""
        blocks = []
        for k, steps in enumerate(self._steps):
            parts = {name.replace(".", "_"): module for name, module in steps}
            if k and self.channels_last[k - 1]:
                parts = {"channels_last": Permute([0, 2, 3, 1]), **parts}
            if self.channels_last[k]:
                parts["channels_first"] = Permute([0, 3, 1, 2])
            blocks.append(nn.Sequential(OrderedDict(parts)))
        return blocks

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        return self.pooled(self.maps(images)[-1])

    def pooled(self, x: Tensor) -> Float[Tensor, "n d"]:
        """The average of what a block gives, in float32 at least: not rounded to the precision of the maps."""
        return average(x.to(torch.promote_types(x.dtype, torch.float32)), self.prefix)

    def last_map(self, images: Float[Tensor, "n c h w"]) -> Tensor:
        """What the last block gives, before it is averaged."""
        return self.maps(images)[-1]

    def maps(self, images: Float[Tensor, "n c h w"]) -> list[Tensor]:
        """What each block gives."""
        x, maps = images, []
        with self._own_mode():
            for block in self.as_blocks():
                x = block(x)
                maps.append(x)
        return maps

    def __prepare_scriptable__(self) -> nn.Module:
        """The same forward for torch.jit.script, which compiles no blocks that are put together in it."""
        return nn.Sequential(*self.as_blocks(), Average(self.prefix)).train(self.training)

    @contextmanager
    def _own_mode(self) -> Iterator[None]:
        """An uncut network is the only module whose parts are the encoder's, but not itself: `train` passes it by."""
        network = self._steps[0][0][1]
        mode = network.training
        if self.uncut:
            network.training = self.training
        try:
            yield
        finally:
            network.training = mode


def build_encoder(
    kind: str,
    stem: str,
    norm: str,
    width: int | tuple[int, ...] | None,
    size: int,
    seed: int,
    cuts: Cuts = "stages",
    channels: int = 3,
    drop_path: float = 0.0,
    several_sizes: bool = False,
    patch: int | None = None,
) -> Encoder:
    """Build a network by name with weights drawn from `seed`, and cut it.

    `kind` is a timm name, a torchvision name behind `torchvision/`, `resnet10` (a ResNet of one basic block a stage),
    or one of `vgg.LAYOUTS` or `plain.PLAIN`. `width`: channels of the first stage or convolution, or of each layer.
    `stem`: `standard`, `cifar` (3x3, stride 1, no pooling) or `cifar_stride2`. `size`: side of the images in pixels;
    `channels`: theirs. `cuts`: at every change of resolution (`stages`), after every residual block or layer (`blocks`;
    a ViT has no other stages) or, where there are none, before every convolution, or before the named modules.
    `drop_path`: the rate of the last residual block, rising to it from 0, as the library has it. `several_sizes`: a ViT
    of timm takes images of other sizes, too. `patch`: the side of its patches.
    What cannot be cut is one block. Raises InputError for names that cannot be built, and for networks that give no
    features.
    """
    with seeded(seed):
        model = create(kind, width, size, channels, drop_path, several_sizes, patch)
        if drop_path and not key_drop_paths(model):
            raise InputError(f"encoder.drop_path={drop_path:g}: {kind} has no residual paths to drop; leave it out")
        _leave_nothing_to_chance(model)
        if stem != "standard":
            small_stem(model, kind, stride=2 if stem == "cifar_stride2" else 1)
        if norm != "batch":
            convert_norms(model, norm)
    try:
        blocks = cut_network(model, (channels, size, size), cuts)
    except InputError:
        raise
    except Exception:  # whatever a network raises for images of a size or of channels that it does not take
        check_network(model, (channels, size, size), f"encoder.kind={kind}")
        raise
    notes = ()
    if blocks.uncut:
        check_network(model, (channels, size, size), f"encoder.kind={kind}")
        notes = (f"{kind} is one block ({blocks.uncut})",)
    return Encoder(model, blocks, notes)


def own_encoder(module: nn.Module, size: int, cuts: Cuts = "stages", norm: str = "batch", channels: int = 3) -> Encoder:
    """A copy of a network of one's own, with its weights, cut into blocks; see `build_encoder` for the arguments.

    The features are those before the head: what averages the last map or tokens, and all that follows. Dropout and
    stochastic depth are off in the copy. `notes` of what this returns say both. What cannot be cut is one block.
    Raises InputError for a module that does not give one finite tensor for images of this size, in evaluation and in
    training mode, or that draws random numbers.
    """
    name = f"encoder={type(module).__name__}"
    try:
        model = copy.deepcopy(module).cpu()
    except Exception as error:  # whatever a module of others raises
        raise InputError(f"{name} cannot be copied ({first_line(error)})") from error
    notes = []
    if off := _leave_nothing_to_chance(model):
        notes.append(f"{', '.join(off)} of {type(module).__name__} {'is' if len(off) == 1 else 'are'} off")
    check_network(model, (channels, size, size), name)
    if norm != "batch":
        convert_norms(model, norm)
    with seeded(0):
        blocks = cut_network(model, (channels, size, size), cuts, both_modes=True)
    if blocks.head:
        notes.append(f"the features are those before the head, which is left out: {', '.join(blocks.head)}")
    if blocks.uncut:
        notes.append(f"{type(module).__name__} is one block ({blocks.uncut})")
    encoder = Encoder(model, blocks, notes)
    if encoder.prefix and not hasattr(module, "num_prefix_tokens"):
        count = encoder.shapes[-1][0]
        encoder.notes += (f"of {count} tokens the first {encoder.prefix} are no place and not averaged",)
    return encoder


def check_network(model: nn.Module, shape: tuple[int, int, int], name: str) -> None:
    """Raises InputError where a module does not give one finite tensor for images of this shape (c, h, w), or is left
    to chance in training.
    """
    if not any(True for _ in model.parameters()):
        raise InputError(f"{name} has no parameters: there is nothing to train")
    outputs = []
    for mode, seed in (("evaluation", 0), ("training", 1), ("training", 2)):
        with seeded(seed), torch.no_grad():
            try:
                y = copy.deepcopy(model).train(mode == "training")(probe_images(shape))
            except Exception as error:  # whatever a module of others raises
                given = " x ".join(map(str, shape))
                raise InputError(f"{name} fails for images of {given} ({first_line(error)})") from error
        if not isinstance(y, Tensor):
            raise InputError(f"{name} gives a {type(y).__name__} in {mode} mode: let its forward return one tensor")
        if not 2 <= y.ndim <= 4 or len(y) != 2:
            raise InputError(f"{name} gives {tuple(y.shape)} for 2 images: a map, tokens or a vector each is needed")
        if not torch.isfinite(y).all():
            raise InputError(f"{name} gives NaN or infinity in {mode} mode: check its weights")
        outputs.append(y)
    if not torch.equal(*outputs[1:]):
        raise InputError(
            f"{name} draws random numbers in training mode, so no run could be repeated: use nn.Dropout modules, "
            "which are switched off, or remove them"
        )


def _leave_nothing_to_chance(model: nn.Module) -> list[str]:
    """Switches off dropout and stochastic depth, and returns the names of their classes.

    They draw from the generator that a process shares: no run could be repeated, resumed or split over processes. In
    timm they are off, too.
    """
    classes = {}
    for module in model.modules():
        field = "drop_prob" if isinstance(module, DropPath) else "p"
        if isinstance(module, nn.modules.dropout._DropoutNd | StochasticDepth | DropPath) and getattr(module, field):
            setattr(module, field, 0.0)
            classes[type(module).__name__] = None
    return list(classes)
