"""The linear probe that SDCLR and others publish: SGD with a large learning rate on augmented images."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from twinblock.config.data import Data
from twinblock.core.seeding import generator
from twinblock.data import Images
from twinblock.evaluation.features import at_once, check
from twinblock.views import centre

FULL_SHOT, FEW_SHOT = (30, (10, 20)), (100, (40, 60))  # epochs, and the epochs before which the rate drops tenfold


def sgd_probe(
    train: Callable[[int], Float[Tensor, "n d"]],
    labels: Int[Tensor, " n"],
    test: Float[Tensor, "q d"],
    classes: int,
    epochs: int = 30,
    drops: tuple[int, ...] = (10, 20),
    lr: float = 30.0,
    batch: int = 128,
    seed: int = 0,
) -> Float[Tensor, "q c"]:
    """Scores of each class; `train(epoch)` gives the features of an epoch, augmented or not.

    Momentum 0.9, no weight decay, features as they are, the weights of the last epoch (published: of the epoch that
    is best on a validation set). Jiang et al. 2021, section 4.1. Raises InputError for features that are not finite.
    """
    layer = nn.Linear(test.shape[1], classes)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=lr, momentum=0.9)
    for epoch in range(epochs):
        features = train(epoch)
        check(features, labels, test, classes)
        for group in optimizer.param_groups:
            group["lr"] = lr * 0.1 ** sum(epoch >= drop for drop in drops)
        for rows in torch.randperm(len(features), generator=generator("probe", seed, epoch)).split(batch):
            optimizer.zero_grad()
            cross_entropy(layer(features[rows]), labels[rows]).backward()
            optimizer.step()
    with torch.no_grad():
        return layer(test)


@torch.no_grad()
def augmented(
    encoder: nn.Module, images: Images, data: Data, epoch: int, seed: int, flip: bool, device: torch.device
) -> Float[Tensor, "n d"]:
    """Features of randomly moved (an eighth of the side, zero padding) and flipped images, float32 on the CPU.

    `data`: of the run, resolved, which says how images are seen.
    """
    encoder.eval()
    seen, size = data.seen, data.size
    assert size is not None, "the config is not resolved"
    g, pad, rows = generator("augment", seed, epoch), size // 8, []
    for index in torch.arange(len(images)).split(at_once(size)):
        x = centre(images.batch(index).to(device), size, aspect=images.aspects(index), **seen)
        top, left = (torch.randint(2 * pad + 1, (len(x), 1, 1), generator=g).to(device) for _ in range(2))
        turned = (torch.rand(len(x), generator=g) < 0.5) & flip
        # the published crop pads before it normalises: the padding is black, not grey
        black = torch.tensor([-m / s for m, s in zip(seen["mean"], seen["std"], strict=True)], device=device).view(
            -1, 1, 1
        )
        x = nn.functional.pad(x - black, [pad] * 4) + black
        side = torch.arange(size, device=device)
        x = x[
            torch.arange(len(x), device=device)[:, None, None],
            :,
            top + side[:, None],
            left + side[None, :],
        ].permute(0, 3, 1, 2)
        x = torch.where(turned.to(device).view(-1, 1, 1, 1), x.flip(3), x)
        rows.append(encoder(x).float().cpu())
    return torch.cat(rows)
