"""Accuracy by time: the recipe `fast` and lightly's SimCLR, each for so many minutes of one core, side by side.

    python benchmarks/speedrun.py data=cifar10 data.root=DIR [--minutes 20] [--seeds 1] [--out runs/speedrun]

Each runs in a process of its own on one thread. After 1/8 and 1/2 of the time and at its end a linear probe and kNN
measure both alike: at 32 px, fitted to 10 000 training images, on 5 000 test images. The clock is that of the process:
what other programs take does not count. Start, packing and evaluation do not count either, on both sides.

lightly: its transform without blur, ResNet-18 with the CIFAR stem, its projection head and loss, batch 128, SGD with
momentum, as in its example; in bf16 and channels_last where the processor is fast at bf16, else in float32. `--rates`
tries several learning rates for a batch of 256. The rate falls by half a cosine over the time. Others can add
themselves to the ledger in docs/results/speed.md: any settings of `twinblock pretrain`, or any program, that keep to
the time.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from methods import step_time
from throughput import lightly_loop
from torch import nn

from twinblock.assembly.precision import fast_at_bf16
from twinblock.config.recipes import compose
from twinblock.core.console import print_table
from twinblock.data import Images
from twinblock.data.training import chosen, training
from twinblock.evaluation import features, knn_scores, linear_probe
from twinblock.evaluation.labelled import labelled
from twinblock.nn.imagenet import MEAN, STD
from twinblock.training.launch import make_fabric
from twinblock.training.trainer import Trainer

LOOKS = 0.125, 0.5, 1.0  # parts of the time
FITTED, TESTED = 10_000, 5_000  # images


def accuracy(encoder: nn.Module, sets: tuple[Images, Images], mean: Any, std: Any) -> dict[str, float]:
    """Linear probe and kNN on test images, in percent."""
    autocast = torch.bfloat16 if fast_at_bf16() else None
    found = [features(encoder, images, size=32, mean=mean, std=std, autocast=autocast) for images in sets]
    train, test = (torch.as_tensor(images.labels) for images in sets)
    given = found[0], train, found[1], int(train.max()) + 1
    scores = {"linear": linear_probe(*given), "kNN": knn_scores(*given)}
    return {name: 100 * float((score.argmax(1) == test).float().mean()) for name, score in scores.items()}


def some_of(fields: list[str]) -> tuple[Images, Images]:
    """Training and test images to measure on."""
    found = []
    for images, count in zip(labelled(compose("simclr", overrides=fields).data, 0), (FITTED, TESTED), strict=True):
        rows = np.sort(np.random.default_rng(0).permutation(len(images))[:count])
        found.append(Images(images.batch(rows).numpy(), np.asarray(images.labels)[rows], images.classes))
    return tuple(found)


def timed(step: Callable[[float], Any], look: Callable[[], dict[str, float]], seconds: float) -> Iterator[dict]:
    """Take steps, each told the share of the time that is over; `look` after each share of `LOOKS`."""
    spent, count, kept = 0.0, 0, list(LOOKS)
    while kept:
        began = time.process_time()
        step(min(1.0, spent / seconds))
        spent, count = spent + time.process_time() - began, count + 1
        if spent >= kept[0] * seconds:
            yield {"minutes": round(kept.pop(0) * seconds / 60, 2), "steps": count, **look()}


def with_lightly(fields: list[str], seed: int, rate: float, seconds: float) -> Iterator[dict]:
    config, sets = compose("simclr", overrides=fields), some_of(fields)
    torch.manual_seed(seed)
    loop = lightly_loop(training(*chosen(config.data)), 128, fast=fast_at_bf16())
    network, optimizer = next(loop)  # a step beside the time
    head = network.fc

    def step(share: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = rate * 128 / 256 * (1 + math.cos(math.pi * share)) / 2
        next(loop)

    def look() -> dict[str, float]:
        network.fc = nn.Identity()
        try:
            return accuracy(network, sets, MEAN, STD)
        finally:
            network.fc = head

    yield from timed(step, look, seconds)


def with_twinblock(fields: list[str], seed: int, folder: Path, seconds: float) -> Iterator[dict]:
    """Its learning rate follows the number of steps, so they are counted before."""
    from twinblock.assembly.resolve import resolve
    from twinblock.core.console import Reporter
    from twinblock.runs.run import Run

    fields = [*fields, f"train.seed={seed}"]
    length = int(seconds / step_time("fast", fields, 50))
    config, sets = compose("fast", overrides=[*fields, f"train.length={length}steps"]), some_of(fields)
    images = training(*chosen(config.data))
    config = resolve(config, images, torch.device("cpu"))
    one = Trainer(config, images, make_fabric(), Run(folder / f"fast-{seed}"), Reporter(quiet=True))
    batches = enumerate(one.loader.batches(0, length))
    mean, std = one.config.data.mean, one.config.data.std
    spent, kept = 0.0, list(LOOKS)
    for count in range(1, length + 1):
        began = time.process_time()
        one.train_step(*next(batches))
        spent += time.process_time() - began
        if count >= kept[0] * length:
            kept.pop(0)
            yield {"minutes": round(spent / 60, 2), "steps": count, **accuracy(one.encoder, sets, mean, std)}


def run(who: str, fields: list[str], seed: int, seconds: float, out: Path) -> None:
    torch.set_num_threads(1)
    file = out / f"{who.replace(' ', '-')}-{seed}.json"
    if file.exists():
        return
    rows = []
    if who.startswith("lightly"):
        found = with_lightly(fields, seed, float(who.split()[-1]), seconds)
    else:
        found = with_twinblock(fields, seed, out, seconds)
    for row in found:
        rows.append({"who": who, "seed": seed, **row})
        print(json.dumps(rows[-1]), flush=True)
    file.write_text(json.dumps(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("fields", nargs="*", help="of the data, as data=cifar10")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rates", type=float, nargs="*", default=[0.06])
    parser.add_argument("--out", type=Path, default=Path("runs/speedrun"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    sides = ["fast", *(f"lightly {rate:g}" for rate in arguments.rates)]
    jobs = [(who, arguments.fields, seed, 60 * arguments.minutes) for seed in range(arguments.seeds) for who in sides]
    with get_context("spawn").Pool(2) as pool:
        for result in [pool.apply_async(run, (*job, arguments.out)) for job in jobs]:
            result.get()
    rows = [row for file in sorted(arguments.out.glob("*.json")) for row in json.loads(file.read_text())]
    print_table(f"{arguments.minutes:g} minutes of a core", rows)


if __name__ == "__main__":
    main()
