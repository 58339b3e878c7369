"""Runs side by side: what differs in their settings, and what came of each."""

import logging
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from twinblock.config.compare import settings
from twinblock.core.console import show
from twinblock.core.errors import InputError
from twinblock.core.files import expanded, replacing, write_table
from twinblock.core.pictures import optional_picture, picture_file
from twinblock.evaluation.report import ENCODER, table
from twinblock.runs import curves
from twinblock.runs.environment import starts_of
from twinblock.runs.run import Run

OWN = "compare.png"
ROUNDED = "effective rank", "seconds"  # columns that are printed with one decimal
DRAWN = 12  # runs in the picture, which has a column for each
log = logging.getLogger(__name__)


def compare(runs: Sequence[Run | str | Path], *, out: str | Path | None = None) -> list[dict[str, Any]]:
    """Set runs side by side: a row for each, in the order given.

    A row has `run`, the folder; every setting in which the runs differ; `verdict`; `steps`; `effective rank`, of the
    encoder, and its `width`; `kNN %` and `linear %`, the accuracies of the encoder; `test images`; `measured`, by what;
    `seconds` of training. Accuracies are those of `evaluate` if all runs were evaluated on the data that the first one
    was last evaluated on. Otherwise all are those from the end of training, which has no linear probe. What a run lacks
    is None; `seconds` leaves out starts that were killed.
    Writes the curves of the first 12 runs to `out`, by default compare.png, and the rows to a .csv beside it.
    compare.png and compare.csv are replaced, other files never. Raises InputError for fewer than two runs, the same
    run twice, a folder that holds no run, and an `out` that cannot be written.
    """
    opened = [Run.open(run) for run in runs]
    if len(opened) < 2:
        raise InputError("compare: give at least two runs")
    need_different(opened, "compare")
    picture = picture_file(expanded(out or OWN), OWN)
    csv = picture.with_suffix(".csv")
    if csv.exists() and picture.name != OWN:
        raise InputError(f"out={picture}: {csv} is there already; delete it or choose another name")
    rows = side_by_side(opened)
    with replacing(csv) as file:
        write_table(
            file, "csv", {name: ["" if row[name] is None else str(row[name]) for row in rows] for name in rows[0]}
        )
    if len(opened) > DRAWN:
        log.warning(f"{picture} has the first {DRAWN} of {len(opened)} runs")
    with optional_picture(picture):
        curves.draw({str(run.path): run for run in islice(opened, DRAWN)}, picture)
    return rows


def side_by_side(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The rows of `compare`, of one run or more."""
    differing, accuracies = settings([run.config for run in runs]), _accuracies(runs)
    return [
        {
            "run": str(run.path),
            **{name: values[i] for name, values in differing.items()},
            **_outcome(run),
            **accuracies[i],
            "seconds": _seconds(run),
        }
        for i, run in enumerate(runs)
    ]


def by_run(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The rows of `compare` to print: a line for each setting and outcome, a column for each run."""
    shown = [table([row], row["test images"] or 0)[0] for row in rows]
    names = [row.pop("run") for row in shown]

    def cell(name: str, value: Any) -> str:  # a setting is never rounded
        return show(value if name in ROUNDED or value is None else str(value))

    return [
        {"": name, **{run: cell(name, row[name]) for run, row in zip(names, shown, strict=True)}} for name in shown[0]
    ]


def need_different(runs: Sequence[Run], command: str) -> None:
    """Raises InputError where a run is given twice."""
    places = [run.path.resolve() for run in runs]
    for run, place in zip(runs, places, strict=True):
        if places.count(place) > 1:
            raise InputError(f"{command}: {run.path} is given twice")


def _outcome(run: Run) -> dict[str, Any]:
    result = run.result or {}
    return {
        "verdict": result.get("headline", "not finished"),
        "steps": result.get("steps"),
        "effective rank": result.get("effective_rank"),
        "width": result.get("width"),
    }


def _accuracies(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Of all runs by one measurement, since two measurements of one encoder differ."""
    evaluations = [run.evaluation for run in runs]
    source = next((one["data"] for one in evaluations if one is not None), None)
    if source is not None:
        on_source = [run.evaluation_of(source) for run in runs]
        lacking = [str(run.path) for run, one in zip(runs, on_source, strict=True) if one is None]
        if not lacking:
            return [_evaluated(one, source) for one in on_source if one is not None]
        log.warning(f"not evaluated on {source}: {', '.join(lacking)}; all accuracies are from the end of training")
    return [_at_the_end(run) for run in runs]


def _evaluated(evaluation: Mapping[str, Any], source: str) -> dict[str, Any]:
    row = next(row for row in evaluation["rows"] if row["features"] == ENCODER)
    where = {"test images": evaluation["test"], "measured": f"evaluate on {source}"}
    return {"kNN %": row["kNN %"], "linear %": row["linear %"], **where}


def _at_the_end(run: Run) -> dict[str, Any]:
    result = run.result or {}
    accuracy = result.get("accuracy") or {}
    knn = (result.get("knn") or {}).get(ENCODER)
    by = None if knn is None else "end of training"
    return {"kNN %": knn, "linear %": None, "test images": accuracy.get("test"), "measured": by}


def _seconds(run: Run) -> float | None:
    known = [start["seconds"] for start in starts_of(run) if "seconds" in start]
    return round(sum(known), 1) if known else None
