"""Would the label-free score of `twinblock rank` tell better than the verdict whether a run has learned?

    python benchmarks/learned.py --cifar10 FOLDER [--out runs/learned] [--minutes 6] [--only TEXT]

FOLDER: where torchvision's cifar-10-batches-py lies. The runs are those of benchmarks/verdict.py, with one seed: those
that have nothing to learn, and every method with its learning rate, on CIFAR-10 at 24 px. Three rules say of each run
whether it has learned, without labels:

- `agreement`: the verdict as it is.
- `score`: the verdict with the agreement of views left out, and in its place: 1 / rank of an image's other view, in
  whitened coordinates (`labelfree.whitened_reciprocal_rank`), is larger than in the untrained encoder by more than two
  standard errors of the paired difference over images, whether the batch norms of that one have seen images or not.
- `both`: the verdict as it is, and the score.

All of this was fixed before the first run. A rule is wrong where it says *learned* of a run that has nothing to learn,
or of one whose kNN accuracy is not clearly above that of the untrained encoder (two standard errors); it misses a run
whose accuracy is. Runs that are done are not done again; after so many minutes no other is begun.
"""

import argparse
import contextlib
import json
import time
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from verdict import QUICK, arms, nothing_to_learn, shuffled

import twinblock
from twinblock.core.console import Reporter, print_table
from twinblock.core.errors import Collapsed, InputError
from twinblock.diagnosis import judge, worst
from twinblock.diagnosis.labelfree import _folds, _whitened
from twinblock.evaluation import features, seen_by
from twinblock.evaluation.rank import Seen
from twinblock.nn.modes import calibrated
from twinblock.runs import curves
from twinblock.studies.study import Arm, Options, folder

RULES = ("agreement", "score", "both")
SURE = 2.0  # standard errors
OTHER_DOUBTS = "no better than chance", "far more than now", "recovered from a collapse"  # of the verdict's words
CALIBRATION = 500  # images that batch norms see


def reciprocal_ranks(z: torch.Tensor) -> torch.Tensor:
    """Of each image, the mean over pairs of views of 1 / rank of its own other view, in whitened coordinates."""
    values, pairs = torch.zeros(z.shape[1], dtype=torch.float64), len([*combinations(range(len(z)), 2)])
    found = _whitened(z)
    for _, test in _folds(z.shape[1]):
        for _ in range(pairs):
            u, v = next(found)
            similar = -torch.cdist(v, u)
            values[test] += 1 / (similar >= similar.diag()[:, None]).sum(1) / pairs
    return values


def gains(run: twinblock.Run) -> dict[str, float]:
    """The score, and by how many standard errors it is above that of the untrained encoder."""
    seen = Seen.of([run])
    own, untrained = run.encoder(), run.untrained_encoder()
    ranks = [reciprocal_ranks(seen.features(run, encoder)) for encoder in (own, untrained)]
    some = twinblock.data.take(seen.images, np.arange(min(CALIBRATION, len(seen.images))))
    how = seen_by(run.config, torch.device("cpu"))
    with calibrated(untrained, lambda: features(untrained, some, **how)):
        ranks.append(reciprocal_ranks(seen.features(run, untrained)))
    now, *before = ranks
    errors = [(now - one).mean() / ((now - one).std() / len(now) ** 0.5).clamp_min(1e-12) for one in before]
    means = [round(float(one.mean()), 4) for one in ranks]
    return {"reciprocal rank": means[0], "untrained": max(means[1:]), "errors": round(float(min(errors)), 2)}


def judged(run: twinblock.Run) -> dict[str, bool | float | str]:
    """What each rule says, and what the labels do."""
    rows = run.metrics()
    count = len(next(row for row in rows if "diagnosis" in row)["diagnosis"])
    said = worst(judge(rows, [0] * count, run.config))
    found = gains(run)
    better = found["errors"] > SURE
    # healthy, long enough, in directions enough, with a loss below chance: all but how views agree
    sound = said.headline in ("learned", "not collapsed") and not any(word in said.evidence for word in OTHER_DOUBTS)
    result = run.result or {}
    knn = (result.get("accuracy") or {}).get("gains") or {}
    clear = all(gain > SURE * error for name, (gain, error) in knn.items() if name != "raw pixels")
    agreement = said.headline == "learned"
    rules = {"agreement": agreement, "score": sound and better, "both": agreement and better}
    return {**rules, **found, "labels": bool(knn) and clear, "headline": said.headline}


def jobs(data: Path, cifar10: Path) -> Iterator[tuple[str, Arm]]:
    vain, mixed = nothing_to_learn(data)
    vain = [*vain[::3], *vain[1::3], *vain[2::3]]  # so that any first part has all kinds of them
    yield from (("shuffled", arm) for arm in mixed)
    photos = (*QUICK, "data.source=cifar10", f"data.root={cifar10}", "data.size=24")
    healthy = [Arm(arm.name, arm.recipe, (*arm.overrides, *photos)) for arm in arms()[0][::2]]
    for i in range(max(len(vain), len(healthy))):  # in turn, so that any first part has both kinds
        yield from (("nothing", arm) for arm in vain[i : i + 1])
        yield from (("healthy", arm) for arm in healthy[i : i + 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/learned"))
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--only", default="", help="take the runs whose name holds this text")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    file, until = args.out / "learned.json", time.monotonic() + 60 * args.minutes
    rows = json.loads(file.read_text()) if file.is_file() else {}
    curves.draw = lambda *given: None  # a picture of each run takes a quarter of the time
    for kind, arm in jobs(args.out / "data", args.cifar10):
        if arm.name in rows or args.only not in arm.name or time.monotonic() > until:
            continue
        place = folder(arm.name, 0, Options(args.out))
        try:
            with shuffled() if kind == "shuffled" else contextlib.nullcontext():
                run = twinblock.pretrain(arm.recipe, out=place, overrides=arm.overrides, quiet=True)
            rows[arm.name] = {"kind": kind, **judged(run)}
        except (Collapsed, InputError) as error:
            rows[arm.name] = {"kind": kind, "failed": str(error)[:80]}
        Reporter().say(f"{arm.name}: {rows[arm.name]}")
        file.write_text(json.dumps(rows, indent=1))
    show(rows)


def show(rows: dict[str, dict]) -> None:
    done = [row for row in rows.values() if "failed" not in row]
    lines = []
    for rule in RULES:
        vain = [row for row in done if row["kind"] != "healthy"]
        plain = [row for row in done if row["kind"] == "healthy" and not row["labels"]]
        clear = [row for row in done if row["kind"] == "healthy" and row["labels"]]
        line = {"rule": rule, "nothing to learn": f"{sum(row[rule] for row in vain)} of {len(vain)} learned"}
        line["labels say no"] = f"{sum(row[rule] for row in plain)} of {len(plain)} learned"
        line["labels say yes"] = f"{sum(not row[rule] for row in clear)} of {len(clear)} missed"
        lines.append(line)
    print_table("is it said to have learned?", lines)


if __name__ == "__main__":
    main()
