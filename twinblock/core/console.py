"""What people look at: the progress of a run, tables, and the last line."""

import io
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


class ErrorStream:
    """`sys.stderr` as it is at this moment.

    Whoever reads it may leave, as in `2>&1 | head` or with a closed terminal: the work goes on, unseen.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr or io.StringIO(), name)

    def write(self, text: str) -> int:
        try:
            return sys.stderr.write(text) if sys.stderr else len(text)
        except OSError:
            self.leave()
            return len(text)

    def flush(self) -> None:
        try:
            if sys.stderr:
                sys.stderr.flush()
        except OSError:
            self.leave()

    def leave(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stderr.fileno())
        os.close(nowhere)


class Screen(Console):
    """The error stream, for words that may be lost."""

    def __init__(self, quiet: bool = False, **how: Any):
        # a notebook would show every change of a bar as an output of its own
        how = {"highlight": False, "soft_wrap": True, "force_jupyter": False, **how}
        super().__init__(file=ErrorStream(), quiet=quiet, **how)  # pyright: ignore[reportArgumentType]


def say_last(text: str) -> None:
    """The last line of a command that ends; of several processes of a run the first says it."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=ErrorStream(), flush=True)


class Line:
    """A line that is written over again, as a notebook shows it; other text begins below it."""

    def __init__(self):
        self.stream, self.width = ErrorStream(), 0

    def show(self, text: str) -> None:
        self.stream.write("\r" + text.ljust(self.width))
        self.stream.flush()
        self.width = len(text)

    def end(self) -> None:
        if self.width:
            self.stream.write("\n")
        self.width = 0


class Reporter:
    """Says what a run does, on the error stream: a bar on a terminal, one line in a notebook, else a line at times."""

    def __init__(self, quiet: bool = False):
        self.console = Screen(quiet)
        self.bar: Progress | None = None
        self.line = Line() if in_notebook() else None

    def say(self, text: str) -> None:
        if self.line is not None:
            self.line.end()
        self.console.print(escape(text))

    def tell(self, text: str) -> None:
        """Say what is longer than a line: on a terminal it is broken between words."""
        if self.line is not None:
            self.line.end()
        self.console.print(escape(text), soft_wrap=not self.console.is_terminal)

    def warn(self, text: str) -> None:
        if self.line is not None:
            self.line.end()
        self.console.print(f"[yellow]warning:[/] {escape(text)}")

    def start(self, total: int, step: int, batch: int) -> None:
        self.total, self.batch = total, batch
        self.began, self.first_step, self.spoke, self.settled = time.monotonic(), step, -LINE_EVERY, False
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(bar_width=min(40, self.console.width // 10)),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.task = self.bar.add_task("first step ...", total=total, completed=step)
            self.bar.start()

    def update(self, step: int, rows: Sequence[Mapping[str, Any]], words: str = "") -> None:
        """`words`: what the monitor says, behind loss and speed. The first call has no speed: it is that of loading."""
        losses = [row["loss"] for row in rows if "loss" in row]
        now, speed, left = time.monotonic(), "", ""
        if self.settled and step > self.first_step:
            pace = (now - self.began) / (step - self.first_step)
            speed = f"{self.batch / max(pace, 1e-9):,.0f} images/s"
            left = f" · {clock(pace * (self.total - step))} left"
        else:
            self.settled, self.began, self.first_step = True, now, step
        latest = losses[-1] if losses else ()
        if self.bar is not None:
            room = self.console.width - len(f"step {self.total}/{self.total}") - self.console.width // 10 - 20
            self.bar.update(self.task, completed=step, description=status(latest, speed, words, room))
        elif self.line is not None and not self.console.quiet:
            self.line.show(f"step {step}/{self.total} · {status(latest, speed, words, 60)}{left}")
        elif now - self.spoke >= LINE_EVERY or step == self.total:
            self.spoke = now
            self.say(f"step {step}/{self.total} · {status(latest, speed, words)}{left}")

    def close(self) -> None:
        """Take the bar away: a terminal without one has its cursor back."""
        if self.line is not None:
            self.line.end()
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def status(losses: Sequence[float], speed: str, words: str, room: int = sys.maxsize) -> str:
    """Losses, speed and the monitor's words in `room` characters, as far as they go.

    The losses of the blocks between are left out first, then the speed, then all losses.
    """
    full = f"loss {'  '.join(f'{value:.4g}' for value in losses)}"
    ends = f"loss {losses[0]:.3g} … {losses[-1]:.3g}" if len(losses) > 2 else full
    choices = ([full, speed, words], [ends, speed, words], [ends, words], [words or ends])
    texts = [" · ".join(filter(None, parts)) for parts in choices]
    return next((text for text in texts if len(text) <= room), texts[-1])


def in_notebook() -> bool:
    """Whether the output goes to a Jupyter notebook."""
    return "ipykernel" in sys.modules and not ErrorStream().isatty()


@contextmanager
def progress(doing: str, total: int, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Shows how far work of more than a second is.

    A bar on a terminal, one line in a notebook, lines that become fewer elsewhere. The time left is by what comes after
    the first part, which also loads, or was done before.
    """
    console, line = Screen(quiet, markup=False), Line() if in_notebook() and not quiet else None
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task, begun, done, due = bar.add_task(doing, total=total), time.monotonic(), 0, 1.0
    first: tuple[float, int] | None = None  # when the first part was done, and how much it was

    def advance(n: int) -> None:
        nonlocal done, due, first
        done += n
        bar.advance(task, n)
        elapsed = time.monotonic() - begun
        first = since, before = first or (elapsed, done)
        if elapsed > due and done:
            due = elapsed + 1 if line is not None else max(LINE_EVERY, 2 * elapsed)
            bar.start()
            left = (elapsed - since) / max(1, done - before) * (total - done)
            said = f"{doing}: {done:,} of {total:,}" + (f" · {clock(left)} left" if done > before else "")
            if line is not None:
                line.show(said)
            elif bar.disable:
                console.print(said)

    try:
        yield advance
    finally:
        if line is not None:
            line.end()
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
