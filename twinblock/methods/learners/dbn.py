"""DBN, deep belief network: each block is an RBM, trained on what those before it give.

Hinton, Osindero and Teh 2006, Neural Computation 18; Hinton 2002, Neural Computation 14 (contrastive divergence);
Tieleman 2008, ICML (persistent chains). Visible units v and hidden ones h have the energy -b.v - c.h - v W h.
"""

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from twinblock.core.distributed import gather
from twinblock.core.errors import InputError
from twinblock.core.seeding import normal, uniform
from twinblock.methods.learner import Batch, Signal
from twinblock.methods.learners.alone import Alone
from twinblock.nn.modes import evaluating
from twinblock.nn.pooling import average
from twinblock.nn.tokens import steps_of

TAKE = "encoder.kind=sigmoid_mlp encoder.norm=none"

Count = Annotated[int, Field(ge=1, le=1000)]
Chains = Annotated[int, Field(ge=1, le=2**20)]
Visible = Literal["bernoulli", "gaussian"]


class DBN(Alone):
    """Contrastive divergence as the difference of two free energies, of what is seen and of what the model dreams:

    `mean F(v) - mean F(v')`, with F(v) = -b.v - sum softplus(c + W v) for visible units that are 0 or 1, and
    |v - b|^2 / 2 in place of -b.v for real ones of variance 1. v' comes from v by `steps` of Gibbs sampling, or from
    `chains` that go on between updates. It has no gradient: that of the loss is <h v> of the model less <h v> of the
    data. The next block sees the probabilities of the hidden units.
    """

    family = "likelihood"
    chains: Tensor | None
    scopes = ("blockwise",)

    def __init__(
        self,
        blocks: nn.Module,
        input_shape: tuple[int, ...],
        shape: tuple[int, ...],
        number: int,
        visible: Annotated[
            Visible, Field(description="Pixels: probabilities (`bernoulli`), or real numbers (`gaussian`).")
        ] = "bernoulli",
        steps: Annotated[Count, Field(description="Steps of Gibbs sampling for each update.")] = 1,
        chains: Annotated[
            Chains | None, Field(description="Chains that go on between updates; null: they begin at the images.")
        ] = None,
    ):
        super().__init__()
        layers = [step for step in steps_of(blocks) if not isinstance(step, nn.Identity)]  # a norm that is none
        if [type(layer) for layer in layers] != [nn.Conv2d, nn.Sigmoid] or layers[0].padding_mode != "zeros":
            raise InputError(f"a block has to be one linear layer with a sigmoid; take {TAKE}")
        self.blocks, self.number, self.steps = blocks, number, steps
        self.gaussian = visible == "gaussian" and number == 0
        self._layer: nn.Conv2d = layers[0]  # type: ignore[assignment]  # of `blocks`
        self.visible_bias = nn.Parameter(torch.zeros(input_shape))
        self._hidden = shape
        state = None if chains is None else torch.zeros(chains, *shape)
        self.register_buffer("chains", state)

    def forward(self, signal: Signal, batch: Batch) -> tuple[Tensor, Signal, Tensor]:
        seen = signal.online[0]
        self._check(seen)
        dreamt, hidden = self.dream(seen, batch)
        difference = gather(self.free_energy(seen)).mean() - self.mean_of_chains(self.free_energy(dreamt))
        return difference, self.pass_on(signal, batch), hidden

    def _check(self, seen: Tensor) -> None:
        if self.number == 0 and not self.gaussian and (seen.amin() < -1e-6 or seen.amax() > 1 + 1e-6):
            raise InputError(
                "learner.visible=bernoulli needs pixels from 0 to 1: set data.mean and data.std to 0 and 1 of each "
                "channel, as [0,0,0] and [1,1,1], or learner.visible=gaussian"
            )

    def mean_of_chains(self, energies: Tensor) -> Tensor:
        """Every process has all persistent chains; of those that begin at images each has its own."""
        return energies.mean() if self.chains is not None else gather(energies).mean()

    def free_energy(self, visible: Tensor) -> Tensor:
        """F(v) of each sample, (n,)."""
        bias = self.visible_bias
        own = (visible - bias).square() / 2 if self.gaussian else -visible * bias
        return own.flatten(1).sum(1) - F.softplus(self._layer(visible)).flatten(1).sum(1)

    @torch.no_grad()
    def dream(self, seen: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Visible units after `steps` of Gibbs sampling, and hidden units drawn by them."""
        offset = batch.offset if self.chains is None else 0
        hidden = self.chains
        if hidden is None:
            hidden = self.drawn(self.blocks(seen), (*batch.key, "first"), offset)
        visible = seen
        for step in range(self.steps):
            visible = self.visible_by(hidden, (*batch.key, step, "visible"), offset)
            hidden = self.drawn(self.blocks(visible), (*batch.key, step, "hidden"), offset)
        return visible, hidden

    def expected(self, hidden: Tensor) -> Tensor:
        """The mean of the visible units, given the hidden ones."""
        layer = self._layer
        shape = (len(hidden), *self.visible_bias.shape)
        how: Any = layer.stride, layer.padding, layer.dilation, layer.groups
        down = conv2d_input(shape, layer.weight, hidden, *how) + self.visible_bias
        return down if self.gaussian else down.sigmoid()

    def visible_by(self, hidden: Tensor, key: tuple[int | str, ...], offset: int) -> Tensor:
        """Visible units drawn by the hidden ones."""
        mean = self.expected(hidden)
        if not self.gaussian:
            return self.drawn(mean, key, offset)
        draws = normal(("gibbs", self.number, *key), offset, len(mean), mean[0].numel())
        return mean + draws.view(mean.shape).to(mean)

    def drawn(self, probability: Tensor, key: tuple[int | str, ...], offset: int) -> Tensor:
        """1 with this probability, else 0."""
        return (self.uniform(probability, key, offset) < probability).to(probability)

    def uniform(self, like: Tensor, key: tuple[int | str, ...], offset: int) -> Tensor:
        """Uniform numbers by key and place in the batch."""
        rows = uniform(("gibbs", self.number, *key), offset, len(like), like[0].numel())
        return torch.from_numpy(rows).view(like.shape).to(like.device)

    @torch.no_grad()
    def pass_on(self, signal: Signal, batch: Batch) -> Signal:
        probabilities = self.blocks(signal.online[0])
        return Signal({0: probabilities}, {0: probabilities})

    @torch.no_grad()
    def samples(self, count: int, seed: int, steps: int = 200) -> Tensor:
        """Visible units of chains of so many steps that begin at hidden units drawn with probability 1/2."""
        hidden = torch.zeros(count, *self._hidden, dtype=self.visible_bias.dtype, device=self.visible_bias.device)
        hidden = self.drawn(hidden + 0.5, ("samples", seed), 0)
        for step in range(steps):
            visible = self.visible_by(hidden, ("samples", seed, step, "visible"), 0)
            hidden = self.drawn(self.blocks(visible), ("samples", seed, step, "hidden"), 0)
        return self.expected(hidden)

    @torch.no_grad()
    def after_step(self, step: int, total: int, hidden: Tensor | None = None) -> None:
        if self.chains is not None and hidden is not None:
            self.chains.copy_(hidden)

    @torch.no_grad()
    def outputs(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Beside features, the reconstruction by the hidden units' probabilities, its error, and the free energy."""
        with evaluating(self):
            hidden = self.blocks(x)
            found = self.expected(hidden)
        rows = {
            "encoder": average(hidden),
            "reconstruction": found.flatten(1),
            "pixels": x.flatten(1),
            "reconstruction_error": (found - x).square().flatten(1).mean(1),
            "free_energy": self.free_energy(x),
        }
        return {name: row.float() for name, row in rows.items()}, hidden
