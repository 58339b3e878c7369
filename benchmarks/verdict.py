"""How often the verdict is wrong: small runs that learn, that collapse, and that cannot have learned.

    python benchmarks/verdict.py [--seeds 4] [--out runs/verdict] [--only NAME]

Healthy: every method with its recipe's learning rate and half of it. Collapsed: ten ways to take from a method what
keeps it from collapsing, in longer runs that stop when a collapse is called; a call after 5 % of the run or after 200
steps is late. Every verdict that a run gave while it went counts, not only the last. A run that was meant to collapse,
was not called and ended with its images apart is listed as such and not counted. Nothing to learn: a learning rate of
next to nothing or 1,600 times too high, one step, views paired with those of other images, images that are noise or
differ in nothing else, labels dealt at random. "Learned" is false there, be it said with the labels or without them.
Runs that are done are not done again.
"""

import argparse
import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

import twinblock
from twinblock.config.recipes import compose
from twinblock.core.console import print_table
from twinblock.data import load
from twinblock.diagnosis import judge, verdict, worst
from twinblock.runs.run import Run
from twinblock.studies.study import Arm, Options, Row, carry_out, folder
from twinblock.views import Views

STEPS = 150
LONG = 2000  # of runs that are stopped
IN_TIME = min(LONG // 20, 200)
SHORT = ("data.batch=64", f"train.length={STEPS}steps", "train.checkpoint_every=100%")
SMALL = (*SHORT, "encoder.width=8")
QUICK = ("encoder.kind=resnet10", "encoder.stem=cifar_stride2", "data.size=16")
STOPPED = (f"train.length={LONG}steps", "train.on_collapse=stop")
HEADS = {
    "simclr": ("projector.dims=[64,32]",),
    "moco_v2": ("projector.dims=[64,32]", "objective.queue=1024"),
    "byol": ("projector.dims=[128,32]", "predictor.dims=[128,32]"),
    "simsiam": ("projector.dims=[128,128]", "predictor.dims=[32,128]"),
    "barlow_twins": ("projector.dims=[128,128]",),
    "vicreg": ("projector.dims=[128,128]",),
    "moco_v3": ("projector.dims=[64,32]", "predictor.dims=[64,32]"),
    "nnclr": ("projector.dims=[64,32]", "predictor.dims=[64,32]", "objective.queue=1024"),
    "dcl": ("projector.dims=[64,32]",),
    "dino": ("projector.dims=[128,32]", "projector.prototypes=128"),
    "swav": ("projector.dims=[64,32]", "objective.prototypes=64"),
    "pcl": ("projector.dims=[64,32]", "objective.queue=1024", "objective.clusters=[20,40]", "objective.warmup=20%"),
    "supervised": (),
}
VIT = ("data.size=16", "encoder.patch=4", "learner.decoder_width=48", "learner.decoder_depth=1")  # of MAE
SGD = ("optim.kind=sgd", "optim.lr=0.8", "optim.weight_decay=1.0e-4")
BARE = ("projector.norm=none", "projector.last_norm=none")
NO_NORM = (*BARE, "predictor.norm=none")
COLLAPSING = {
    "byol: no norm in the heads, SGD": ("byol", (*NO_NORM, *SGD)),
    "byol: layer norm in the heads, SGD": ("byol", ("projector.norm=layer", "predictor.norm=layer", *SGD)),
    "byol: no norm anywhere but GN in the encoder": ("byol", (*NO_NORM, *SGD, "encoder.norm=group8")),
    "byol: no norm, target of the step before": ("byol", (*NO_NORM, *SGD, "target.momentum=0")),
    "byol: no norm, weight decay 0.01": ("byol", (*NO_NORM, *SGD, "optim.weight_decay=0.01")),
    "byol: no predictor": ("byol", (*BARE, *SGD, "predictor=null")),
    "simsiam: no norm in the heads": ("simsiam", (*NO_NORM, *SGD)),
    "simsiam: no predictor": ("simsiam", (*BARE, *SGD, "predictor=null")),
    "vicreg: invariance alone": ("vicreg", (*BARE, *SGD, "objective.variance=0", "objective.covariance=0")),
    "dino: the centre never moves": ("dino", ("objective.momentum=1",)),
    "dino: targets are not sharpened": ("dino", ("objective.target_temperature=1",)),
    "swav: codes are not sharpened": ("swav", ("objective.epsilon=10",)),
    "blockwise, no predictor": ("simsiam", (*BARE, *SGD, "predictor=null", "scope.kind=blockwise")),
}
BAD = ("complete collapse", "dimensional collapse", "diverging")
APART = 0.99  # final cosine between images below which a run has not collapsed, whatever it was meant to do


def arms() -> tuple[list[Arm], list[Arm]]:
    healthy = []
    for method, heads in HEADS.items():
        lr = compose(method).optim.lr
        healthy += [Arm(f"{method}, lr {f * lr:g}", method, (*SMALL, *heads, f"optim.lr={f * lr}")) for f in (1, 0.5)]
    lr = compose("mae").optim.lr
    healthy += [Arm(f"mae, lr {f * lr:g}", "mae", (*SHORT, *VIT, f"optim.lr={f * lr}")) for f in (1, 0.5)]
    return healthy, [
        Arm(name, method, (*SMALL, *HEADS[method], *changes, *STOPPED))
        for name, (method, changes) in COLLAPSING.items()
    ]


def nothing_to_learn(data: Path) -> tuple[list[Arm], list[Arm]]:
    """Runs that cannot have learned: as they are, and those whose pairs of views are to be shuffled."""

    def of(method: str, name: str, *changes: str) -> Arm:
        return Arm(f"{name}: {method}", method, (*SMALL, *QUICK, *HEADS[method], *changes))

    contrasted = [method for method in HEADS if method != "supervised"]
    folders = {name: f"data={make(data)}" for name, make in (("frames", frames), ("noise", noise), ("dealt", dealt))}
    of_mae = {"rate 1e-9": "optim.lr=1e-9", "frames": folders["frames"], "noise": folders["noise"]}
    return [
        *(of(method, "rate 1e-9", "optim.lr=1e-9") for method in HEADS),
        *(of(m, "rate 1,600 x", f"optim.lr={1600 * compose(m).optim.lr}") for m in ("simclr", "byol", "moco_v2")),
        *(of(method, "one step", "train.length=1steps") for method in ("simclr", "byol", "vicreg")),
        *(of(method, "frames", folders["frames"]) for method in contrasted),
        of("simclr", "noise", folders["noise"]),
        *(Arm(f"{name}: mae", "mae", (*SHORT, *VIT, change)) for name, change in of_mae.items()),
        of("supervised", "labels dealt", folders["dealt"]),
    ], [of(method, "pairs shuffled") for method in ("simclr", "byol", "vicreg")]


def frames(data: Path) -> Path:
    """A resting camera: 512 images of one scene, and noise."""
    y, x = np.mgrid[0:32, 0:32]
    scene = np.stack([np.sin(x / 5 + k) * np.cos(y / (4 + k)) for k in range(3)], -1) * 90 + 128
    rng = np.random.Generator(np.random.PCG64(1))
    return _written(data / "frames", (scene + rng.normal(0, 3, scene.shape) for _ in range(512)))


def noise(data: Path) -> Path:
    """512 images of nothing but noise."""
    rng = np.random.Generator(np.random.PCG64(2))
    return _written(data / "noise", (rng.integers(0, 255, (32, 32, 3)) for _ in range(512)))


def dealt(data: Path) -> Path:
    """The embedded data, each image in one of ten folders whatever it shows."""
    where = np.random.Generator(np.random.PCG64(3))
    images = load("photodigits", split="train")
    assert images is not None
    for i, pixels in enumerate(images.batch(range(1500))):
        _written(data / "dealt" / str(where.integers(10)), [pixels.numpy()], first=i)
    return data / "dealt"


def _written(folder: Path, images, first: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, pixels in enumerate(images, start=first):
        if not (file := folder / f"{i:05}.png").exists():
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file)
    return folder


@contextmanager
def shuffled() -> Iterator[None]:
    """Every second view is of another image of the batch; the monitor looks at one view at a time."""
    call = Views.__call__

    def shifted(self, *args, **kwargs):
        views = call(self, *args, **kwargs)
        return [views[0], *(view.roll(1 + kwargs["step"] % 7, 0) for view in views[1:])]

    Views.__call__ = shifted
    try:
        yield
    finally:
        Views.__call__ = call


def said(run: Run) -> Mapping[str, float]:
    """Whether it says to have learned, with its labels and without."""
    rows = run.metrics()
    count = len(next(row for row in rows if "diagnosis" in row)["diagnosis"])
    unlabelled = worst(judge(rows, [0] * count, run.config))
    assert run.result is not None
    return {
        "labelled": float(run.result["headline"] == "learned"),
        "unlabelled": float(unlabelled.headline == "learned"),
    }


def carry_out_shuffled(arms: list[Arm], options: Options) -> list[Row]:
    rows: list[Row] = []
    with shuffled():
        for arm in arms:
            for seed in range(options.seeds):
                overrides = (*arm.overrides, f"train.seed={seed}")
                out = folder(arm.name, seed, options)
                run = twinblock.pretrain(arm.recipe, out=out, overrides=overrides, quiet=True)
                rows.append({"arm": arm.name, "seed": seed, **said(run)})
    return rows


def measure(run: Run) -> Mapping[str, float]:
    """The step of the first bad verdict, and of the first call of a collapse (-1: none), by the worst Learner."""
    rows = [row for row in run.metrics() if "diagnosis" in row]
    config = run.config
    ended = rows[-1]["step"] == config.train.length.steps(1)
    alarm = call = -1
    for count in range(1, len(rows) + 1):
        states = []
        for learner in range(len(rows[0]["diagnosis"])):
            history = [{"step": row["step"], **row["diagnosis"][learner]} for row in rows[:count]]
            states.append(verdict(history, finished=ended and count == len(rows), config=config).state)
        if alarm < 0 and any(state in BAD for state in states):
            alarm = rows[count - 1]["step"]
        if call < 0 and "complete collapse" in states:
            call = rows[count - 1]["step"]
    last = [found["projector"]["negative_cosine"] for found in rows[-1]["diagnosis"]]
    knn = (run.result or {}).get("knn") or {"encoder": 0.0, "untrained encoder": 0.0}
    gain = knn["encoder"] - knn["untrained encoder"]
    return {"alarm": alarm, "call": call, "between": max(last), "kNN over untrained": gain}


def table(rows: list[Row], healthy: set[str]) -> list[dict[str, str]]:
    lines = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == arm and "failed" not in row]
        meant = [row for row in mine if arm in healthy or row["call"] >= 0 or row["between"] > APART]
        wrong = [row for row in meant if (row["alarm"] >= 0 if arm in healthy else row["call"] < 0)]
        calls = [row["call"] for row in meant if row["call"] >= 0 and arm not in healthy]
        lines.append(
            {
                "run": arm,
                "runs": str(sum(row["arm"] == arm for row in rows)),
                "counted": str(len(meant)),
                "wrong": str(len(wrong)),
                "late": str(sum(step > IN_TIME for step in calls)),
                "called at step": f"{statistics.median(calls):.0f}, at most {max(calls)}" if calls else "-",
                "between": f"{max(row['between'] for row in mine):.4f}" if mine else "-",
                "kNN gained": f"{statistics.fmean(row['kNN over untrained'] for row in mine):.1f}" if mine else "-",
            }
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="False alarms and misses of the verdict over small runs.")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("runs/verdict"))
    parser.add_argument("--only", help="take the arms whose name holds this text")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    only = arguments.only or ""
    healthy, collapsing = ([arm for arm in side if only in arm.name] for side in arms())
    vain, mixed = ([arm for arm in side if only in arm.name] for side in nothing_to_learn(arguments.out / "data"))
    options = Options(arguments.out, arguments.seeds)
    rows = [*carry_out(vain, said, options), *carry_out_shuffled(mixed, options)]
    wrong = [f"{row['arm']} {row['seed']}" for row in rows if row.get("labelled") or row.get("unlabelled")]
    failed = sum("failed" in row for row in rows)
    print(f"false learned: {len(wrong)} of {len(rows)} runs ({failed} diverged) {wrong}", flush=True)
    if not healthy and not collapsing:  # with `--only`
        return
    rows = carry_out([*healthy, *collapsing], measure, options)
    for row in rows:
        run = Run(folder(row["arm"], row["seed"], options))
        if "stopped" in row.get("failed", "") and run.metrics():
            row |= measure(run)
            del row["failed"]
    lines = table(rows, {arm.name for arm in healthy})
    print_table(f"verdicts of runs of {STEPS} steps, and of {LONG} that a collapse stops", lines)
    for title, side in (("false alarms", healthy), ("misses", collapsing)):
        mine = [line for line in lines if line["run"] in {arm.name for arm in side}]
        wrong, counted = (sum(int(line[key]) for line in mine) for key in ("wrong", "counted"))
        late = sum(int(line["late"]) for line in mine)
        print(f"{title}: {wrong} of {counted} runs" + (f"; {late} calls after step {IN_TIME}" if late else ""))


if __name__ == "__main__":
    main()
