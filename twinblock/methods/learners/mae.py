"""MAE, masked autoencoder (He et al. 2022, arXiv 2111.06377, section 3 and appendix A)."""

import math
from functools import partial
from typing import Annotated, Any, TypeAlias

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from twinblock.core.distributed import gather
from twinblock.core.errors import InputError
from twinblock.core.seeding import uniform
from twinblock.core.types import Width
from twinblock.methods.learner import Batch, Signal
from twinblock.methods.learners.alone import Alone
from twinblock.nn.modes import evaluating
from twinblock.nn.pooling import average
from twinblock.nn.tokens import first_step_of_tokens, patchify, sine_places, steps_of

EPS = 1e-6  # of layer norms, and beside the variance of a patch
FEW = 8  # hidden patches whose reconstruction is diagnosed
TAKE = "take encoder=vit_tiny_patch16_224 or another plain ViT"

Count = Annotated[int, Field(ge=1, le=256)]
Masked = Annotated[float, Field(gt=0, lt=1)]
Seen: TypeAlias = Int[Tensor, "n v"]  # numbers of patches
Hidden: TypeAlias = Int[Tensor, "n m"]


class MAE(Alone):
    """Mean squared error of the pixels of hidden patches, which a decoder gives by the visible ones:

    `mean over hidden patches p of |y_p - x_p|^2 / d`, with x_p the d values of a patch; where `norm_pixels`, less their
    mean and divided by the root of their variance + 1e-6. The encoder runs on the visible tokens alone, once each has
    its place. Which are hidden is drawn by seed, step and place in the batch. Block by block, each block has a decoder
    of its own, and no gradient crosses a cut.
    """

    def __init__(
        self,
        blocks: nn.Module,
        image_shape: tuple[int, ...],
        input_shape: tuple[int, ...],
        shape: tuple[int, ...],
        prefix: int,
        number: int,
        autocast: torch.dtype | None = None,
        mask: Annotated[Masked, Field(description="Share of the patches that are hidden.")] = 0.75,
        decoder_width: Annotated[Width, Field(description="Width of the decoder, a multiple of 4.")] = 512,
        decoder_depth: Annotated[Count, Field(description="Transformer blocks of the decoder.")] = 8,
        decoder_heads: Annotated[Count, Field(description="Attention heads of each of them.")] = 16,
        norm_pixels: Annotated[bool, Field(description="Whether each patch is normalised by its own pixels.")] = True,
    ):
        super().__init__()
        if len(shape) != 2:
            gives = "maps" if len(shape) == 3 else "vectors"
            raise InputError(f"it hides tokens, and these blocks give {gives}; {TAKE}")
        self.blocks, self.prefix, self.autocast, self.norm_pixels = blocks, prefix, autocast, norm_pixels
        grid = math.isqrt(shape[0] - prefix)
        self.side, self.patches = image_shape[-1] // grid, grid**2
        self.visible = int(self.patches * (1 - mask) + 1e-9)
        if not 0 < self.visible < self.patches:
            raise InputError(f"learner.mask={mask:g} of {self.patches} patches leaves none to see, or none to hide")
        steps, given = steps_of(blocks), image_shape if number == 0 else input_shape
        first = first_step_of_tokens(steps, given, prefix, grid)
        if first == len(steps) or (number and first):
            raise InputError(f"its blocks see some tokens alone, and these need them all; {TAKE}")
        self._begin, self._rest = steps[:first], steps[first:]  # of `blocks`
        norm = nn.Identity() if isinstance(steps[-1], nn.LayerNorm) else nn.LayerNorm(shape[-1], EPS)
        self.norm, self.decoder = norm, Decoder(shape[-1], decoder_width, decoder_depth, decoder_heads, grid)
        self.pixels = nn.Linear(decoder_width, image_shape[0] * self.side**2)
        _start(self.pixels)

    def forward(self, signal: Signal, batch: Batch) -> tuple[Tensor, Signal]:
        images = signal.target[0]
        seen, hidden = self.places(batch.key, batch.offset, len(images), images.device)
        with self.precision(images.device):
            tokens = self.encode(signal.online[0], seen)
            found = self.reconstruct(tokens, seen, hidden)
        errors = (found.to(images.dtype) - _taken(self.targets(images), hidden)).square().mean((1, 2))
        return gather(errors).mean(), Signal({0: tokens.detach()}, {0: images})

    def places(self, key: tuple[int, ...], offset: int, count: int, device: torch.device) -> tuple[Seen, Hidden]:
        """The numbers of the visible and of the hidden patches of each image of a part of the batch."""
        order = uniform(("mask", *key), offset, count, self.patches).argsort(1, kind="stable")
        seen, hidden = order[:, : self.visible], order[:, self.visible :]
        return torch.from_numpy(seen.copy()).to(device), torch.from_numpy(hidden.copy()).to(device)

    def encode(self, x: Tensor, seen: Seen) -> Float[Tensor, "n t d"]:
        """The tokens of visible patches behind these blocks, after those that are no patch; `x`: images, or these."""
        if self._begin:
            x = self.embed(x)
            x = torch.cat([x[:, : self.prefix], _taken(x[:, self.prefix :], seen)], 1)
        return self.related(x)

    def embed(self, images: Tensor) -> Tensor:
        """Tokens of all patches with their places."""
        for step in self._begin:
            images = step(images)
        return images

    def related(self, tokens: Tensor) -> Tensor:
        """What blocks make of tokens, however many."""
        for step in self._rest:
            tokens = step(tokens)
        return tokens

    def reconstruct(self, tokens: Tensor, seen: Seen, hidden: Hidden) -> Float[Tensor, "n m d"]:
        """The pixels of hidden patches."""
        return self.pixels(self.decoder(self.norm(tokens), self.prefix, seen, hidden))

    def targets(self, images: Tensor) -> Float[Tensor, "n p d"]:
        """What the decoder is to give for each patch."""
        patches = patchify(images, self.side)
        if not self.norm_pixels:
            return patches
        variance, mean = torch.var_mean(patches, 2, keepdim=True)
        return (patches - mean) / (variance + EPS).sqrt()

    @torch.no_grad()
    def pass_on(self, signal: Signal, batch: Batch) -> Signal:
        images = signal.target[0]
        seen, _ = self.places(batch.key, batch.offset, len(images), images.device)
        with self.precision(images.device):
            return Signal({0: self.encode(signal.online[0], seen)}, {0: images})

    @torch.no_grad()
    def outputs(self, x: Any) -> tuple[dict[str, Tensor], Any]:
        """The mean token of whole images; hidden patches, some of them, the same of each image; and these as they are.

        `x`: images, or what is passed on: these, their tokens, and the tokens of their visible patches.
        """
        images, whole, some = (x, None, x) if isinstance(x, Tensor) else x
        seen, hidden = (p.expand(len(images), -1) for p in self.places((0,), 0, 1, images.device))
        with evaluating(self), self.precision(images.device):
            whole = self.related(self.embed(images) if whole is None else whole)
            some = self.encode(some, seen)
            found = self.reconstruct(some, seen, hidden)[:, :FEW]
        true = _taken(self.targets(images), hidden[:, :FEW])
        rows = {"reconstruction": found.flatten(1), "pixels": true.flatten(1)}
        outputs = {"encoder": average(whole, self.prefix), **rows}
        return {name: output.float() for name, output in outputs.items()}, (images, whole, some)


class Decoder(nn.Module):
    """Narrow transformer: visible tokens and, for each hidden patch, the same learned vector; all with their places."""

    def __init__(self, dim: int, width: int, depth: int, heads: int, grid: int):
        from timm.models.vision_transformer import Block  # so late, as importing timm takes a second

        super().__init__()
        if width % 4 or width % heads:
            raise InputError(f"learner.decoder_width={width} is no multiple of 4 and of learner.decoder_heads={heads}")
        self.narrow, self.hidden = nn.Linear(dim, width), nn.Parameter(0.02 * torch.randn(1, 1, width))
        norm: Any = partial(nn.LayerNorm, eps=EPS)
        self.blocks = nn.Sequential(*(Block(width, heads, qkv_bias=True, norm_layer=norm) for _ in range(depth)))
        self.norm = norm(width)
        self.register_buffer("places", sine_places(width, grid), persistent=False)
        self.apply(_start)

    def forward(self, tokens: Tensor, prefix: int, seen: Seen, hidden: Hidden) -> Float[Tensor, "n m d"]:
        """The vectors of hidden patches, by `tokens`: the first `prefix`, then those of the visible patches."""
        x, places = self.narrow(tokens), self.get_buffer("places")
        visible, unseen = x[:, prefix:] + places[seen], self.hidden + places[hidden]
        y = self.blocks(torch.cat([x[:, :prefix], visible, unseen], 1))
        return self.norm(y[:, -hidden.shape[1] :])


def _taken(x: Float[Tensor, "n p d"], places: Int[Tensor, "n k"]) -> Float[Tensor, "n k d"]:
    return x.gather(1, places[:, :, None].expand(-1, -1, x.shape[2]))


def _start(module: nn.Module) -> None:
    """Linear layers begin with Glorot's uniform weights and without bias."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
