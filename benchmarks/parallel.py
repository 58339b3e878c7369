"""Blocks on processes of their own, beside simultaneous training on one: time of a step, and memory of a process.

    python benchmarks/parallel.py [--steps 30] [--rounds 3] [--processes 1 2 4] [a.b=c ...]

Each process computes on one thread. A run of few and a run of many steps are timed in turn; the difference is the time
of the steps without the start. Printed: medians, the speed relative to one process, and the largest process's peak of
resident memory, with torch itself. What to expect: a step takes as long as the slowest stage. The first line says which
share of a step each block takes, so `bound` is one over the largest share of a stage.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from lightning_fabric import Fabric

from twinblock.assembly.resolve import resolve
from twinblock.config.recipes import compose
from twinblock.core.console import print_table
from twinblock.data.training import chosen, training
from twinblock.training.loader import Loader
from twinblock.training.step import TrainStep

FEW = 3  # steps of the run that is subtracted
FIELDS = ("scope=blockwise", "train.checkpoint_every=100%", "data.batch=64", "train.precision=fp32")


def shares(fields: list[str], repeats: int = 3) -> list[float]:
    """Which part of a core's time of a step each block takes."""
    config = compose("simclr", overrides=[*fields, "train.length=100steps"])
    images = training(*chosen(config.data))
    config = resolve(config, images, torch.device("cpu"))
    loader = Loader(images, 0, config.data.batch, config.data.batch, 0, torch.device("cpu"))
    step = TrainStep(config, Fabric(accelerator="cpu", devices=1), None, loader.epoch_steps, 100, {})
    spent = [0.0] * len(step.learners)
    for number, samples in enumerate(loader.batches(0, 1 + repeats)):
        signal, batch = step.signal_of(number, samples)
        for i in range(len(step.learners)):
            began = time.process_time()
            loss, signal, *rest = step.forwards[i](signal, batch)
            loss.backward()
            step.update(i, number, 100, *rest)
            spent[i] += time.process_time() - began if number else 0.0  # the first is a warm-up
    return [seconds / sum(spent) for seconds in spent]


def seconds(processes: int, steps: int, fields: list[str], out: Path) -> tuple[float, float]:
    """Of a whole run; and the peak of resident memory of its largest process so far, in GiB."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    words = [sys.executable, *torchrun, "-m", "twinblock", "pretrain", "simclr", *fields, "train.parallel=blocks"]
    began = time.perf_counter()
    subprocess.run(
        [*words, f"train.length={steps}steps", f"out={out}"],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (("steps", 30), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("fields", nargs="*", metavar="a.b=c")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    fields = [*FIELDS, *arguments.fields]
    parts = shares(fields)
    print(f"of a step each block takes {', '.join(f'{100 * part:.0f} %' for part in parts)}", flush=True)
    took: dict[int, list[float]] = {count: [] for count in arguments.processes}
    memory: dict[int, float] = {}
    with TemporaryDirectory() as folder:
        for turn in range(arguments.rounds):
            for count in sorted(took, reverse=True):  # the smaller processes first: a peak only grows
                few, many = (
                    seconds(count, steps, fields, Path(folder) / f"{count}-{turn}-{steps}")
                    for steps in (FEW, FEW + arguments.steps)
                )
                took[count].append((many[0] - few[0]) / arguments.steps)
                memory.setdefault(count, many[1])
    rows = []
    for count, times in took.items():
        ends = [len(parts) * s // count for s in range(count + 1)]
        slowest = max(sum(parts[a:b]) for a, b in pairwise(ends))
        ratio = statistics.median(one / own for one, own in zip(took[arguments.processes[0]], times, strict=True))
        rows.append(
            {
                "processes": count,
                "ms a step": f"{1e3 * statistics.median(times):.0f}",
                "speed": f"{ratio:.2f}",
                "bound": f"{1 / slowest:.2f}",
                "GiB, largest process": f"{memory[count]:.2f}",
            }
        )
    print_table(f"{os.cpu_count()} cores, torch {torch.__version__}, median of {arguments.rounds}", rows)


if __name__ == "__main__":
    main()
