"""Every method at equal time, end to end and block by block: kNN on held-out images.

    python benchmarks/methods.py data=cifar10 data.root=DIR [--seconds 60] [--seeds 1] [--out runs/methods]

A ResNet-10 of width 16, for MAE a ViT of width 64, on one core for each run. First each arm's step is timed, one arm
after the other, and its length becomes what fits into `--seconds`; `lengths.json` keeps that, so that the run can be
stopped and goes on. Each arm is trained with the learning rate of its recipe and with four times as much, since recipes
are for long runs; the table shows both. Of these the first seed decides which one the other seeds take: its own number
is the better of two.
Fields as `data=cifar10` are for all arms. `--length 10epochs` is the length of all in place of what fits; `--only`
names arms, or parts of their names: `--only "dino, end to end, rate x 4" swav`.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning_fabric import Fabric

from twinblock.assembly.resolve import resolve
from twinblock.config.recipes import compose
from twinblock.data.training import chosen, training
from twinblock.runs.run import Run
from twinblock.studies.study import Arm, Options, Row, carry_out, publish
from twinblock.training.loader import Loader
from twinblock.training.step import TrainStep

METHODS = (
    *("simclr", "dcl", "nnclr", "moco_v2", "moco_v3", "byol", "simsiam", "dino", "swav", "barlow_twins", "vicreg"),
    *("pcl", "mae", "sup_con", "supervised"),
)
SMALL = ("encoder.kind=resnet10", "encoder.width=16", "encoder.stem=cifar_stride2", "data.size=32", "data.batch=128")
HEADS = {  # of the width that the others have, in proportion to the encoder
    "byol": ("projector.dims=[256,64]", "predictor.dims=[256,64]"),
    "moco_v3": ("projector.dims=[256,64]", "predictor.dims=[256,64]"),
    "nnclr": ("projector.dims=[256,256,64]", "predictor.dims=[256,64]"),
    "simsiam": ("projector.dims=[256,256,256]", "predictor.dims=[64,256]"),
    "barlow_twins": ("projector.dims=[256,256,256]",),
    "vicreg": ("projector.dims=[256,256,256]",),
    "dino": ("projector.dims=[256,256,64]", "projector.prototypes=512"),
    "supervised": (),
    "mae": (),
}
VIT = ("encoder.kind=test_vit", "encoder.patch=4", "data.size=32", "data.batch=128")  # 64 wide, six layers
VIT = (*VIT, "learner.decoder_width=64", "learner.decoder_heads=4")
HEAD = ("projector.dims=[256,64]",)
SHORT = {
    "moco_v2": ("objective.queue=2048",),
    "nnclr": ("objective.queue=2048",),
    "swav": ("objective.prototypes=256",),
    "pcl": ("objective.queue=2048", "objective.clusters=[50,100]", "objective.warmup=20%"),
}
SCOPES = {"end to end": (), "blockwise": ("scope.kind=blockwise", "scope.pool=l2", "scope.grid=2")}
COMMON = ("optim.warmup=10%", "train.checkpoint_every=100%", "train.precision=fp32")
RATES = 1, 4
TIMED = 12  # steps, of which the first third is not counted


def arms() -> list[Arm]:
    found = []
    for method in METHODS:
        vit = method == "mae"
        small = VIT if vit else SMALL
        for scope, fields in SCOPES.items():
            if vit and scope == "blockwise":
                fields = ("scope.kind=blockwise",)
            for rate in RATES:
                lr = f"optim.lr={rate * compose(method).optim.lr:g}"
                how = (*small, *HEADS.get(method, HEAD), *SHORT.get(method, ()), *COMMON, *fields, lr)
                found.append(Arm(f"{method}, {scope}, rate x {rate}", method, how))
    return found


def step_time(recipe: str, overrides: Sequence[str], steps: int = TIMED) -> float:
    """Median seconds of one core for a step, in this process, on one thread; other work does not count."""
    config = compose(recipe, overrides=overrides)
    images = training(*chosen(config.data))
    config = resolve(config, images, torch.device("cpu"))
    fabric = Fabric(accelerator="cpu", devices=1)
    with TemporaryDirectory() as folder:
        run = Run(Path(folder) / "run")
        loader = Loader(images, 0, config.data.batch, config.data.batch, 0, fabric.device)
        classes = None if images.labels is None else int(images.labels.max()) + 1
        step = TrainStep(config, fabric, classes, loader.epoch_steps, steps, run.objects)
        times = []
        for k, samples in enumerate(loader.batches(0, steps)):
            began = time.process_time()
            step(k, samples)
            times.append(time.process_time() - began)
    return statistics.median(times[steps // 3 :])


def lengths(found: Sequence[Arm], options: Options, seconds: float) -> dict[str, int]:
    """Steps of each method and scope that take so many seconds, measured once."""
    file = options.out / "lengths.json"
    known: dict[str, int] = json.loads(file.read_text()) if file.exists() else {}
    for arm in found:
        name = arm.name.rpartition(", ")[0]
        if name not in known:
            known[name] = max(
                10, 10 * round(seconds / step_time(arm.recipe, (*arm.overrides, *options.overrides)) / 10)
            )
            file.write_text(json.dumps(known, indent=1))
            print(f"{name}: {known[name]} steps in {seconds:g} s", flush=True)
    return known


def measure(run: Run) -> Mapping[str, Any]:
    assert run.result is not None
    knn = run.result["knn"]
    return {
        "kNN": knn["encoder"],
        "untrained": knn["untrained encoder"],
        "learned": run.result["headline"] == "learned",
    }


def better(rows: Sequence[Row]) -> set[str]:
    """Of each method and scope the arm with the higher kNN."""
    best: dict[str, Row] = {}
    for row in rows:
        name = row["arm"].rpartition(", ")[0]
        if "failed" not in row and (name not in best or row["kNN"] > best[name]["kNN"]):
            best[name] = row
    return {row["arm"] for row in best.values()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Every method at equal time, end to end and block by block.")
    parser.add_argument("fields", nargs="*", help="of all arms, as data=cifar10")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--only", nargs="+", default=[""], help="take the arms whose name holds one of these texts")
    parser.add_argument("--length", help="of each run, as 10epochs, in place of what fits")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    options = Options(arguments.out, arguments.seeds, tuple(arguments.fields))
    found = [arm for arm in arms() if any(text in arm.name for text in arguments.only)]
    if arguments.length is None:
        steps = lengths(found, options, arguments.seconds)
        length = {arm.name: f"{steps[arm.name.rpartition(', ')[0]]}steps" for arm in found}
    else:
        length = dict.fromkeys((arm.name for arm in found), arguments.length)
    timed = [Arm(a.name, a.recipe, (*a.overrides, f"train.length={length[a.name]}")) for a in found]
    rows = carry_out(timed, measure, replace(options, seeds=1))
    if options.seeds > 1:
        chosen_arms = better(rows)
        others = carry_out([arm for arm in timed if arm.name in chosen_arms], measure, options)
        rows = [row for row in rows if row["arm"] not in chosen_arms] + others
    places = {arm.name: i for i, arm in enumerate(timed)}
    rows.sort(key=lambda row: places[row["arm"]])
    for row in rows:
        row.pop("length", None)
    title = f"methods, {arguments.length or f'{arguments.seconds:g} s'} a run"
    publish(title, rows, arguments.out, ("kNN", "untrained", "learned"))


if __name__ == "__main__":
    main()
