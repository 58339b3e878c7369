"""Long-tailed data: SimCLR on balanced and on long-tailed data of one size, and self-damaging variants.

`twinblock reproduce longtail [seeds=3] [data=cifar100 data.root=DIR]`. On the embedded data every arm sees the same
images, for 1 000 steps (BYOL: the 1 500 of its recipe); each seed has its own split. On CIFAR-10 and CIFAR-100 the
arms are the published ones, reduced on a CPU.
"""

from collections.abc import Mapping

from twinblock.core.pictures import optional_picture
from twinblock.evaluation.evaluate import evaluate, group_rows
from twinblock.evaluation.exemplars import exemplars
from twinblock.evaluation.groups import classes_of, figure
from twinblock.runs.run import Run
from twinblock.studies.study import NARROW, Arm, Options, carry_out, folder, publish, reduced

SEEDED = ("data.longtail.split={seed}", "data.longtail.seed={seed}")
TAIL = "data.longtail={imbalance: 100}"
DIGITS = (
    Arm("SimCLR, balanced", "sdclr_demo", (*SEEDED, "target.kind=shared", "data.longtail.kind=balanced")),
    Arm("SimCLR", "sdclr_demo", (*SEEDED, "target.kind=shared")),
    Arm("SDCLR", "sdclr_demo", SEEDED),
    Arm("BYOL", "byol_demo", (TAIL, *SEEDED)),
    Arm("SDCLR x BYOL", "byol_demo", (TAIL, *SEEDED, "target={kind: pruned, ratio: 0.9}")),
    Arm("SimCLR, blockwise", "sdclr_demo", (*SEEDED, "target.kind=shared", "scope.kind=blockwise")),
    Arm("SDCLR x blockwise", "sdclr_demo", (*SEEDED, "scope.kind=blockwise")),
)
# on a CPU, as the other studies have it, in batches of a quarter of the published size
SMALL = (*NARROW, "encoder.stem=cifar_stride2", "data.batch=128", "train.length=60epochs")
OVERLAID = ("SimCLR", "SDCLR")
COLUMNS = ("all", "many", "medium", "few", "std", "few-shot all", "exemplars AUROC", "loss AUROC", "neighbours AUROC")
SHOTS = {"cifar100": (100, 50)}  # as its published numbers have them: Zhou et al. 2022, BCL, split 1
PUBLISHED = {
    "published all, 100-shot, 50-shot": {"SimCLR": "50.7, 46.3, 42.4", "SDCLR": "55.0, 49.7, 45.6"},
}


def reproduce(options: Options) -> None:
    """Carry out the arms, and write table.md, rows.json and classes.png."""
    source, arms = options.source, _arms(options)
    rows = carry_out(arms, measure, options)
    title = (
        "Linear probe, mean class accuracy in % (groups: thirds), few-shot probe, and how well pruning finds the tail"
    )
    columns, beside = COLUMNS, {}
    if source in SHOTS:
        shots = (f"{n}-shot all" for n in SHOTS[source])
        columns, beside = (*COLUMNS[:5], *shots, *COLUMNS[6:], *PUBLISHED), PUBLISHED
    publish(title, rows, options.out, columns, beside)
    methods = {}
    for name in OVERLAID:
        runs = [Run(folder(name, seed, options)) for seed in range(options.seeds)]
        methods[name] = [classes_of(run) for run in runs if run.evaluation]  # an arm that failed has none
    if all(methods.values()):
        with optional_picture(options.out / "classes.png"):
            (options.out / "classes.png").write_bytes(figure(methods, "linear probe, all seeds"))


def measure(run: Run) -> Mapping[str, float]:
    """Accuracies by evaluator and group, and how well the rank of exemplars finds the tail."""
    evaluate(run, quiet=True, baselines=False, shots=SHOTS.get(run.config.data.source, ()))
    measures = {
        f"{row['evaluator']} {group}".removeprefix("linear "): row[group]
        for row in group_rows(run)
        if row["groups"] == "thirds"
        for group in ("all", "many", "medium", "few", "std")
    }
    for row in exemplars(run):  # a balanced set has no tail to find
        name = "exemplars" if row["score"] == "moved" else row["score"]
        measures |= {f"{name} AUROC": row["AUROC"], f"{name} lift": row["lift"]}
    return measures


def _arms(options: Options) -> tuple[Arm, ...]:
    source = options.source
    if source not in ("cifar10", "cifar100"):
        return DIGITS
    recipe, base = f"sdclr_{source}_lt", (*SEEDED, *(SMALL if reduced(options, "60 epochs") else ()))
    simclr = (*base, "target.kind=shared", "projector.dims=[512,128]")
    return (
        Arm("SimCLR, balanced", recipe, (*simclr, "data.longtail.kind=balanced")),
        Arm("SimCLR", recipe, simclr),
        Arm("SDCLR", recipe, base),
    )
