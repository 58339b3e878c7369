"""Blockwise learning: what each block learns when no gradient comes from above, beside end-to-end training.

`twinblock reproduce blockwise [seeds=3] [data=cifar10 data.root=DIR]`. On the embedded data every arm is the recipe
`demo` (BYOL: `byol_demo`) with what `METHODS` says; on other data the recipe of its own method, reduced on a CPU.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from twinblock.core.pictures import optional_picture
from twinblock.evaluation.depth import BLOCK, figure
from twinblock.evaluation.evaluate import evaluate
from twinblock.runs.run import Run
from twinblock.studies.study import NARROW, Arm, Options, Row, carry_out, publish, reduced

WHOLE, BLOCKWISE = "end to end", ("scope.kind=blockwise",)
SMALL = ("data.size=16", "encoder.stem=cifar", "encoder.width=8")  # of the embedded data, meant for 12 minutes a seed
REDUNDANCY = ("views.0.solarize=0", "optim.lr=0.6", "projector.dims=[256,256]")  # of Barlow Twins and VICReg


@dataclass(frozen=True)
class Method:
    """The recipe of a method; on the embedded data, the recipe that it starts from there, what differs, the length.

    `short`: what a single epoch of photographs needs beside the recipe, as its header has it.
    """

    recipe: str
    digits: str
    overrides: tuple[str, ...]
    epochs: int
    short: tuple[str, ...] = ()


METHODS = {
    "SimCLR": Method("simclr", "demo", (), 14),
    "Barlow Twins": Method(
        "barlow_twins",
        "demo",
        (*REDUNDANCY, "objective={kind: barlow_twins, lambd: 0.005, scale: 0.05}"),
        12,
    ),
    "VICReg": Method(
        "vicreg",
        "demo",
        (*REDUNDANCY, "objective={kind: vicreg, invariance: 25.0, variance: 25.0, covariance: 1.0, scale: 0.05}"),
        12,
        ("optim.lr=1.0",),
    ),
    "BYOL": Method(
        "byol",
        "byol_demo",
        (),
        6,
        ("optim.warmup=25%", "target.momentum=0.95", "projector.last_norm=batch"),
    ),
    "supervised": Method(
        "supervised",
        "demo",
        (
            "objective.kind=supervised",
            "optim.lr=0.3",
            "projector={dims: [classes], norm: none, last_bias: true}",
            "views=[{crop: [0.5, 1.0], jitter: [0.4, 0.4, 0.4, 0.1], gray: 0.0}]",
        ),
        8,
    ),
}
MEASURED = ("linear", "kNN", "rank")  # of every block
LONGER = 2  # times as many for the sequential plan: its steps take half the time, and its phases share them
LOCAL = ("scope.pool=local", "scope.grid=2")
DEEPER = (*LOCAL, "projector={dims: [256, classes], norm: batch, last_bias: true}")  # of a block's classifier
VARIANTS = {
    "SimCLR": {
        "sequential": (*BLOCKWISE, "scope.plan=sequential"),
        "overlapping": ("scope.kind=overlapping",),
        "local pooling": (*BLOCKWISE, *LOCAL),
        "L2 pooling": (*BLOCKWISE, "scope.pool=l2", "scope.grid=2"),
        "expansion": (*BLOCKWISE, "scope.expand={width}"),
        "expansion, noise": (*BLOCKWISE, "scope.expand={width}", "scope.noise=0.25"),
    },
    "supervised": {
        "local pooling, hidden layer": (*BLOCKWISE, *DEEPER),
        "overlapping, local pooling, hidden layer": ("scope.kind=overlapping", *DEEPER),
    },
}
DRAWN = tuple(f"SimCLR, {v}" for v in (WHOLE, "blockwise", "sequential", "overlapping", "L2 pooling", "expansion"))
DRAWN += tuple(f"supervised, {v}" for v in (WHOLE, "blockwise", *VARIANTS["supervised"]))


def reproduce(options: Options) -> None:
    """Carry out the arms, and write table.md, rows.json and depth.png."""
    rows = with_gaps(carry_out(arms(options), measure, options))
    blocks = [key.removeprefix("linear ") for row in rows for key in row if key.startswith("linear ")]
    columns = [f"{what} {k}" for what in ("linear", "kNN") for k in dict.fromkeys(blocks)]
    expanded = [f"expanded {max(blocks, key=int)}"] if blocks else []
    title = (
        "Linear probe and kNN of each block's features, in %; expanded: linear probe of the last block through its "
        "expansion; gap: of the last block's linear probe to the same method trained end to end, in points"
    )
    publish(title, rows, options.out, [*columns, *expanded, "gap"])
    drawn = {name: [_of_blocks(row) for row in rows if row["arm"] == name] for name in DRAWN}
    spread = ", mean and std over seeds" if options.seeds > 1 else ""
    with optional_picture(options.out / "depth.png"):
        (options.out / "depth.png").write_bytes(figure(drawn, f"frozen features of each block{spread}"))


def arms(options: Options) -> list[Arm]:
    """Every method end to end and blockwise, and the variants of SimCLR and of the classifier."""
    digits, small = options.source == "photodigits", reduced(options, "one epoch")
    width = 64 if digits else 128 if small else 512  # that of the last block, as published
    made = []

    def add(name: str, variant: str, overrides: Sequence[str], length: int = 1) -> None:
        method = METHODS[name]
        if digits:
            own = (*SMALL, *method.overrides, f"train.length={method.epochs * length}epochs")
        else:
            own = (*NARROW, *method.short, f"train.length={length}epochs") if small else ()
        made.append(Arm(f"{name}, {variant}", method.digits if digits else method.recipe, (*own, *overrides)))

    for name in METHODS:
        add(name, WHOLE, ())
        add(name, "blockwise", BLOCKWISE)
        for variant, overrides in VARIANTS.get(name, {}).items():
            overrides = [text.replace("{width}", str(width)) for text in overrides]
            add(name, variant, overrides, LONGER if variant == "sequential" else 1)
    return made


def measure(run: Run) -> Mapping[str, float]:
    """Accuracies and effective rank of every block; `expanded`: linear probe of what its expansion gives."""
    scope = run.config.scope
    expanded = {}
    if scope.kind == "blockwise" and scope.expand is not None:
        seen = evaluate(run, quiet=True, baselines=False, pooling=True)
        expanded = {f"expanded {row['features'].removeprefix(BLOCK)}": row["linear %"] for row in _blocks(seen)}
    rows = evaluate(run, quiet=True, baselines=False, blocks=True)  # after the other: its rows stay in the run
    return expanded | {
        f"{what} {row['features'].removeprefix(BLOCK)}": row[f"{what} %"] for what in MEASURED for row in _blocks(rows)
    }


def _of_blocks(row: Row) -> list[Row]:
    """A row of the study as `evaluate` has it: one for each block; none of an arm that failed."""
    numbers = [key.removeprefix("linear ") for key in row if key.startswith("linear ")]
    return [{"features": f"{BLOCK}{k}", **{f"{what} %": row[f"{what} {k}"] for what in MEASURED}} for k in numbers]


def _blocks(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["features"].startswith(BLOCK)]


def with_gaps(rows: list[Row]) -> list[Row]:
    """Each row with its last block's distance to the end-to-end run of its method and seed."""
    last = {(row["arm"], row["seed"]): [v for k, v in row.items() if k.startswith("linear ")][-1:] for row in rows}
    with_gap = []
    for row in rows:
        mine, whole = (last[arm, row["seed"]] for arm in (row["arm"], f"{row['arm'].partition(', ')[0]}, {WHOLE}"))
        with_gap.append({**row, "gap": whole[0] - mine[0]} if mine and whole else row)
    return with_gap
