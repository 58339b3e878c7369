"""Parts as a user would write them, in a module of their own."""

import copy
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, normalize

from twinblock.methods.learner import Batch, Signal


class MyLoss(nn.Module):
    """Cross entropy of the cosines of each image with all others."""

    symmetric = False

    def __init__(self, temperature: Annotated[float, Field(gt=0)] = 0.5):
        super().__init__()
        self.temperature = temperature

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        cosines = normalize(z) @ normalize(t).T
        return cross_entropy(cosines / self.temperature, torch.arange(len(z)))


class Counting(nn.Module):
    """Asks for the batch; remembers how many targets it has met."""

    def __init__(self):
        super().__init__()
        self.register_buffer("met", torch.zeros((), dtype=torch.int64))

    def forward(self, z: Tensor, t: Tensor, batch: Batch) -> Tensor:
        assert batch.labels is not None and batch.index is not None and len(batch.index) == len(z)
        return (z - t.detach()).square().mean()

    def after_step(self, targets: dict[int, Tensor], step: int, total: int) -> None:
        self.met += sum(len(t) for t in targets.values())


class Frozen(nn.Module):
    """A target network of one's own: the network as it was at first."""

    separate, differentiable = True, False

    def __init__(self, network: nn.Module):
        super().__init__()
        self.first = copy.deepcopy(network).requires_grad_(False)

    def sees(self, view: int) -> bool:
        return False

    def forward(self, network: nn.Module, *inputs) -> list[tuple[Tensor, ...]]:
        with torch.no_grad():
            return self.first(*inputs)

    def after_step(self, network: nn.Module, step: int, total: int) -> None:
        pass


class Denoiser(nn.Module):
    """A learner that is not siamese: each block's map must tell what the block was given before noise was added."""

    def __init__(self, blocks: nn.Module, input_shape: tuple[int, ...], shape: tuple[int, ...], sigma: float = 0.3):
        super().__init__()
        self.blocks, self.sigma, self.side = blocks, sigma, input_shape[-1]
        self.decoder = nn.Conv2d(shape[0], input_shape[0], 1)

    def forward(self, signal: Signal, batch: Batch) -> tuple[Tensor, Signal]:
        x = signal.online[0]
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(batch.key[1]), dtype=x.dtype)
        decoded = self.decoder(self.blocks(x + self.sigma * noise))
        loss = mse_loss(nn.functional.interpolate(decoded, size=self.side), x)
        return loss, self.pass_on(signal, batch)

    @torch.no_grad()
    def pass_on(self, signal: Signal, batch: Batch) -> Signal:
        return Signal.from_views([self.blocks(signal.online[0])])

    def after_step(self, step: int, total: int) -> None:
        pass

    @torch.no_grad()
    def outputs(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        training = self.training
        y = self.eval().blocks(x)
        self.train(training)
        return {"encoder": y.mean((2, 3)).float()}, y


def give_three_numbers(z: Tensor, t: Tensor) -> Tensor:
    return (z - t).mean(0)[:3]


class Wrong(nn.Module):
    """Gives a vector."""

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        return give_three_numbers(z, t)


class Untyped(nn.Module):
    """Its argument has no type."""

    def __init__(self, temperature=0.1):
        super().__init__()

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        return (z - t).mean()
