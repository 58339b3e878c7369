"""Learning rules side by side: what each needs, what it holds in memory, and what each depth has learned.

`twinblock reproduce local-rules [seeds=3] [data=cifar10 data.root=DIR]`. Rules that can train the same network do: a
narrow VGG-8b in four blocks. Others have the network that they are defined for. Siddiqui et al. 2024 (arXiv 2302.01647)
order such rules by the same questions.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from twinblock.core.pictures import as_png, literal, optional_picture
from twinblock.data.training import chosen, training
from twinblock.evaluation.depth import figure
from twinblock.runs.run import Run
from twinblock.studies import blockwise
from twinblock.studies.study import Arm, Options, Row, carry_out, publish

NETWORK = ("encoder={kind: vgg8b, width: 8, stem: standard, norm: batch}", "data.size=16")
FOUR = ("scope.cuts=[block3,block5,block7]",)
BLOCKWISE = ("scope.kind=blockwise", *FOUR)
SHALLOW = ("encoder.kind=resnet10", "encoder.width=16")  # patches of 8 px cannot be halved four times
EPOCHS = 10  # of the embedded data, meant for 12 minutes a seed; of photographs one
TIMED = 4  # steps of each phase, of which the first is not counted
WITHIN, WHOLE, NONE = "within a block", "of the whole network", "none"


@dataclass(frozen=True)
class Rule:
    """A row of the table. `recipe`: where it starts from, on the embedded data and on photographs.

    What it needs: `labels`; `transport`, where errors go back through the weights of the forward pass; `waits`, what a
    block waits for before its update. `epochs`: times `EPOCHS`.
    """

    recipe: tuple[str, str]
    overrides: tuple[str, ...]
    labels: bool
    transport: str
    waits: str
    epochs: float = 1.0

    def needs(self) -> dict[str, str]:
        return {"labels": "yes" if self.labels else "no", "weight transport": self.transport, "waits for": self.waits}


def _of_study(name: str, *overrides: str) -> tuple[tuple[str, str], tuple[str, ...]]:
    """The recipes of a method of the study of blocks, and its overrides."""
    method = blockwise.METHODS[name]
    return (method.digits, method.recipe), (*NETWORK, *overrides)


def _own(name: str, *overrides: str) -> tuple[tuple[str, str], tuple[str, ...]]:
    """A recipe that is the same for all data, and its overrides."""
    return (name, name), overrides


ALL, BEFORE = "all blocks", "the blocks before"  # its error comes from the end; it only needs its input
RULES = {
    "SimCLR, end to end": Rule(*_of_study("SimCLR", *FOUR), False, WHOLE, ALL),
    "SimCLR, overlapping": Rule(
        *_of_study("SimCLR", "scope.kind=overlapping", *FOUR), False, "within two blocks", "the block after"
    ),
    "SimCLR, blockwise": Rule(*_of_study("SimCLR", *BLOCKWISE), False, WITHIN, BEFORE),
    "Barlow Twins, end to end": Rule(*_of_study("Barlow Twins", *FOUR), False, WHOLE, ALL),
    "Barlow Twins, blockwise": Rule(*_of_study("Barlow Twins", *BLOCKWISE), False, WITHIN, BEFORE),
    "LPL": Rule(*_own("lpl", *NETWORK, *FOUR), False, WITHIN, BEFORE),
    "CLAPP++": Rule(*_own("clapp_pp", *NETWORK, *FOUR), False, WITHIN, BEFORE),
    "DFA-SimCLR": Rule(*_own("direct_feedback_simclr", *NETWORK, *FOUR), False, WITHIN, ALL),
    "Greedy InfoMax": Rule(*_own("greedy_infomax", *SHALLOW), False, WITHIN, BEFORE, 0.2),
    "CLAPP": Rule(*_own("clapp", *SHALLOW), False, WITHIN, BEFORE, 0.2),
    "SCFF": Rule(*_own("scff"), False, NONE, BEFORE, 0.3),
    "DBN": Rule(*_own("dbn"), False, NONE, "the training of those before"),
    "VAE": Rule(*_own("vae"), False, WHOLE, ALL, 2.0),
    "supervised, end to end": Rule(*_of_study("supervised", *FOUR), True, WHOLE, ALL),
    "supervised, blockwise": Rule(*_of_study("supervised", *BLOCKWISE), True, WITHIN, BEFORE),
    **{
        f"local losses, {name}": Rule(
            *_own("local_losses", *NETWORK, *FOUR, f"learner.similarity={share}"), True, WITHIN, BEFORE
        )
        for name, share in (("prediction", 0), ("similarity", 1), ("both", 0.99))
    },
    "local losses, projected labels": Rule(
        *_own("local_losses", *NETWORK, *FOUR, "learner.projections=128"), True, NONE, BEFORE
    ),
    **{
        name: Rule(*_own("direct_feedback", *NETWORK, *FOUR, f"scope.credit={credit}"), True, transport, waits)
        for name, credit, transport, waits in (
            ("feedback alignment", "feedback_alignment", NONE, ALL),
            ("direct feedback", "direct", WITHIN, ALL),
            ("direct feedback, signs", "sign_direct", WITHIN, ALL),
            ("DRTP", "drtp", WITHIN, BEFORE),
            ("last layer alone", "none", NONE, "does not learn"),
        )
    },
    "Forward-Forward": Rule(*_own("forward_forward"), True, NONE, BEFORE, 2.0),
}
DRAWN = (  # over depth: ten, so that colours differ
    *("SimCLR, end to end", "SimCLR, overlapping", "SimCLR, blockwise", "LPL", "SCFF", "Greedy InfoMax"),
    *("supervised, end to end", "supervised, blockwise", "local losses, both", "direct feedback"),
)
NEEDS = ("labels", "weight transport", "waits for")
COST = ("KiB an image", "µs an image")


def reproduce(options: Options) -> None:
    """Carry out the arms, and write table.md, rows.json, depth.png and memory.png."""
    rows = carry_out(arms(options), measure, options)
    blocks = sorted({key.removeprefix("linear ") for row in rows for key in row if key.startswith("linear ")}, key=int)
    needs = {name: rule.needs() for name, rule in RULES.items()}
    beside = {column: {name: of_rule[column] for name, of_rule in needs.items()} for column in NEEDS}
    columns = [*NEEDS, *COST, *(f"linear {k}" for k in blocks), "kNN of the last"]
    title = (
        "Linear probe of each block's features and kNN of the last, in %; what a step makes in memory, views included, "
        "and a core's time, for each image"
    )
    publish(title, rows, options.out, columns, beside)
    drawn = {name: [blockwise._of_blocks(row) for row in rows if row["arm"] == name] for name in DRAWN}
    spread = ", mean and std over seeds" if options.seeds > 1 else ""
    with optional_picture(options.out / "depth.png"):
        (options.out / "depth.png").write_bytes(figure(drawn, f"frozen features of each block{spread}"))
    with optional_picture(options.out / "memory.png"):
        (options.out / "memory.png").write_bytes(picture(rows))


def arms(options: Options) -> list[Arm]:
    """Every rule."""
    digits = options.source == "photodigits"
    made = []
    for name, rule in RULES.items():
        epochs = max(1, round(EPOCHS * rule.epochs)) if digits else 1
        of_method = blockwise.METHODS.get(name.partition(",")[0])
        own = () if of_method is None else of_method.overrides if digits else of_method.short
        recipe = rule.recipe[0 if digits else 1]
        overrides = (*own, *rule.overrides, f"train.length={epochs}epochs", "train.checkpoint_every=100%")
        made.append(Arm(name, recipe, overrides))
    return made


def measure(run: Run) -> Mapping[str, float]:
    """Accuracies and effective rank of every block, and what a step costs."""
    found = dict(blockwise.measure(run))
    last = [value for key, value in found.items() if key.startswith("kNN ")][-1]
    return {**found, "kNN of the last": last, **cost(run)}


def cost(run: Run) -> dict[str, float]:
    """Memory that a step makes, at most, and a core's time for it, by image: of phases the most, and the mean."""
    import torch
    from lightning_fabric import Fabric

    from twinblock.core.memory import Alive
    from twinblock.training.loader import Loader
    from twinblock.training.step import TrainStep

    config, batch = run.config, run.config.data.batch
    images = training(*chosen(config.data))
    loader = Loader(images, config.train.seed, batch, batch, 0, torch.device("cpu"))
    classes = None if images.labels is None else int(images.labels.max()) + 1
    total = config.train.length.steps(loader.epoch_steps)
    step = TrainStep(
        config, Fabric(accelerator="cpu", devices=1), classes, loader.epoch_steps, total, run.objects, None, len(images)
    )
    samples, start, held, spent = loader.gather(0), 0, 0, 0.0
    for phase in step.plan.phases:
        step.begin_epoch(start, images)
        with Alive() as alive:
            step(start, samples)
        held = max(held, alive.peak)
        times = []
        for k in range(1, min(TIMED, phase.steps)):
            began = time.process_time()
            step(start + k, samples)
            times.append(time.process_time() - began)
        spent += phase.steps * statistics.median(times or [0.0])
        start += phase.steps
    return {COST[0]: held / batch / 2**10, COST[1]: spent / total / batch * 1e6}


def picture(rows: Sequence[Row]) -> bytes:
    """Linear probe of the last block against memory, by rule; filled where labels are needed."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    drawing = Figure(figsize=(9, 5.5), layout="constrained")
    axes = drawing.subplots()
    points: list[tuple[str, tuple[float, float], str]] = []
    for name, rule in RULES.items():
        mine = [row for row in rows if row["arm"] == name and "failed" not in row]
        if not mine:
            continue
        last = [_linear(row)[-1] for row in mine]
        at = statistics.fmean(row[COST[0]] for row in mine), statistics.fmean(last)
        colour = "C1" if rule.labels else "C0"
        axes.plot(*at, "o", color=colour, fillstyle="full" if rule.transport != WHOLE else "none")
        points.append((literal(name), at, colour))
    axes.set(xscale="log", xlabel=f"{COST[0]}, that a step makes", ylabel="linear probe of the last block, in %")
    axes.set_ylim(0)
    axes.margins(x=0.12)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda kib, _: f"{kib:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.spines[["top", "right"]].set_visible(False)
    drawing.suptitle("orange: with labels; rings: errors go back through the whole network")
    drawing.draw_without_rendering()
    _name(axes, points)
    return as_png(drawing)


def _name(axes: Any, points: Sequence[tuple[str, tuple[float, float], str]]) -> None:
    """Write names beside their points, each where it covers no other name and no point, if there is such a place."""
    from matplotlib.transforms import Bbox

    places = [axes.transData.transform(at) for _, at, _ in points]
    taken = [Bbox.from_extents(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    for name, at, colour in points:
        for x, y in ((6, 4), (6, -10), (-6, 4), (-6, -10), (6, 12), (6, -18), (-6, 12), (-6, -18)):
            side = "left" if x > 0 else "right"
            how = {"textcoords": "offset points", "fontsize": 7, "color": colour, "ha": side}
            text = axes.annotate(name, at, xytext=(x, y), **how)
            box = text.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                break
            text.remove()
        else:
            axes.add_artist(text)
        taken.append(box)


def _linear(row: Mapping[str, Any]) -> list[float]:
    """Of each block, in order."""
    return [value for key, value in row.items() if key.startswith("linear ")]
