"""What the diagnosis that is always on costs: the time of its looks as a share of the time of the steps.

    python benchmarks/monitor.py [--repeats 9] [recipe ...]

Looks and steps of a recipe on the embedded data are timed in turn in one process; the share follows from their medians
and from the number of looks that a run of the given length takes.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from twinblock.assembly.resolve import resolve
from twinblock.config.recipes import compose
from twinblock.core.console import Reporter
from twinblock.data import load
from twinblock.runs.run import Run
from twinblock.training.launch import make_fabric
from twinblock.training.trainer import Trainer

LENGTHS = ("500steps", "2000steps", "100epochs")


def trainer(recipe: str, length: str, out: Path) -> Trainer:
    fabric = make_fabric()
    config = compose(recipe, overrides=[f"train.length={length}"])
    images = load(config.data.source, config.data.root, "train", config.data.size)
    assert images is not None
    return Trainer(resolve(config, images, fabric.device), images, fabric, Run(out), Reporter(quiet=True))


def measure(recipe: str, repeats: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trainers = {length: trainer(recipe, length, Path(folder)) for length in LENGTHS}
        one = trainers[LENGTHS[-1]]
        loader = enumerate(one.loader.batches(0, one.plan.total))
        works: dict[str, Callable[[], object]] = {"step": lambda: one.train_step(*next(loader))}
        works |= {length: built.monitor.measure for length, built in trainers.items()}
        times: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(repeats + 1):
            for name, work in works.items():
                start = time.perf_counter()
                work()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                times[name].append(time.perf_counter() - start)
        took = {name: statistics.median(values[1:]) for name, values in times.items()}  # the first is a warm-up
        print(f"{recipe}: a step {1e3 * took['step']:.0f} ms")
        for length, built in trainers.items():
            total, sample = built.plan.total, len(built.monitor.pixels)
            looks = sum(built.monitor.due(step) for step in range(total)) + 1
            share = 100 * looks * took[length] / (total * took["step"])
            each = f"{looks} looks at {sample} images, {1e3 * took[length]:.0f} ms each"
            print(f"  {length:>10}: {total} steps, {each}: {share:.2f} % of the time of the steps")


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of the monitor as a share of the time of the steps.")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("recipes", nargs="*", default=["demo", "byol"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for recipe in arguments.recipes:
        measure(recipe, arguments.repeats)


if __name__ == "__main__":
    main()
