"""Which label-free score orders encoders as a linear probe does? Small runs of six methods on two data sets.

    python benchmarks/rank.py --cifar10 FOLDER [--out runs/rank] [--only TEXT] [--measure]

FOLDER: where torchvision's cifar-10-batches-py lies. Each method trains at four learning rates, from too low to too
high, for three lengths, with another seed, and once without jitter and grey in its views; on the digits at two rates.
Encoders are kept at each quarter of a run. Each is scored without labels as `twinblock rank` does it, and measured by a
linear probe. The table has Spearman's correlation of score and probe over the encoders of one method, the mean and the
lowest of six, and over those of all methods. The score is chosen on every second round of the runs on CIFAR-10; the
other rounds and the digits test the choice. Runs that are done are not done again, nor are their measurements.
"""

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import nn

import twinblock
from twinblock.core.console import Reporter
from twinblock.core.errors import Collapsed, InputError
from twinblock.data import take
from twinblock.data.training import split_of, whole
from twinblock.diagnosis.labelfree import SCORES
from twinblock.evaluation import features, knn_scores, linear_probe, seen_by
from twinblock.evaluation.labelled import LabelledSets
from twinblock.evaluation.rank import Seen, steps_of
from twinblock.runs import curves
from twinblock.studies.study import Arm, Options, folder, markdown

SMALL = (
    "data.labels=none",
    "data.batch=64",
    "encoder.kind=resnet10",
    "encoder.stem=cifar_stride2",
    "encoder.width=8",
    "train.checkpoint_every=100%",
)
CIFAR, DIGITS = "cifar10", "photodigits"
SETS = {CIFAR: range(8), DIGITS: (0, 4)}  # the rounds of `RUNS`, in which all methods train
METHODS = {  # four learning rates, and heads of a size that fits the encoder's
    "simclr": ((0.02, 0.2, 1.2, 12), ("projector.dims=[64,32]",)),
    "moco_v2": ((0.02, 0.1, 0.5, 5), ("projector.dims=[64,32]", "objective.queue=1024")),
    "byol": ((0.05, 0.5, 2, 20), ("projector.dims=[128,32]", "predictor.dims=[128,32]")),
    "simsiam": ((0.01, 0.05, 0.3, 3), ("projector.dims=[128,128]", "predictor.dims=[32,128]")),
    "barlow_twins": ((0.02, 0.2, 1, 10), ("projector.dims=[128,128]",)),
    "vicreg": ((0.02, 0.2, 1, 10), ("projector.dims=[128,128]",)),
}
RUNS = (  # which learning rate, steps, seed, views in colour
    (1, 240, 0, True),
    (2, 60, 0, True),
    (3, 120, 0, True),
    (0, 120, 0, True),
    (2, 240, 0, True),
    (1, 60, 0, True),
    (2, 120, 1, True),
    (1, 120, 0, False),
)
KEPT = 4  # encoders of a run
PROBED: tuple[tuple[Any, int], ...] = ("train", 5000), ("test", 10_000)  # images of the linear probe, at most
PROBE = "linear %"
PLAIN = ("views.0.jitter_p=0", "views.1.jitter_p=0", "views.0.gray=0", "views.1.gray=0")


def arms(source: str, cifar10: Path) -> list[tuple[Arm, int]]:
    """The runs on a data set with their seeds, in an order in which any first part has all methods."""
    fields = (f"data.root={cifar10}", "data.size=24")
    if source == DIGITS:  # whose ink is darker or lighter than its ground
        fields = ("data.size=32", "views.0.solarize=0.5", "views.1.solarize=0.5")
    runs = []
    for rate, steps, seed, colour in (RUNS[i] for i in SETS[source]):
        for method, (rates, heads) in METHODS.items():
            name = f"{source} {method} lr {rates[rate]:g} {steps} steps{'' if colour else ' without colour'}"
            given = (f"data.source={source}", f"optim.lr={rates[rate]}", f"train.length={steps}steps")
            given += (f"train.keep={steps // KEPT}steps", *fields, *heads, *(() if colour else PLAIN))
            runs.append((Arm(name, method, (*SMALL, *given)), seed))
    return runs


def train(arm: Arm, seed: int, out: Path) -> twinblock.Run | None:
    """The run, trained unless it is there; None where it diverged."""
    place = folder(arm.name, seed, Options(out))
    overrides = (*arm.overrides, f"train.seed={seed}")
    try:
        return twinblock.pretrain(arm.recipe, out=place, overrides=overrides, quiet=True)
    except (InputError, Collapsed) as error:
        Reporter().say(f"{arm.name}: {error}")
        return None


class Labelled:
    """The labelled images of a data set on which encoders are measured."""

    def __init__(self, run: twinblock.Run):
        data = whole(run.config.data).model_copy(update={"labels": "auto"})
        parts = []
        for split, most in PROBED:
            images = split_of(data, split)
            assert images is not None
            parts.append(take(images, np.sort(np.random.default_rng(0).permutation(len(images))[:most])))
        self.sets = LabelledSets.of(*parts)

    def accuracies(self, run: twinblock.Run, encoder: nn.Module) -> dict[str, float]:
        seen = seen_by(run.config, torch.device("cpu"))
        bank, queries = (features(encoder, images, **seen) for images in self.sets.images)
        if not (bank.isfinite().all() and queries.isfinite().all()):
            return {}
        labels, classes = torch.from_numpy(self.sets.train_labels), len(self.sets.classes)
        of = {
            PROBE: linear_probe(bank, labels, queries, classes),
            "kNN %": knn_scores(bank, labels, queries, classes),
        }
        right = {name: (scores.argmax(1).numpy() == self.sets.test_labels).mean() for name, scores in of.items()}
        return {name: round(100 * float(share), 2) for name, share in right.items()}


def measure(run: twinblock.Run, seen: Seen, labelled: Labelled) -> dict[str, dict[str, float]]:
    """By step, the scores and accuracies of each encoder; those that the run holds are not measured again."""
    file = run.path / "measured.json"
    rows = json.loads(file.read_text()) if file.is_file() else {}
    before = json.dumps(rows)
    for step in steps_of(run):
        row, encoder = rows.setdefault(str(step), {}), run.encoder(step)
        if PROBE not in row:
            row |= labelled.accuracies(run, encoder)
        missing = [name for name in SCORES if name not in row]
        if missing and PROBE in row:
            z = seen.features(run, encoder)
            row |= {name: SCORES[name](z) for name in missing}
    if json.dumps(rows) != before:
        run.write_json(file.name, rows)
    return rows


class Judge:
    """What is measured of the encoders of the runs on a data set."""

    def __init__(self, run: twinblock.Run):
        self.seen, self.labelled = Seen.of([run]), Labelled(run)

    def rows(self, run: twinblock.Run, arm: Arm, part: int) -> Iterator[dict[str, Any]]:
        """Of each encoder that did not diverge."""
        for step, row in measure(run, self.seen, self.labelled).items():
            if PROBE in row:
                yield {"arm": arm.name, "part": part, "method": arm.recipe, "step": step, **row}


def table(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Spearman's correlation of each score with the probe, within a method and across, the best ones first."""
    lines = []
    for name in SCORES:
        within = [correlation([row for row in rows if row["method"] == method], name) for method in METHODS]
        lines.append((name, statistics.fmean(within), min(within), correlation(rows, name), within))
    lines.sort(key=lambda line: line[1] + line[3], reverse=True)
    return [
        {"score": name, "within": f"{mean:.2f}", "lowest": f"{low:.2f}", "across": f"{across:.2f}"}
        | {method: f"{one:.2f}" for method, one in zip(METHODS, within, strict=True)}
        for name, mean, low, across, within in lines
    ]


def correlation(rows: list[dict[str, Any]], name: str) -> float:
    """0 for fewer than three."""
    ranks = [rankdata([row[key] for row in rows]) for key in (name, PROBE)]
    return float(np.corrcoef(ranks)[0, 1]) if len(rows) > 2 else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/rank"))
    parser.add_argument("--only", default="", help="take the runs whose name holds this text")
    parser.add_argument("--measure", action="store_true", help="measure the runs that are there, train none")
    args = parser.parse_args()
    curves.draw = lambda *given: None  # a picture of each run takes a quarter of the time
    for source in SETS:
        rows, judge = [], None
        jobs = [(i, *job) for i, job in enumerate(arms(source, args.cifar10)) if args.only in job[0].name]
        for done, (i, arm, seed) in enumerate(jobs, start=1):
            place = folder(arm.name, seed, Options(args.out))
            if args.measure and not (place / "result.json").is_file():
                continue
            run = train(arm, seed, args.out)
            said = "diverged" if run is None else (run.result or {})["headline"]
            Reporter().say(f"{source} {done}/{len(jobs)} {arm.name}, seed {seed}: {said}")
            if run is not None:
                judge = judge or Judge(run)
                rows += judge.rows(run, arm, i // len(METHODS) % 2)
        (args.out / f"{source}.json").write_text(json.dumps(rows, indent=1))
        if source == CIFAR:
            show(f"{source}, the half to choose on", [row for row in rows if row["part"] == 0])
            show(f"{source}, the other half", [row for row in rows if row["part"] == 1])
        show(source, rows)
        show(f"{source}, the last encoder of each run", [row for row in rows if row["step"] == "None"])


def show(title: str, rows: list[dict[str, Any]]) -> None:
    if rows:
        runs, probed = {row["arm"] for row in rows}, sorted(row[PROBE] for row in rows)
        print(f"\n{title}: {len(rows)} encoders of {len(runs)} runs, {PROBE} {probed[0]} to {probed[-1]}\n")
        print(markdown(table(rows)), flush=True)


if __name__ == "__main__":
    main()
