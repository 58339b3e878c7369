"""How blocks that learn from one loss get to know its error, in other ways than by backpropagation.

`direct`, `sign_direct` and `drtp` broadcast it to all blocks by fixed random matrices; `feedback_alignment` hands it
back layer by layer through fixed random weights; with `none` only the heads learn. The heads have their own gradients.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import torch.nn.grad
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from twinblock.core.errors import InputError
from twinblock.core.seeding import generator
from twinblock.methods.learner import Batch, Learner, Network, Signal
from twinblock.methods.stacks import Stack
from twinblock.nn.droppath import dropping
from twinblock.nn.heads import Prototypes

BROADCAST = ("direct", "sign_direct", "drtp")


class Fixed(nn.Module):
    """Tensors that are saved and never trained, by number."""

    def __init__(self, tensors: Sequence[Tensor]):
        super().__init__()
        for number, tensor in enumerate(tensors):
            self.register_buffer(str(number), tensor)

    def __iter__(self) -> Iterator[Tensor]:
        return self.buffers()


class Broadcast(Network):
    """Blocks that are taught the error by fixed random matrices, and hand none of it back.

    With e = dL/dz (n, d) at the embedding and labels Y (n, classes) one-hot, 0 where there is none, the output of block
    l gets `e B_l` (`direct`), `sign(e) B_l / n` (`sign_direct`) or `Y B_l / n` (`drtp`) as its gradient; n images on
    this process, so that processes average to the mean over all. B_l (d or classes, *shape of the output) is uniform
    within `sqrt(6 / values of the output)`, as in Frenkel et al.'s code. The projector has the gradient itself.
    Direct feedback alignment: Nokland 2016, arXiv 1609.01596; DRTP and sDFA: Frenkel et al. 2021, arXiv 1909.01311.
    """

    def __init__(self, *network: Any, rule: str, rows: int, shapes: Sequence[tuple[int, ...]], seed: int):
        super().__init__(*network)
        self.rule, self.rows = rule, rows
        bounds = [math.sqrt(6 / math.prod(shape)) for shape in shapes]
        drawn = (_uniform((rows, *shape), bounds[k], seed, k) for k, shape in enumerate(shapes))
        self.matrices = Fixed([*drawn])

    def forward(self, stacks: Sequence[Stack], embed: bool = True) -> list[tuple[Tensor, ...]]:
        if not (embed and torch.is_grad_enabled()):
            return super().forward(stacks, embed)
        return [self.taught(view) for stack in stacks for view in stack.views()]

    def taught(self, view: Stack) -> tuple[Tensor, Tensor]:
        maps = self.maps(view)
        z = self.projector(self.pooling(maps[-1].detach()))
        lesson = partial(_lesson, self.rule, view.labels, self.rows)
        return maps[0], _Taught.apply(z, lesson, [*self.matrices], *maps)  # pyright: ignore[reportReturnType]

    def maps(self, stack: Stack) -> list[Tensor]:
        maps, x = [], stack.x
        with dropping(stack.keys, stack.offset):
            for block in self.blocks:
                x = block(x.detach())
                maps.append(x)
        return maps


def _lesson(rule: str, labels: Int[Tensor, " n"] | None, rows: int, error: Float[Tensor, "n d"]) -> Tensor:
    """What is broadcast: the error, its sign, or the labels, (n, rows)."""
    if rule == "direct":
        return error
    if rule == "sign_direct":
        return error.sign() / len(error)
    assert labels is not None, "labels are asked for when a run begins"
    of_class = labels[:, None] == torch.arange(rows, device=labels.device)
    return of_class.to(error.dtype) / len(error)


class _Taught(torch.autograd.Function):
    """An embedding as it is; in backward its gradient, and for each map the lesson times the matrix of its block."""

    @staticmethod
    def forward(ctx, z, lesson, matrices, *maps):
        ctx.lesson, ctx.matrices, ctx.maps = lesson, matrices, [(x.shape, x.dtype) for x in maps]
        return z.view_as(z)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, error):
        lesson = ctx.lesson(error.to(ctx.matrices[0].dtype))
        taught = (
            (lesson @ matrix.flatten(1)).view(shape).to(dtype)
            for matrix, (shape, dtype) in zip(ctx.matrices, ctx.maps, strict=True)
        )
        return error, None, None, *taught


class FeedbackAlignment(Learner):
    """Every convolution and linear layer hands its error back through fixed random weights in place of its own.

    `dx = dy B` where backpropagation has `dx = dy W`; the gradient of W is as ever. B has the shape of W and is uniform
    within `sqrt(6 / (fan in + fan out))`, as in BioTorch. Lillicrap et al. 2016, arXiv 1411.0247. Raises InputError for
    layers of other kinds.
    """

    def __init__(self, *learner: Any, seed: int, **facts: Any):
        super().__init__(*learner, **facts)
        layers: dict[str, Any] = {
            name: m for name, m in self.named_modules() if _is_layer(m) and not name.startswith("target.")
        }
        for name, layer in layers.items():
            if type(layer) not in (nn.Conv2d, nn.Linear) or isinstance(getattr(layer, "padding", 0), str):
                raise InputError(
                    f"scope.credit=feedback_alignment knows plain convolutions and linear layers, and {name} is a "
                    f"{type(layer).__name__}; choose another encoder or norm, or scope.credit=direct"
                )
        self.weights: list[Tensor] = [layer.weight for layer in layers.values()]
        self.feedback = Fixed([_feedback_for(w, seed, number) for number, w in enumerate(self.weights)])

    def forward(self, signal: Signal, batch: Batch) -> tuple[Tensor, Signal, dict[int, Tensor]]:
        with HandedBack({id(w): b for w, b in zip(self.weights, self.feedback, strict=True)}):
            return super().forward(signal, batch)


def _is_layer(module: nn.Module) -> bool:
    kinds = (nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear, nn.MultiheadAttention, Prototypes)
    return isinstance(module, kinds)


def _feedback_for(weight: Tensor, seed: int, number: int) -> Tensor:
    fans = sum(weight.shape[:2]) * weight[0, 0].numel()
    return _uniform(tuple(weight.shape), math.sqrt(6 / fans), seed, number)


def _uniform(shape: tuple[int, ...], bound: float, seed: int, number: int) -> Tensor:
    return torch.empty(shape).uniform_(-bound, bound, generator=generator("credit", seed, number))


class HandedBack(TorchFunctionMode):
    """Within, layers whose weights are known by id hand their errors back through others."""

    def __init__(self, feedback: Mapping[int, Tensor]):
        super().__init__()
        self.feedback = feedback

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        through = self.feedback.get(id(args[1])) if func in (F.conv2d, F.linear) else None
        if through is None or not args[0].requires_grad or not torch.is_grad_enabled():
            return func(*args, **(kwargs or {}))
        x, *rest = args
        y = func(x.detach(), *rest, **(kwargs or {}))
        back = _of_linear if func is F.linear else partial(_of_convolution, x.shape, rest[2:])
        return _Returned.apply(y, x, through, back)


def _of_linear(weight: Tensor, error: Tensor) -> Tensor:
    return error @ weight


def _of_convolution(shape: torch.Size, how: Sequence[Any], weight: Tensor, error: Tensor) -> Tensor:
    return torch.nn.grad.conv2d_input(shape, weight, error, *how)


class _Returned(torch.autograd.Function):
    """What a layer gave for an input that it was not to see; the input's gradient goes through other weights."""

    @staticmethod
    def forward(ctx, y, x, through, back: Callable[[Tensor, Tensor], Tensor]):
        ctx.through, ctx.back, ctx.dtype = through, back, x.dtype
        ctx.mark_dirty(y)  # itself, no view of it, which an activation could not work on in place
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, error):
        return error, ctx.back(ctx.through.to(error.dtype), error).to(ctx.dtype), None, None
