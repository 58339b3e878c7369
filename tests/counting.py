"""What a step of training asks of a GPU, counted on a machine that has none.

A GPU is fast where it is left alone. Each operation launches a kernel, which takes the host some microseconds whatever
its size; each copy of small numbers takes it as long again; and for a value that the host wants back it waits until the
GPU has done all that it was asked for. `counts` counts these three in the third step of a run.

All but backward is taken on a GPU that is not there: torch's fake tensors have a device and a shape but no values, and
refuse to mix devices. torch's engine needs a driver for their backward, so the operations of backward are those of the
same step on the CPU. It must run in a process of its own: once there are fake tensors on a GPU, autograd does not work
in forked processes any more.
"""

from collections import Counter
from collections.abc import Generator
from contextlib import nullcontext
from typing import Any, NamedTuple
from unittest.mock import patch

import tiny
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from twinblock.assembly.resolve import resolve
from twinblock.config.recipes import compose
from twinblock.config.schema import Config
from twinblock.data import Images
from twinblock.training.loader import Loader, Samples
from twinblock.training.step import TrainStep

STEP = 2  # the one that is counted, when optimizers and target networks have their state
CLASSES = 3  # of the tiny images
# these make memory, or look at it in another way, or say something to a profiler: they launch nothing
FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias", "_unsafe_view"}
FREE |= {"lift_fresh", "is_pinned", "_pin_memory", "profiler::_record_function_enter_new"}
FREE |= {"profiler::_record_function_exit", "prim::device"}
WAITS = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_unique2"}  # the host reads these


class Counts(NamedTuple):
    """By the names of torch's operations."""

    launches: Counter[str]
    copies: Counter[str]
    waits: Counter[str]


class Counting(TorchDispatchMode):
    """Within, operations count as they come to a device: below autograd, with composite ones in their parts.

    An operation on a list of tensors counts once (`_foreach_add_`, `_fused_sgd_`), as a GPU has one kernel for many of
    them; so does one that a GPU carries out with two or three kernels, such as backward of a convolution. A copy from
    the host counts as a copy alone, one to the host as a wait alone. With `device`, operations on other devices are
    left out: those on the CPU launch nothing.
    """

    def __init__(self, device: str | None = None) -> None:
        super().__init__()
        self.device = device
        self.forget()

    def forget(self) -> None:
        self.found = Counts(Counter(), Counter(), Counter())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func._schema.name.removeprefix("aten::"), kwargs or {}
        inputs = {t.device.type for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        if name in WAITS:
            self.found.waits[name] += 1
        if name.startswith("_fused_"):  # in place, and torch has no fake of it
            self.found.launches[name] += 1
            return None if self.device else func(*args, **kwargs)
        out = func(*args, **kwargs)
        results = {t.device.type for t in tree_leaves(out) if isinstance(t, Tensor)}
        if name in ("_to_copy", "copy_") and len(inputs | results) > 1:
            to_host = results == {"cpu"}
            (self.found.waits if to_host else self.found.copies)[name] += 1
        elif name not in FREE | WAITS and not func.is_view and (not self.device or self.device in inputs | results):
            self.found.launches[name] += 1
        return out


class Host(Fabric):
    """In place of Lightning Fabric, for one process. Backward counts on the CPU, and is not taken on a GPU."""

    world_size, device = 1, torch.device("cpu")  # pyright: ignore

    def __init__(self, device: torch.device, counting: Counting) -> None:  # and nothing of Fabric's own
        self.device, self.counting, self.steps = device, counting, 0  # pyright: ignore

    def setup_module(self, module: nn.Module) -> nn.Module:  # pyright: ignore
        self.module = module
        return module

    def backward(self, loss: Tensor) -> None:  # pyright: ignore
        if self.device.type == "cuda":
            for p in self.module.parameters():
                p.grad = torch.empty_like(p) if p.requires_grad else None
            return
        with self.counting if self.steps == STEP else nullcontext():
            loss.backward()
        self.steps += 1


class OnFakes(TrainStep):
    """A step whose modules lie on a GPU that is not there, in the layout of those on a real one."""

    fakes: FakeTensorMode

    def _place(self) -> None:
        made: dict[int, Tensor] = {}
        for module in [m for top in (self.encoder, *self.learners) for m in top.modules()]:
            for held in (module._parameters, module._buffers):
                held |= {name: self.fake(t, made) for name, t in held.items() if t is not None}

    def fake(self, t: Tensor, made: dict[int, Tensor]) -> Tensor:
        """One for each tensor, however many modules share it; a fake one is itself."""
        if t.device.type == "cuda":
            return t
        with self.fakes:
            layout = torch.channels_last if t.ndim == 4 else torch.contiguous_format
            new = self.fakes.from_tensor(t.detach()).to("cuda:0", memory_format=layout)
            new = nn.Parameter(new, t.requires_grad) if isinstance(t, nn.Parameter) else new
        return made.setdefault(id(t), new)


def counts(recipe: str, *overrides: str) -> Counts:
    """Of one step of this recipe, on 32 images of 32 px in three classes."""
    images, few = tiny.images(96, 32), ["data.batch=32", "data=photodigits", "train.length=7steps"]
    config = compose(recipe, {}, [*few, "train.precision=fp32", *overrides])
    config = resolve(config, images, torch.device("cpu"))
    backward, rest = Counting(), Counting("cuda")
    here = Host(torch.device("cpu"), backward)
    step, batches = TrainStep(config, here, CLASSES, 3, 7, {}), loader(config, images, here.device)  # pyright: ignore
    for k in range(STEP + 1):
        step(k, next(batches))
    OnFakes.fakes = FakeTensorMode(allow_non_fake_inputs=True)
    there = Host(torch.device("cuda", 0), rest)
    step, batches = OnFakes(config, there, CLASSES, 3, 7, {}), loader(config, images, there.device)  # pyright: ignore
    # pinning needs a driver; what is pinned stays on the host
    with patch.object(Tensor, "pin_memory", lambda t: t), OnFakes.fakes, rest:
        for k in range(STEP + 1):
            rest.forget()
            step(k, next(batches))
    return Counts(*(a + b for a, b in zip(rest.found, backward.found, strict=True)))


def loader(config: Config, images: Images, device: torch.device) -> Generator[Samples, None, None]:
    batch = config.data.batch
    return Loader(images, 0, batch, batch, 0, device).batches(0, STEP + 1)
