"""Memory held for backward and throughput of a training step: end to end against blockwise, at equal batch.

    python benchmarks/memory.py [--models resnet50] [--batch 4] [--size 224] [--repeats 5] [--memory 16] [--json FILE]

On a CPU the memory is the peak of the bytes that autograd has saved at any moment of a step, each storage counted once,
weights left out; and beside it, `all`, the peak of all tensors that the step makes, gradients and what is soon thrown
away included, which also counts what backward makes again. On a GPU it is the allocator's peak above what lies there
between steps. Each phase of the sequential plan is a row. `largest batch`: its step, with weights, gradients and
momentum, fits into `--memory` GiB.
Times are taken in rounds: in each, every scope takes one step after another, so that what else the machine does falls
on all of them. `speed`: time end to end by time of this scope, median and quartiles over the rounds.
"""

import argparse
import json
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from twinblock.assembly.build import make_learners
from twinblock.config.recipes import compose
from twinblock.config.schema import Config
from twinblock.core.memory import Alive
from twinblock.methods.learner import Batch, Learner, Signal
from twinblock.nn.encoders import build_encoder
from twinblock.optim import make_optimizer, parameter_groups
from twinblock.studies.study import markdown

MODELS = ("resnet18", "resnet50", "vit_small_patch16_224")
SCOPES = {
    "end to end": ["scope.kind=end_to_end"],
    "simultaneous": ["scope.kind=blockwise"],
    "simultaneous, every block": ["scope.kind=blockwise", "scope.cuts=blocks"],
    "overlapping": ["scope.kind=overlapping"],
    "noise": ["scope.kind=blockwise", "scope.noise=0.25"],
    "expansion": ["scope.kind=blockwise", "scope.expand=2048"],  # to that of the published ResNet-50
    "expansion, every block": ["scope.kind=blockwise", "scope.expand=2048", "scope.cuts=blocks"],
    "expansion, noise": ["scope.kind=blockwise", "scope.expand=2048", "scope.noise=0.25"],
}
VIT_STAGES = "scope.cuts=[blocks.3,blocks.6,blocks.9]"  # four parts of three layers, as a ResNet has four stages
HEAD = "projector.dims=[512,128]"
STATES = 3  # tensors as large as the weights that training holds: weights, gradients, momentum


@dataclass
class Saved:
    """What autograd holds for backward, storage by storage: `peak` is the most at any moment, in bytes."""

    weights: set[int]
    held: Counter = field(default_factory=Counter)
    now: int = 0
    peak: int = 0

    def hooks(self):
        return torch.autograd.graph.saved_tensors_hooks(lambda tensor: Entry(tensor, self), lambda entry: entry.tensor)

    def change(self, tensor: Tensor, count: int) -> None:
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key in self.weights:
            return
        before = self.held[key]
        self.held[key] += count
        self.now += storage.nbytes() * ((self.held[key] > 0) - (before > 0))
        self.peak = max(self.peak, self.now)


class Entry:
    """One saved tensor, counted for as long as its graph lives."""

    def __init__(self, tensor: Tensor, saved: Saved):
        self.tensor, self.saved = tensor.detach(), saved  # with its graph it would keep itself alive
        saved.change(self.tensor, 1)

    def __del__(self):
        self.saved.change(self.tensor, -1)


def _optimizer(learner: torch.nn.Module, config: Config) -> torch.optim.Optimizer:
    groups = parameter_groups(learner, config.optim.weight_decay, config.optim.exclude_bias_and_norm)
    return make_optimizer(groups, config.optim.kind, lr=config.optim.lr, momentum=config.optim.momentum)


class Step:
    """A training step: what the trainer does with one batch of views. `trained`: the Learners that learn."""

    def __init__(self, model: str, scope: list[str], batch: int, size: int, device: torch.device):
        cuts = [VIT_STAGES] if model.startswith("vit") and "scope.cuts=blocks" not in scope else []
        cuts = [] if "scope.kind=end_to_end" in scope else cuts
        self.config = compose("simclr", overrides=[*scope, *cuts, HEAD, f"data.batch={batch}", f"data.size={size}"])
        self.encoder = build_encoder(model, "standard", "batch", None, size, 0, self.config.scope.cuts)
        autocast = torch.bfloat16 if device.type == "cuda" else None
        self.learners = make_learners(self.config, self.encoder, None, autocast)
        layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        for learner in self.learners:
            learner.to(device).to(memory_format=layout)
        self.optimizers = [_optimizer(learner, self.config) for learner in self.learners]
        g = torch.Generator().manual_seed(0)
        self.views = [torch.randn(batch, 3, size, size, generator=g).to(device) for _ in range(2)]
        self.weights = {p.untyped_storage().data_ptr() for p in (*self.encoder.parameters(), *self._heads())}

    def _heads(self):
        return [p for learner in self.learners for p in learner.parameters()]

    @property
    def bytes_of_state(self) -> int:
        return STATES * sum({p: p.nbytes for p in (*self.encoder.parameters(), *self._heads())}.values())

    def run(self, trained: set[int]) -> None:
        signal = Signal.from_views(self.views)
        for i, (learner, optimizer) in enumerate(zip(self.learners, self.optimizers, strict=True)):
            if i > max(trained):
                break
            if i not in trained:
                assert isinstance(learner, Learner)
                signal = learner.eval().pass_on(signal, Batch(None, (0, 0)))
                continue
            loss, signal, *rest = learner.train()(signal, Batch(None, (0, 0)))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            learner.after_step(0, 1, *rest)

    def bytes_saved(self, trained: set[int]) -> int:
        """The most that is held for backward at any moment."""
        if self.views[0].is_cuda:
            self.run(trained)  # momenta and workspaces exist from the first step on
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.run(trained)
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() - before
        saved = Saved(self.weights)
        with saved.hooks():
            self.run(trained)
        assert saved.now == 0, "what was saved has been freed"
        return saved.peak

    def bytes_in_all(self, trained: set[int]) -> int:
        """The peak of what there is in a step besides what lies there between steps; on a CPU, after a first step."""
        with Alive() as alive:
            self.run(trained)
        return alive.peak

    def seconds(self, trained: set[int]) -> float:
        begin = time.perf_counter()
        self.run(trained)
        if self.views[0].is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - begin


@dataclass
class Case:
    """A row of the table: a step, and the Learners that it trains."""

    name: str
    step: Step
    trained: set[int]
    peak: int = 0
    all: int = 0
    seconds: list[float] = field(default_factory=list)


def cases(model: str, options: argparse.Namespace, device: torch.device) -> list[Case]:
    found = []
    for name, overrides in SCOPES.items():
        if name.startswith("expansion") and model.startswith("vit"):  # tokens know none
            continue
        step = Step(model, overrides, options.batch, options.size, device)
        every = set(range(len(step.learners)))
        found.append(Case(name, step, every))
        if name == "simultaneous":
            found += [Case(f"sequential, block {k + 1}", step, {k}) for k in every]
    return found


def measure(model: str, options: argparse.Namespace, device: torch.device) -> list[dict]:
    found = cases(model, options, device)
    for case in found:
        case.peak = case.step.bytes_saved(case.trained)  # and what a first step alone does is done
        case.all = case.peak if device.type == "cuda" else case.step.bytes_in_all(case.trained)
    for _ in range(options.repeats):
        for case in found:
            case.seconds.append(case.step.seconds(case.trained))
    peaks = {case.name: case.peak for case in found}
    parts = [peak for name, peak in peaks.items() if name.startswith("sequential")]
    if device.type == "cpu":
        assert peaks["simultaneous"] <= 1.02 * max(parts), "more than the largest block"
    whole, rows = found[0], []
    for case in found:
        each = case.all / options.batch
        room = options.memory * 2**30 - case.step.bytes_of_state
        row = {
            "model": model,
            "scope": case.name,
            "MiB an image": round(case.peak / options.batch / 2**20, 1),
            "of end to end": f"{case.peak / whole.peak:.3f}",
            "all": round(case.all / options.batch / 2**20, 1),
            "all of end to end": f"{case.all / whole.all:.3f}",
            "largest batch": max(0, int(room / each)),
        }
        if options.repeats:
            speeds = [a / b for a, b in zip(whole.seconds, case.seconds, strict=True)]
            low, middle, high = np.quantile(speeds, [0.25, 0.5, 0.75])
            row["images/s"] = round(options.batch / statistics.median(case.seconds), 1)
            row["speed"] = f"{middle:.2f} ({low:.2f} to {high:.2f})"
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=5, help="rounds of timed steps; 0: memory alone")
    parser.add_argument("--memory", type=float, default=16, help="GiB that a step may take")
    parser.add_argument("--json", help="write the rows there")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = [row for model in options.models for row in measure(model, options, device)]
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"Two views of {options.batch} images of {options.size} px on {where}\n\n{markdown(rows)}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump({**vars(options), "device": where, "torch": torch.__version__, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
