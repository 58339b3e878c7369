"""Which small changes of the recipe `fast` learn more in the same time: a linear probe on held-out training images.

    python benchmarks/fast.py data=FOLDER [--seconds 100] [--seeds 1] [--only TEXT] [--out runs/fast]

FOLDER: labelled images in `train` and `test`, of which `test` was taken from the training images: what is chosen here
must not have seen the real test images. Each arm changes the recipe in one place and is trained for so many seconds of
one core, by a step timed before (as in benchmarks/methods.py), so that runs may go side by side.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from methods import lengths

from twinblock import evaluate
from twinblock.runs.run import Run
from twinblock.studies.study import Arm, Options, carry_out, publish

CHANGES: dict[str, tuple[str, ...]] = {
    "as it is": (),
    "width 32": ("encoder.width=32",),
    "resnet18": ("encoder.kind=resnet18",),
    "resnet18, width 32": ("encoder.kind=resnet18", "encoder.width=32"),
    "batch 64": ("data.batch=64",),
    "batch 256": ("data.batch=256",),
    "temperature 0.1": ("objective.temperature=0.1",),
    "temperature 0.5": ("objective.temperature=0.5",),
    "rate / 2": ("optim.lr=0.6",),
    "rate x 2": ("optim.lr=2.4",),
    "weight decay 1e-4": ("optim.weight_decay=1e-4",),
    "24 px": ("data.size=24",),
    "crops from 8 %": ("views.0.crop=[0.08,1]", "views.1.crop=[0.08,1]"),
    "four views": ("views.0.count=2", "views.1.count=2"),
    "two small views": ("views.0.count=2", "views.1.count=2", "views.1.size=16", "views.1.crop=[0.08,0.4]"),
    "decoupled": ("objective.kind=dcl", "objective.temperature=0.1"),
    "fp32": ("train.precision=fp32",),
    "cifar stem": ("encoder.stem=cifar",),
    "standard stem": ("encoder.stem=standard",),
}
COMMON = ("train.checkpoint_every=100%",)


def measure(run: Run) -> Mapping[str, Any]:
    rows = evaluate(run, baselines=False, quiet=True)
    return {"linear": rows[0]["linear %"], "kNN": rows[0]["kNN %"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("fields", nargs="*", help="of all arms, as data=FOLDER")
    parser.add_argument("--seconds", type=float, default=100)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[], help="take the arms of these names")
    parser.add_argument("--out", type=Path, default=Path("runs/fast"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    options = Options(arguments.out, arguments.seeds, tuple(arguments.fields))
    arms = [
        Arm(f"{name}, ", "fast", (*COMMON, *fields))
        for name, fields in CHANGES.items()
        if not arguments.only or name in arguments.only
    ]
    steps = lengths(arms, options, arguments.seconds)
    timed = [
        Arm(arm.name.rpartition(", ")[0], arm.recipe, (*arm.overrides, f"train.length={steps[arm.name[:-2]]}steps"))
        for arm in arms
    ]
    rows = carry_out(timed, measure, options)
    publish(f"{arguments.seconds:g} seconds of a core", rows, arguments.out, ("linear", "kNN"))


if __name__ == "__main__":
    main()
