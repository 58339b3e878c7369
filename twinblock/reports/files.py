"""The sections of a report that the files of a run are enough for.

Each gives HTML, or raises InputError with the reason why there is nothing to say.
"""

import tempfile
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from twinblock.config.recipes import to_yaml
from twinblock.core.errors import InputError
from twinblock.diagnosis.diagnose import indicator_rows
from twinblock.evaluation import groups
from twinblock.evaluation.compare import DRAWN
from twinblock.evaluation.depth import BASELINES, figure, rows_by_block
from twinblock.evaluation.report import ENCODER, better_block, group_rows, sizes
from twinblock.evaluation.report import table as with_errors
from twinblock.reports.page import paragraph, picture, table, text
from twinblock.runs import curves
from twinblock.runs.environment import starts_of
from twinblock.runs.run import Run
from twinblock.training.finish import accuracy_in_words

LISTED = 200  # images left out, and classes, that are listed one by one
GOOD, BAD = ("learned",), ("complete collapse", "dimensional collapse", "diverging")


def verdict(run: Run) -> str:
    """What came of the run, why, and what to do."""
    result = run.result
    if result is None:
        steps = len([row for row in run.metrics() if "loss" in row])
        return _box("not finished", "", [f"{steps:,} steps so far; the verdict comes when the training ends"], [])
    state = "good" if result["headline"] in GOOD else "bad" if result["state"] in BAD else ""
    todo = [result["advice"]] if result["advice"] else []
    if (evaluation := run.evaluation) and (hint := better_block(evaluation)):
        todo.append(hint)
    rank = f"effective rank {result['effective_rank']:.1f} of {result['width']}"
    return _box(result["headline"], state, [f"{accuracy_in_words(result)} · {rank}", result["evidence"]], todo)


def _box(headline: str, state: str, evidence: Sequence[str], todo: Sequence[str]) -> str:
    lines = "".join(map(paragraph, dict.fromkeys(filter(None, evidence))))
    advice = "".join(f"<p><b>What to do:</b> {text(one)}</p>" for one in todo)
    return f'<div class="verdict {state}"><strong>{text(headline)}</strong>{lines}{advice}</div>'


def training(runs: Sequence[Run]) -> str:
    """The curves of one run or more, side by side."""
    shown = {run.path.name: run for run in islice(runs, DRAWN)}
    if len(shown) < min(len(runs), DRAWN):  # two of one name
        shown = {str(run.path): run for run in islice(runs, DRAWN)}
    if not any(run.metrics() for run in shown.values()):
        raise InputError("no step has been recorded")
    with tempfile.TemporaryDirectory() as folder:
        curves.draw(shown, file := Path(folder) / "curves.svg")
        drawn = file.read_bytes()
    last = [f"{name}: {_at_the_end(run)}" for name, run in shown.items()]
    said = "" if len(runs) <= DRAWN else f"The first {DRAWN} of {len(runs)} runs."
    alt = f"Loss, learning rate, kNN of the sample, cosines and effective rank by step. {'; '.join(last)}"
    return picture(drawn, "svg+xml", alt, said)


def _at_the_end(run: Run) -> str:
    losses = [row for row in run.metrics() if "loss" in row]
    if not losses:
        return "no step recorded"
    first, last = (f"{row['loss'][-1]:.4g} at step {row['step']}" for row in (losses[0], losses[-1]))
    return f"the loss goes from {first} to {last}"


def accuracy(run: Run) -> str:
    """The rows of the last `evaluate`."""
    evaluation = _evaluated(run)
    rows = with_errors(evaluation["rows"], evaluation["test"])
    return table(rows, f"Measured on {evaluation['data']}") + paragraph(sizes(evaluation), "soft")


def by_class(run: Run, names: Sequence[str] | None) -> str:
    """Accuracy of groups of classes and of each class, of a run on classes of unequal size."""
    evaluation = _evaluated(run)
    if not (rows := group_rows(run)):
        raise InputError("evaluate measures it of a run on classes of unequal size; this one's are of equal size")
    probes = {g["evaluator"]: g["classes"] for g in evaluation["groups"] if g["features"] == ENCODER}
    labels, counts = evaluation["class labels"], evaluation["class sizes"]
    lines = [
        {
            "class": names[label] if names and label < len(names) else str(label),
            "training images": counts[i],
            **{f"{probe} %": classes[i] for probe, classes in probes.items()},
        }
        for i, label in enumerate(labels)
    ]
    caption = "Accuracy of each class" if len(lines) <= LISTED else f"The first {LISTED} of {len(lines):,} classes"
    drawn = groups.figure({run.path.name: [groups.classes_of(run)]}, "linear probe")
    alt = "Accuracy against the training images of the class, and the mean of many, medium and few; see the tables"
    return (
        table(rows, "Accuracy of groups of classes, in %; std: their standard deviation")
        + picture(drawn, "png", alt)
        + table(lines[:LISTED], caption)
    )


def depth(run: Run) -> str:
    """Accuracy by block."""
    evaluation = _evaluated(run)
    if not (rows := rows_by_block(evaluation)):
        raise InputError(f"no block was measured: twinblock evaluate {run.path} --blocks")
    baselines = {row["features"]: row for row in evaluation["rows"] if row["features"] in BASELINES}
    alt = "; ".join(f"{row['features']}: linear {row['linear %']:.1f} %, kNN {row['kNN %']:.1f} %" for row in rows)
    return picture(figure({run.path.name: [rows]}, "frozen features of each block", baselines), "png", alt)


def _evaluated(run: Run) -> Mapping[str, Any]:
    evaluation = run.evaluation
    if evaluation is None:
        raise InputError(f"not evaluated yet: twinblock evaluate {run.path}, with data=LABELLED if it has no labels")
    return evaluation


def collapse(run: Run) -> str:
    """The verdict on each Learner, and what the monitor saw last of its outputs."""
    measured = [row for row in run.metrics() if "diagnosis" in row]
    if not measured:
        raise InputError("nothing was measured during the training")
    last, verdicts = measured[-1], (run.result or {}).get("learners", [])
    parts = []
    for i, outputs in enumerate(last["diagnosis"]):
        block = f"Block {i + 1}, step" if len(last["diagnosis"]) > 1 else "Step"
        if i < len(verdicts):
            one = verdicts[i]
            parts.append(
                paragraph(f"{block.removesuffix(', step')}: {one['headline']}. {one['evidence']}")
                if len(verdicts) > 1
                else ""
            )
        parts.append(
            table(indicator_rows(outputs), f"{block} {last['step']:,}; the last column: where all has collapsed")
        )
    return "".join(parts)


def left_out(run: Run) -> str:
    """The images that could not be read."""
    file = run.path / "skipped.txt"
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    if not lines:
        return paragraph("None: all images could be read.")
    shown = [{"image": name, "why": why} for name, _, why in (line.partition("\t") for line in lines[:LISTED])]
    return table(shown, f"{len(lines):,} images left out" + (f"; the first {LISTED}" if len(lines) > LISTED else ""))


def environment(run: Run) -> str:
    """When, where and with what the run ran."""
    starts = starts_of(run)
    if not starts:
        raise InputError("environment.json is missing or damaged")
    names = dict.fromkeys(name for start in starts for name in start)
    rows = [{"start": str(i), **{n: _cell(s.get(n)) for n in names}} for i, s in enumerate(starts, 1)]
    lines = [{"": name, **{f"start {row['start']}": row[name] for row in rows}} for name in names]
    known = [start["seconds"] for start in starts if isinstance(start.get("seconds"), int | float)]
    return table(lines, f"{sum(known):,.1f} seconds of training in all, without starts that were killed")


def _cell(value: Any) -> str:
    return "-" if value is None else str(value)


def config(run: Run) -> str:
    """Every field of the run, as a recipe."""
    return f"<pre>{text_lines(to_yaml(run.config))}</pre>"


def text_lines(lines: str) -> str:
    """Text that keeps its lines."""
    return "\n".join(map(text, lines.splitlines()))
