"""Images that grow on the way, and a first layer set by the images: do they learn more in the same time?

    python benchmarks/growing.py data=cifar10 data.root=DIR [--seconds 80] [--seeds 1] [--only ARM] [--out DIR]

The recipe `fast`, and the same with views of a smaller side for a part of the steps, or with a first convolution whose
filters are the principal components of patches of the images, each and its negative, divided by their spread. What is
learned is measured by a linear probe and kNN on 5 000 of the training images, which were held out, fitted to 10 000
others; test images are not looked at. Each arm takes as many steps as fit into the seconds of one core, by steps of
each side that were timed before, so that other work beside it does not count.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from methods import step_time
from speedrun import accuracy
from torch import nn

from twinblock.assembly.resolve import resolve
from twinblock.assembly.views import views_of
from twinblock.config.recipes import compose
from twinblock.core.console import Reporter, print_table
from twinblock.data import Images, take
from twinblock.data.training import chosen, training
from twinblock.runs.run import Run
from twinblock.training.launch import make_fabric
from twinblock.training.trainer import Trainer

# sides of views, each for a part of the steps; and whether the first layer is set
ARMS: dict[str, tuple[Sequence[tuple[float, int]], bool]] = {
    "as it is": (((1.0, 32),), False),
    "half of the steps 24 px": (((0.5, 24), (0.5, 32)), False),
    "four fifths of the steps 24 px": (((0.8, 24), (0.2, 32)), False),
    "half of the steps 16 px": (((0.5, 16), (0.5, 32)), False),
    "16, 24, 32 px, a third each": (((1 / 3, 16), (1 / 3, 24), (1 / 3, 32)), False),
    "first layer of components": (((1.0, 32),), True),
}
HELD_OUT, FITTED = 5_000, 10_000


def set_first_layer(encoder: nn.Module, images: Images, mean: Any, std: Any) -> None:
    """Filters that are components of patches: they answer alike strongly, and without correlation."""
    conv = next(module for module in encoder.modules() if isinstance(module, nn.Conv2d))
    (side, _), count = conv.kernel_size, conv.out_channels // 2
    x = images.batch(np.arange(0, len(images), max(1, len(images) // 2000))).double() / 255
    x = ((x - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2)
    patches = nn.functional.unfold(x, side).movedim(1, 2).reshape(-1, conv.in_channels * side * side)
    spread, components = torch.linalg.eigh(torch.cov(patches.T))
    filters = (components[:, -count:] / spread[-count:].sqrt()).T.flip(0)
    with torch.no_grad():
        conv.weight[: 2 * count] = torch.cat([filters, -filters]).view(2 * count, *conv.weight.shape[1:])


def learned(name: str, fields: list[str], seed: int, seconds: float, out: Path) -> dict[str, Any]:
    phases, components = ARMS[name]
    config = compose("fast", overrides=[*fields, f"train.seed={seed}", "train.length=1epochs"])
    images = training(*chosen(config.data))
    rows = np.random.default_rng(0).permutation(len(images))
    held, images = take(images, np.sort(rows[:HELD_OUT])), take(images, np.sort(rows[HELD_OUT:]))
    some = take(images, np.sort(np.random.default_rng(1).permutation(len(images))[:FITTED]))
    times = [step_time("fast", [*fields, f"data.size={side}"], 60) for _, side in phases]
    steps = int(seconds / sum(part * time for (part, _), time in zip(phases, times, strict=True)))
    config = compose("fast", overrides=[*fields, f"train.seed={seed}", f"train.length={steps}steps"])
    config = resolve(config, images, torch.device("cpu"))
    one = Trainer(config, images, make_fabric(), Run(out / f"{name}-{seed}".replace(" ", "-")), Reporter(quiet=True))
    mean, std = one.config.data.mean, one.config.data.std
    if components:
        set_first_layer(one.encoder, images, mean, std)
    starts = np.cumsum([0, *(part for part, _ in phases)])[:-1] * steps
    batches, spent = enumerate(one.loader.batches(0, steps)), 0.0
    for count in range(steps):
        if (here := np.flatnonzero(np.ceil(starts) == count)).size:
            data = config.data.model_copy(update={"size": phases[here[-1]][1]})
            one.train_step.views = views_of(config.model_copy(update={"data": data}))
        began = time.process_time()
        one.train_step(*next(batches))
        spent += time.process_time() - began
    found = accuracy(one.encoder, (some, held), mean, std)
    return {"arm": name, "seed": seed, "steps": steps, "seconds": round(spent, 1), **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("fields", nargs="*", help="of the data, as data=cifar10")
    parser.add_argument("--seconds", type=float, default=80)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=list(ARMS), help="names of arms")
    parser.add_argument("--out", type=Path, default=Path("runs/growing"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in range(arguments.seeds):
        for name in arguments.only:
            file = arguments.out / f"{name}-{seed}.json".replace(" ", "-")
            if not file.exists():
                row = learned(name, arguments.fields, seed, arguments.seconds, arguments.out)
                file.write_text(json.dumps(row))
                print(json.dumps(row), flush=True)
            rows.append(json.loads(file.read_text()))
    print_table(f"{arguments.seconds:g} seconds of a core", rows)


if __name__ == "__main__":
    main()
