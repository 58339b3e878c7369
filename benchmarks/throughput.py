"""Images a second of SimCLR training: our loop against lightly's own, side by side in one run; and where a step goes.

    python benchmarks/throughput.py [--steps 4] [--rounds 5] [--threads 2] [--batch 128] [--compiled]

ResNet-18 with the CIFAR stem at 32 px on the embedded images, two views, SGD. lightly (if it is installed) runs as
its documentation writes the loop, float32, and with bf16 and channels_last. Sides take turns; printed are medians over
the rounds, the ratio to ours in the same round, and which part of our step is not the forward and backward of networks.
`--compiled` adds ours with `train.compile`, which takes a minute or two to compile.
"""

import argparse
import importlib.util
import itertools
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from twinblock.assembly.resolve import resolve
from twinblock.config.recipes import compose
from twinblock.core.console import Reporter
from twinblock.data import Images, load
from twinblock.runs.run import Run
from twinblock.training.launch import make_fabric
from twinblock.training.trainer import Trainer
from twinblock.views import Views

FLOP = 2 * 0.5567e9 * 3 * 2  # of an image: ResNet-18 at 32 px, CIFAR stem; multiply and add, three passes, two views


def ours(images: Images, batch: int, precision: str, folder: Path, compiled: bool = False) -> Trainer:
    fields = [f"data.batch={batch}", "encoder.kind=resnet18", "encoder.stem=cifar", f"train.precision={precision}"]
    fields += ["train.compile=true"] if compiled else []
    config = compose("simclr", overrides=[*fields, "train.length=100000steps"])
    fabric = make_fabric()
    return Trainer(resolve(config, images, fabric.device), images, fabric, Run(folder), Reporter(quiet=True))


def steps_of(trainer: Trainer) -> Callable[[], None]:
    loader = enumerate(trainer.loader.batches(0, trainer.plan.total))

    def step() -> None:
        trainer.train_step(*next(loader))

    return step


def waited() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def lightly_loop(images: Images, batch: int, fast: bool) -> Iterator[tuple[Any, torch.optim.Optimizer]]:
    """A step each time it is asked: lightly's transform in a DataLoader, its head and its loss.

    Gives the network, whose `fc` is the head, and its optimizer.
    """
    from lightly.loss import NTXentLoss  # pyright: ignore[reportMissingImports]
    from lightly.models.modules import SimCLRProjectionHead  # pyright: ignore[reportMissingImports]
    from lightly.transforms.simclr_transform import SimCLRTransform  # pyright: ignore[reportMissingImports]
    from PIL import Image
    from torchvision.models import resnet18

    transform = SimCLRTransform(input_size=32, gaussian_blur=0.0)
    pictures = [Image.fromarray(pixels) for pixels in images.pixels]

    class Pictures(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, i: int):
            return transform(pictures[i])

    network: Any = resnet18()
    network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    network.fc = SimCLRProjectionHead(512, 512, 128)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = network.to(device, memory_format=torch.channels_last if fast else torch.contiguous_format)
    loss_of, optimizer = NTXentLoss(temperature=0.2), torch.optim.SGD(network.parameters(), 0.03, momentum=0.9)
    workers = 0 if device.type == "cpu" else os.cpu_count() or 1  # on a CPU they compete with the training
    loader = torch.utils.data.DataLoader(Pictures(), batch, shuffle=True, drop_last=True, num_workers=workers)
    for views in itertools.chain.from_iterable(itertools.repeat(loader)):
        views = [view.to(device, non_blocking=True) for view in views]
        with torch.autocast(device.type, torch.bfloat16, enabled=fast):
            a, b = (network(v.contiguous(memory_format=torch.channels_last) if fast else v) for v in views)
            loss = loss_of(a, b)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield network, optimizer


def shares(trainer: Trainer, step: Callable[[], None], steps: int) -> dict[str, float]:
    """Which part of a step each kind of work takes: of networks forward and backward, and everything else."""
    spent: dict[str, float] = defaultdict(float)

    def timed(name: str, call: Callable) -> Callable:
        def run(*args, **kwargs):
            start = waited()
            try:
                return call(*args, **kwargs)
            finally:
                spent[name] += waited() - start

        return run

    learner = trainer.learners[0]
    learner.network.forward = timed("forward", learner.network.forward)
    trainer.fabric.backward = timed("backward", trainer.fabric.backward)
    trainer.train_step.update = timed("optimizer, target", trainer.train_step.update)
    Views.__call__ = timed("views", Views.__call__)
    start = waited()
    for _ in range(steps):
        step()
    total = waited() - start
    spent["loss, loading, rest"] = total - sum(spent.values())
    return {name: 100 * value / total for name, value in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (("steps", 4), ("rounds", 5), ("threads", 2), ("batch", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--compiled", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    images = load("photodigits")
    assert images is not None
    with tempfile.TemporaryDirectory() as folder:
        trainers = {f"twinblock {p}": ours(images, args.batch, p, Path(folder) / p) for p in ("bf16", "fp32")}
        if args.compiled:
            trainers["twinblock bf16, compiled"] = ours(images, args.batch, "bf16", Path(folder) / "compiled", True)
        sides: dict[str, Callable[[], Any]] = {name: steps_of(trainer) for name, trainer in trainers.items()}
        if importlib.util.find_spec("lightly"):
            for name, fast in (("lightly fp32", False), ("lightly bf16, channels_last", True)):
                loop = lightly_loop(images, args.batch, fast)
                sides[name] = lambda loop=loop: next(loop)
        else:
            print("lightly is not installed: left out")
        speeds: dict[str, list[float]] = {name: [] for name in sides}
        for step in sides.values():
            step()  # warm-up
        for _ in range(args.rounds):
            for name, step in sides.items():
                start = waited()
                for _ in range(args.steps):
                    step()
                speeds[name].append(args.steps * args.batch / (waited() - start))
        print(f"batch {args.batch}, {args.threads} threads, torch {torch.__version__}, median of {args.rounds} rounds")
        for name, values in speeds.items():
            ratio = statistics.median(o / v for o, v in zip(speeds["twinblock bf16"], values, strict=True))
            median = statistics.median(values)
            print(f"  {name:28} {median:7.1f} images/s, {median * FLOP / 1e9:6.0f} GFLOP/s; ours is {ratio:.2f} times")
        for name, trainer in trainers.items():
            parts = shares(trainer, sides[name], args.steps)
            print(f"  {name}: " + ", ".join(f"{part} {value:.1f} %" for part, value in parts.items()))


if __name__ == "__main__":
    main()
