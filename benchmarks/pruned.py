"""Step time with the pruned target, as a part of that of the same method with the shared target.

    python benchmarks/pruned.py [--steps 4] [--rounds 7] [--threads 1] [--batch 128] [a.b=c ...]

Whole training steps of the recipe `sdclr_demo` on the embedded images, masks drawn anew as it has it; fields are
changed as on the command line, such as encoder.kind=resnet18. Both sides take turns in each round, with steps of equal
number; printed are the medians over rounds, the median of the ratios of one round, and what drawing the masks takes.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from twinblock.assembly.resolve import resolve
from twinblock.config.recipes import compose
from twinblock.core.console import Reporter
from twinblock.data import load
from twinblock.methods.learner import parts_of
from twinblock.methods.targets.pruned import Pruned
from twinblock.runs.run import Run
from twinblock.training.launch import make_fabric
from twinblock.training.trainer import Trainer


def make_trainer(target: str, fields: list[str], folder: Path) -> Trainer:
    own = [] if target == "pruned" else [f"target.kind={target}"]
    config = compose("sdclr_demo", overrides=["train.length=1000000steps", *fields, *own])
    images, fabric = load("photodigits"), make_fabric()
    assert images is not None
    return Trainer(resolve(config, images, fabric.device), images, fabric, Run(folder), Reporter(quiet=True))


def waited() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (("steps", 4), ("rounds", 7), ("threads", 1), ("batch", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("fields", nargs="*", metavar="a.b=c")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    seconds: dict[str, list[float]] = {"pruned": [], "shared": []}
    with tempfile.TemporaryDirectory() as folder:
        fields = [f"data.batch={args.batch}", *args.fields]
        trainers = {target: make_trainer(target, fields, Path(folder) / target) for target in seconds}
        loaders = {name: enumerate(one.loader.batches(0, one.plan.total)) for name, one in trainers.items()}
        for turn in range(args.rounds + 1):  # the first warms up
            for target in reversed(seconds) if turn % 2 else seconds:
                trainer, start = trainers[target], waited()
                for _ in range(args.steps):
                    trainer.train_step(*next(loaders[target]))
                if turn:
                    seconds[target].append((waited() - start) / args.steps)
        learners = [part for learner in trainers["pruned"].learners for part in parts_of(learner)]
        start = waited()
        for learner in learners:
            assert isinstance(learner.target, Pruned)
            learner.target.draw(learner.network, 0)
        drawing = waited() - start
        print(
            f"batch {args.batch}, {args.threads} threads, torch {torch.__version__}, {trainers['pruned'].fabric.device}"
        )
        print("  " + ", ".join(f"{target} {1e3 * statistics.median(s):.1f} ms a step" for target, s in seconds.items()))
        ratios = [a / b for a, b in zip(seconds["pruned"], seconds["shared"], strict=True)]
        print(f"  pruned takes {statistics.median(ratios):.3f} times as long ({min(ratios):.3f} to {max(ratios):.3f})")
        print(f"  drawing the masks {1e3 * drawing:.1f} ms, every {trainers['pruned'].epoch_steps} steps")


if __name__ == "__main__":
    main()
