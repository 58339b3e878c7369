"""Why BYOL does not collapse: norms in its heads and its encoder, the optimizer, weight decay, and other objectives.

After Fetterman and Albrecht 2020, Understanding self-supervised contrastive learning with BYOL (code:
untitled-ai/self_supervised), with arms of which nobody has published one table. `twinblock reproduce byol-norms
[seeds=3] [data=stl10 data.root=DIR]`: on STL-10 the published setting of 10 epochs, on other data one of its kind,
reduced on a CPU.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from twinblock.core.pictures import optional_picture
from twinblock.evaluation.evaluate import evaluate
from twinblock.runs.curves import draw
from twinblock.runs.run import Run
from twinblock.studies.study import NARROW, Arm, Options, Row, carry_out, folder, publish, reduced

# SGD, a target that moves slowly, two layers in each head; what differs from it is the arm
BASE = (
    "views.0.solarize=0",  # view 1 is like view 0
    "objective.kind=regression",
    "optim.kind=sgd",
    "optim.lr=0.8",
    "optim.weight_decay=1.0e-4",
    "optim.warmup=0epochs",
)
# of the recipe byol_demo. Without the long warm-up batch norm in one head alone loses all directions at once, and 700
# steps are too few to come back.
DIGITS = ("projector.last_norm=none", "train.length=700steps", "optim.warmup=25%")
PHOTOS = (*BASE, "data.batch=256", "train.length=10epochs", "projector.dims=[512,128]")
# on a CPU: the published number of steps in small batches, and a network that takes 0.1 s for each
SMALL = (*PHOTOS, *NARROW, "encoder.stem=cifar_stride2", "data.batch=64", "train.length=5epochs")
# the first 10 of 320 epochs of both schedules; weight decay on all weights; 1 - cos, where ours is 2 - 2 cos
STL10 = (*PHOTOS, "views.0.blur=0.5", "optim.end=1", "optim.exclude_bias_and_norm=false", "objective.scale=0.5")
EMA = ("target.kind=ema", "target.momentum=0.99")
EMA_DIGITS = ("target.momentum=0.99",)  # slower than the recipe's, as published
EMA_STL10 = ("target.kind=ema", "target.momentum=0.996", "target.schedule=constant")
SHARED = ("target.kind=shared",)

XENT = "objective={{kind: info_nce, temperature: 0.2, queue: {queue}, scale: {scale}}}"
BARLOW = (*SHARED, "objective={kind: barlow_twins, lambd: 0.005, scale: 0.1}", "optim.lr=0.1")
VICREG = (*SHARED, "objective={kind: vicreg, invariance: 25, variance: 25, covariance: 1}", "optim.lr=0.02")
LARS = ("optim.kind=lars", "optim.lr=2.0", "optim.weight_decay=1.0e-6", "optim.exclude_bias_and_norm=true")
RANDOM = ("train.length=1steps", "optim.lr=1.0e-9")


@dataclass(frozen=True)
class Setting:
    """What the arms have in common on one kind of data."""

    recipe: str = "demo"
    base: tuple[str, ...] = PHOTOS
    ema: tuple[str, ...] = EMA
    width: str = "[512,128]"
    groups: str = "group"
    queue: int = 4096
    lr: float = 0.06  # of cross entropy, and its scale
    scale: float = 1.0


SETTINGS = {
    "photodigits": Setting("byol_demo", DIGITS, EMA_DIGITS, "[256,64]", "group8", lr=0.8),
    # published: both views are queries, and their losses added; here one is
    "stl10": Setting(base=STL10, ema=EMA_STL10, queue=65536, lr=0.02, scale=2.0),
}
REDUCED = Setting(base=SMALL, groups="group8")

# accuracy in %, cosine within and between images: STL-10, ResNet-18, 10 epochs, 3 seeds
PUBLISHED = {
    "cross entropy, no norm": ("44.1", ".89", ".53"),
    "BN in both heads": ("57.7", ".88", ".27"),
    "BN in the projector": ("55.3", ".87", ".26"),
    "BN in the predictor": ("48.0", ".95", ".73"),
    "no norm in the heads": ("28.3", "1.0", "1.0"),
    "layer norm in the heads": ("29.4", "1.0", "1.0"),
    "random weights": ("28.8", "-", "-"),
}
COLUMNS = "linear %", "kNN %", "within", "between", "rank", "collapsed %", "published"
OVERLAID = (
    "BN in both heads",
    "BN in the predictor",
    "no norm in the heads",
    "layer norm in the heads",
    "no norm, LARS",
    "cross entropy, no norm",
)


def reproduce(options: Options) -> None:
    """Carry out the arms, and write table.md, rows.json, cosines.png and curves.png."""
    every = arms(options)
    rows = carry_out(every, measure, options)
    beside = {"published": {arm: " · ".join(values) for arm, values in PUBLISHED.items()}}
    title = (
        "BYOL and others with and without norms: linear probe and kNN in %, cosine of embeddings within and between "
        "images, effective rank of the features, runs called collapsed. Published, on STL-10: linear · within · between"
    )
    publish(title, rows, options.out, COLUMNS, beside)
    draw_cosines(rows, options.out / "cosines.png")
    runs = {name: Run(folder(name, 0, options)) for name in OVERLAID}
    with optional_picture(options.out / "curves.png"):
        draw({name: run for name, run in runs.items() if run.metrics()}, options.out / "curves.png")


def arms(options: Options) -> tuple[Arm, ...]:
    """The published arms, then ours."""
    on = SETTINGS.get(options.source) or (REDUCED if reduced(options, "five epochs") else Setting())

    def byol(name: str, projector: str, predictor: str, *more: str, target: tuple[str, ...] = on.ema) -> Arm:
        heads = (f"projector.norm={projector}", f"predictor={{dims: {on.width}, norm: {predictor}}}")
        return Arm(name, on.recipe, (*on.base, *heads, *target, *more))

    def alone(name: str, norm: str, *more: str) -> Arm:
        return Arm(name, on.recipe, (*on.base, f"projector.norm={norm}", "predictor=null", *more))

    xent = (*on.ema, XENT.format(queue=on.queue, scale=on.scale), f"optim.lr={on.lr}")
    return (
        alone("cross entropy, no norm", "none", *xent),
        byol("BN in both heads", "batch", "batch"),
        byol("BN in the projector", "batch", "none"),
        byol("BN in the predictor", "none", "batch"),
        byol("no norm in the heads", "none", "none"),
        byol("layer norm in the heads", "layer", "layer"),
        byol("random weights", "batch", "batch", *RANDOM),
        byol("group norm in the heads", "group", "group"),
        byol("GN and WS everywhere, LARS", "group+ws", "group+ws", f"encoder.norm={on.groups}+ws", *LARS),
        byol("no norm, LARS", "none", "none", *LARS),
        byol("no norm, LARS on all weights", "none", "none", *LARS, "optim.exclude_bias_and_norm=false"),
        byol("no norm, less weight decay", "none", "none", "optim.lr=0.2", "optim.weight_decay=1.0e-5"),
        byol("GN encoder, BN in both heads", "batch", "batch", f"encoder.norm={on.groups}"),
        byol("GN encoder, no norm in the heads", "none", "none", f"encoder.norm={on.groups}"),
        byol("SimSiam, BN in both heads", "batch", "batch", target=SHARED),
        byol("SimSiam, no norm in the heads", "none", "none", target=SHARED),
        alone("Barlow Twins, BN", "batch", *BARLOW),
        alone("Barlow Twins, no norm", "none", *BARLOW),
        alone("VICReg, BN", "batch", *VICREG),
        alone("VICReg, no norm", "none", *VICREG),
    )


def measure(run: Run) -> Mapping[str, float]:
    """Accuracies of the encoder, and what the monitor saw at the end."""
    (row,) = evaluate(run, quiet=True, baselines=False)
    last, result = run.history()[-1], run.result or {}
    return {
        "linear %": row["linear %"],
        "kNN %": row["kNN %"],
        "within": last["projector"]["positive_cosine"],
        "between": last["projector"]["negative_cosine"],
        "rank": last["encoder"]["centred_rank"],
        "collapsed %": 100.0 * (result.get("state") == "complete collapse"),
    }


def draw_cosines(rows: list[Row], path: Path) -> None:
    """Cosines within and between images for each arm, as in the article, which crosses mark; a dot is a seed."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["arm"] for row in rows))
    figure = Figure(figsize=(8, 0.34 * len(names) + 1.2), layout="constrained")
    axes = figure.subplots()
    for key, color, shift, published in (("within", "#e07b39", -0.15, 1), ("between", "#2a5d9c", 0.15, 2)):
        mine = [row for row in rows if key in row]
        axes.scatter(
            [row[key] for row in mine],
            [names.index(row["arm"]) + shift for row in mine],
            color=color,
            s=18,
            label=f"{key} images",
        )
        values = [(name, PUBLISHED[name][published]) for name in names if name in PUBLISHED]
        values = [(name, float(value)) for name, value in values if value != "-"]
        axes.scatter(
            [value for _, value in values],
            [names.index(name) + shift for name, _ in values],
            color=color,
            marker="x",
            s=30,
            linewidths=1,
            label=f"{key} images, published",
        )
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("mean cosine of the projector's output")
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.4, 1.0))
    figure.savefig(path, dpi=130)
