"""What people look at: the progress of a run, tables, and the last line."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

PROSE = 34  # characters: what is longer in a table is wrapped
LINE_EVERY = 10.0  # seconds between two lines where there is no terminal


class Screen(Console):
    """The error stream. Whoever reads it may leave (`2>&1 | head`): the work goes on, unseen."""

    def __init__(self, quiet: bool = False, **how: Any):
        super().__init__(stderr=True, quiet=quiet, highlight=False, soft_wrap=True, **how)

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


class Reporter:
    """Says what a run does, on the error stream: a live bar on a terminal, a line now and then elsewhere."""

    def __init__(self, quiet: bool = False):
        self.console = Screen(quiet)
        self.bar: Progress | None = None

    def say(self, text: str) -> None:
        self.console.print(escape(text))

    def warn(self, text: str) -> None:
        self.console.print(f"[yellow]warning:[/] {escape(text)}")

    def start(self, total: int, step: int, batch: int) -> None:
        self.total, self.batch = total, batch
        self.began, self.first_step, self.spoke = time.monotonic(), step, 0.0
        if self.console.is_terminal:
            columns = (
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(),
                TextColumn("{task.description}"),
            )
            self.bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console)
            self.task = self.bar.add_task("first step ...", total=total, completed=step)
            self.bar.start()

    def update(self, step: int, rows: Sequence[Mapping[str, Any]], words: str = "") -> None:
        """`words`: what the monitor says, behind loss and speed."""
        losses = [row["loss"] for row in rows if "loss" in row]
        elapsed = time.monotonic() - self.began
        speed = (step - self.first_step) * self.batch / max(elapsed, 1e-9)
        loss = "  ".join(f"{value:.4g}" for value in losses[-1]) if losses else ""
        text = f"loss {loss} · {speed:,.0f} images/s" + (f" · {words}" if words else "")
        if self.bar is not None:
            self.bar.update(self.task, completed=step, description=text)
        elif elapsed - self.spoke > LINE_EVERY or step == self.total or self.spoke == 0:
            self.spoke = elapsed
            left = elapsed / max(1, step - self.first_step) * (self.total - step)
            self.say(f"step {step}/{self.total} · {text} · {clock(left)} left")

    def close(self) -> None:
        """Take the bar away: a terminal without one has its cursor back."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


@contextmanager
def progress(doing: str, total: int, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Shows how far work of more than a second is: a bar on a terminal, lines that become fewer elsewhere."""
    console = Screen(quiet, markup=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task, begun, done, due = bar.add_task(doing, total=total), time.monotonic(), 0, 1.0

    def advance(n: int) -> None:
        nonlocal done, due
        done += n
        bar.advance(task, n)
        elapsed = time.monotonic() - begun
        if elapsed > due:
            due = max(LINE_EVERY, 2 * elapsed)
            bar.start()
            if bar.disable:
                console.print(f"{doing}: {done:,} of {total:,} · {clock(elapsed / done * (total - done))} left")

    try:
        yield advance
    finally:
        bar.stop()


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"


def print_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table on the output stream; every row has the same columns.

    Prose is wrapped and numbers are never cut: a terminal that is too narrow for them breaks the lines.
    """
    table = Table(title=escape(title), title_justify="left")
    needed = 1
    for name in rows[0]:
        justify = "left" if isinstance(rows[0][name], str) else "right"
        widest = max(len(name), *(len(show(row[name])) for row in rows))
        table.add_column(escape(name), justify=justify, no_wrap=widest <= PROSE)
        needed += min(widest, PROSE) + 3
    for row in rows:
        table.add_row(*(escape(show(value)) for value in row.values()))
    console = Console(file=sys.stdout, highlight=False)
    console.width = max(console.width, needed)
    console.print(table)


def show(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if isinstance(value, float) else str(value)
