"""VAE, variational autoencoder (Kingma and Welling 2014, arXiv 1312.6114, appendix B and C)."""

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from twinblock.core.distributed import gather
from twinblock.core.errors import InputError
from twinblock.core.seeding import normal
from twinblock.core.types import NotNegative, Width
from twinblock.methods.learner import Batch, Signal
from twinblock.methods.learners.alone import Alone
from twinblock.nn.modes import evaluating
from twinblock.nn.pooling import average

Pixels = Literal["bernoulli", "gaussian"]
LARGEST = 2**26  # weights from a map to the code


class VAE(Alone):
    """The evidence lower bound of an image x with a code z of `code` numbers, negative, in nats:

    `mean over images of -log p(x|z) + weight KL(q(z|x) || N(0, 1))`, with z = m + s e, e drawn from N(0, 1) by seed,
    step and place in the batch, and KL = (m^2 + s^2 - 1 - log s^2) / 2 summed over z. The block gives m and log s^2 by
    a linear layer each. The decoder has one hidden layer. `pixels`: -log p is the cross entropy of each pixel, as of a
    probability, or half the squared difference, of unit variance and without its constant. Block by block, each has a
    code and a decoder of its own, and no gradient crosses a cut.
    """

    family = "likelihood"

    def __init__(
        self,
        blocks: nn.Module,
        image_shape: tuple[int, ...],
        shape: tuple[int, ...],
        autocast: torch.dtype | None = None,
        code: Annotated[Width, Field(description="Numbers of the code.")] = 20,
        decoder_width: Annotated[Width, Field(description="Width of the decoder's hidden layer.")] = 400,
        pixels: Annotated[
            Pixels, Field(description="Probabilities (`bernoulli`) or real numbers (`gaussian`).")
        ] = "bernoulli",
        weight: Annotated[NotNegative, Field(description="Of the divergence; more than 1 as in beta-VAE.")] = 1.0,
    ):
        super().__init__()
        given = math.prod(shape)
        if given * code > LARGEST:
            raise InputError(
                f"maps of {given:,} values are too many for a code; take an encoder that makes them smaller"
            )
        self.blocks, self.autocast, self.image_shape = blocks, autocast, image_shape
        self.bernoulli, self.weight = pixels == "bernoulli", weight
        self.mean, self.log_variance = nn.Linear(given, code), nn.Linear(given, code)
        hidden = nn.Linear(code, decoder_width)
        self.decoder = nn.Sequential(hidden, nn.ReLU(), nn.Linear(decoder_width, math.prod(image_shape)))

    def forward(self, signal: Signal, batch: Batch) -> tuple[Tensor, Signal]:
        images = signal.target[0]
        self._check(images)
        with self.precision(images.device):
            maps = self.blocks(signal.online[0])
            mean, log_variance = self.coded(maps)
            noise = normal(("code", *batch.key), batch.offset, len(mean), mean.shape[1]).to(mean)
            found = self.decoder(mean + noise * (log_variance / 2).exp())
        losses = self.reconstruction(found, images) + self.weight * divergence(mean, log_variance)
        return gather(losses.to(images.dtype)).mean(), Signal({0: maps.detach()}, {0: images})

    def _check(self, images: Tensor) -> None:
        if self.bernoulli and (images.amin() < -1e-6 or images.amax() > 1 + 1e-6):
            raise InputError(
                "learner.pixels=bernoulli needs pixels from 0 to 1: set data.mean and data.std to 0 and 1 of each "
                "channel, as [0,0,0] and [1,1,1], or learner.pixels=gaussian"
            )

    def coded(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of the code, (n, code)."""
        flat = maps.flatten(1)
        return self.mean(flat), self.log_variance(flat)

    def reconstruction(self, found: Tensor, images: Tensor) -> Tensor:
        """-log p(x|z) of each image, in nats, by what the decoder gives."""
        found = found.to(torch.promote_types(found.dtype, torch.float32))
        true = images.flatten(1).to(found.dtype)
        if self.bernoulli:
            return F.binary_cross_entropy_with_logits(found, true, reduction="none").sum(1)
        return (found - true).square().sum(1) / 2

    def drawn(self, found: Tensor) -> Tensor:
        """The image that the decoder's output stands for."""
        images = found.view(-1, *self.image_shape)
        return images.sigmoid() if self.bernoulli else images

    @torch.no_grad()
    def samples(self, count: int, seed: int) -> Tensor:
        """Images of codes drawn from N(0, 1)."""
        codes = normal(("samples", seed), 0, count, self.mean.out_features)
        with evaluating(self):
            return self.drawn(self.decoder(codes.to(self.mean.weight)))

    @torch.no_grad()
    def pass_on(self, signal: Signal, batch: Batch) -> Signal:
        images = signal.target[0]
        with self.precision(images.device):
            return Signal({0: self.blocks(signal.online[0])}, {0: images})

    @torch.no_grad()
    def outputs(self, x: Tensor | tuple[Tensor, Tensor]) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
        """Features, the mean code and its reconstruction; the bound's two parts. `x`: images, or these and a map."""
        images, maps = (x, x) if isinstance(x, Tensor) else x
        with evaluating(self), self.precision(images.device):
            maps = self.blocks(maps)
            mean, log_variance = self.coded(maps)
            found = self.decoder(mean)
        rows = {
            "encoder": average(maps),
            "code": mean,
            "reconstruction": self.drawn(found).flatten(1),
            "pixels": images.flatten(1),
            "reconstruction_loss": self.reconstruction(found, images),
            "divergence": divergence(mean, log_variance),
        }
        return {name: row.float() for name, row in rows.items()}, (images, maps)


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(m, s^2) || N(0, 1)) of each image, in nats, in float32 or wider."""
    wide = torch.promote_types(mean.dtype, torch.float32)
    mean, log_variance = mean.to(wide), log_variance.to(wide)
    return (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2
