"""What studies share: arms trained side by side, measured alike, and written as one table."""

import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

from twinblock.config.recipes import compose
from twinblock.core.console import Reporter, clock, print_table
from twinblock.core.errors import Collapsed, InputError
from twinblock.runs.run import Run

Row = dict[str, Any]  # arm, seed, seconds, length of the training, then what was measured
LABELS = ("arm", "seed", "seconds", "length")
NARROW = ("encoder.kind=resnet18", "encoder.width=16", "data.size=32")  # for photographs on a CPU


@dataclass(frozen=True)
class Arm:
    """One run of a comparison: a recipe with overrides, under the name that the table gives it.

    `{seed}` in an override stands for the seed of the run.
    """

    name: str
    recipe: str
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Options:
    """What the command line leaves open: overrides of every arm (data, length, ...), the seeds, and where to write."""

    out: Path
    seeds: int = 3
    overrides: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """The data that every arm sees."""
        return compose("demo", overrides=self.overrides).data.source


def reduced(options: Options, length: str) -> bool:
    """Whether the arms are to be `NARROW` and short: photographs, no GPU, and no length asked for; says so."""
    import torch

    given = any(text.startswith("train.length=") for text in options.overrides)
    if options.source == "photodigits" or given or torch.cuda.is_available():
        return False
    Reporter().say(
        f"no GPU: a ResNet-18 of width 16 at 32 px and {length}; train.length=... has the settings as they are"
    )
    return True


def carry_out(arms: Sequence[Arm], measure: Callable[[Run], Mapping[str, float]], options: Options) -> list[Row]:
    """Train each arm with each seed and measure it, in parallel on a CPU; what `options.out` holds is not done again.

    `measure` is a function of a module, so that other processes find it. An arm that fails, by a loss that is no
    longer finite for instance, gives a row with the reason under `failed`. Rows are in order of arm, then seed.
    """
    if options.seeds < 1:
        raise InputError(f"seeds={options.seeds}: take at least 1")
    jobs = [(arm, seed) for arm in arms for seed in range(options.seeds)]
    for arm, seed in jobs:  # what is no run, or not the one that lies there: before hours are spent on the others
        Run(folder(arm.name, seed, options)).agree(compose(arm.recipe, overrides=_overrides(arm, seed, options)))
    reporter, began = Reporter(), time.monotonic()
    rows: dict[tuple[str, int], Row] = {}
    with ProcessPoolExecutor(workers(), mp_context=get_context("spawn"), initializer=_prepare) as pool:
        running = {pool.submit(_job, arm, seed, measure, options): (arm.name, seed) for arm, seed in jobs}
        try:
            for done in as_completed(running):
                row = rows[running[done]] = done.result()
                numbers = "  ".join(f"{k} {_show(v)}" for k, v in row.items() if k not in LABELS)
                spent = time.monotonic() - began
                left = f", {clock(spent / len(rows) * (len(jobs) - len(rows)))} left" if len(rows) < len(jobs) else ""
                reporter.say(
                    f"{len(rows)}/{len(jobs)} after {clock(spent)}{left}: {row['arm']}, seed {row['seed']}: {numbers}"
                )
        except BaseException:  # what no arm should do is said at once, not after all the others
            pool.shutdown(cancel_futures=True)
            raise
    return [rows[arm.name, seed] for arm, seed in jobs]


def workers() -> int:
    """Runs at a time: one for each processor core, or one where a GPU serves them."""
    import torch

    return 1 if torch.cuda.is_available() else len(os.sched_getaffinity(0))


def summary(rows: Sequence[Row]) -> list[Row]:
    """A row for each arm: the mean and the standard deviation over its seeds of all that was measured."""
    names = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in (*LABELS, "failed")]
    decimals = {name: _decimals(row[name] for row in rows if row.get(name) is not None) for name in names}
    table = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == arm]
        line: Row = {"arm": arm}
        why = next((row["failed"] for row in mine if "failed" in row), "-")
        for name in names:
            values = [row[name] for row in mine if row.get(name) is not None]
            line[name] = _spread(values, decimals[name]) if values else why
        table.append(line)
    return table


def publish(
    title: str,
    rows: Sequence[Row],
    out: Path,
    columns: Sequence[str] | None = None,
    beside: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Print the table of a study and write it: `table.md` for people, `rows.json` with every number.

    `beside`: columns that were not measured here, such as published numbers, by name and arm.
    """
    table = summary(rows)
    title = f"{title}; {_lengths(rows)}" if any("length" in row for row in rows) else title
    for line in table:
        line |= {name: values[line["arm"]] for name, values in (beside or {}).items() if line["arm"] in values}
    if columns is not None:
        table = [{name: line.get(name, "-") for name in ("arm", *columns)} for line in table]
    (out / "rows.json").write_text(json.dumps(list(rows), indent=1) + "\n", encoding="utf-8")
    (out / "table.md").write_text(f"{title}\n\n{markdown(table)}", encoding="utf-8")
    print_table(title, table)


def _lengths(rows: Sequence[Row]) -> str:
    """How long the arms were trained, in words."""
    arms: dict[str, list[str]] = {}
    for row in rows:
        if "length" in row and row["arm"] not in arms.setdefault(row["length"], []):
            arms[row["length"]].append(row["arm"])
    if len(arms) == 1:
        return f"trained for {next(iter(arms))}"
    return "trained for " + ", ".join(f"{length} ({', '.join(names)})" for length, names in arms.items())


def markdown(table: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same columns as a table in Markdown."""
    lines = [list(table[0]), ["---"] * len(table[0]), *([str(value) for value in row.values()] for row in table)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def folder(arm: str, seed: int, options: Options) -> Path:
    """Where the run of an arm lies."""
    return options.out / f"{_file_name(arm)}-{seed}"


def _overrides(arm: Arm, seed: int, options: Options) -> tuple[str, ...]:
    overrides = (text.replace("{seed}", str(seed)) for text in arm.overrides)
    return (*overrides, *options.overrides, f"train.seed={seed}")


def _job(arm: Arm, seed: int, measure: Callable[[Run], Mapping[str, float]], options: Options) -> Row:
    from twinblock.training.pretrain import pretrain

    out = folder(arm.name, seed, options)
    kept = out / "measured.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    began = time.monotonic()
    row: Row = {"arm": arm.name, "seed": seed}
    try:
        run = pretrain(arm.recipe, out=out, overrides=_overrides(arm, seed, options), quiet=True)
        length = str(run.config.train.length)
        row |= {"seconds": round(time.monotonic() - began, 1), "length": length, **measure(run)}
    except (InputError, Collapsed) as error:
        return {**row, "seconds": round(time.monotonic() - began, 1), "failed": str(error)}
    run.write_json(kept.name, row)
    return row


def _prepare() -> None:
    """Of a worker: one thread, since the others use the other cores, and an end when the study ends, or is killed."""
    import torch

    study = parent_process()
    assert study is not None
    Thread(target=lambda: (study.join(), os._exit(1)), daemon=True).start()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)


def _spread(values: Sequence[float], decimals: int) -> str:
    mean = f"{statistics.fmean(values):.{decimals}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{decimals}f}"


def _show(value: Any) -> str:
    return f"{value:.{_decimals([value])}f}" if isinstance(value, float) else str(value)


def _decimals(values: Iterable[float]) -> int:
    """Of percentages and ranks one, of cosines and areas three."""
    return 1 if any(abs(value) >= 2 for value in values) else 3


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower())
