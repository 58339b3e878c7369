"""What people read: tables keep every number, on a narrow terminal too."""

import subprocess
import sys

import pytest

from twinblock.core import console
from twinblock.core.console import Line, Reporter, Screen, print_table, status


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_a_table_wraps_prose_and_cuts_no_number(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    row = {"arm": "GN encoder, no norm in the heads"[:30], **{f"linear {k}": 90.1 + k for k in range(9)}}
    print_table("a title", [{**row, "in words": "every word of this sentence is shown " * 3}])
    shown = capsys.readouterr().out
    for cell in (row["arm"], *(f"linear {k}" for k in range(9)), *(f"{90.1 + k:.1f}" for k in range(9))):
        assert f" {cell} " in shown
    assert shown.count("sentence") == 3
    assert "…" not in shown


def test_work_goes_on_where_nobody_reads_along():
    """As behind `2>&1 | head -1`: the words are lost, the training is not."""
    code = "from twinblock.core.console import Reporter as R; r = R(); [r.say('x' * 999) for _ in '9' * 999]; print(7)"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stderr.close()
        assert process.stdout.read() == b"7\n"
    assert process.returncode == 0


def test_a_status_line_leaves_out_losses_first():
    losses, speed, words = [5.912, 5.5, 5.1, 4.712], "1,234 images/s", "rank 61/128, learning"
    full = status(losses, speed, words)
    assert full == "loss 5.912  5.5  5.1  4.712 · 1,234 images/s · rank 61/128, learning"
    assert status(losses, speed, words, len(full) - 1) == "loss 5.91 … 4.71 · 1,234 images/s · rank 61/128, learning"
    assert status(losses, speed, words, 45) == "loss 5.91 … 4.71 · rank 61/128, learning"
    assert status(losses, speed, words, 30) == words
    assert status([1.0], speed, "", 30) == "loss 1 · 1,234 images/s"


def test_eight_blocks_at_80_columns_keep_step_verdict_and_time(capsys):
    reporter = Reporter()
    reporter.console = Screen(force_terminal=True, width=80, color_system=None)
    reporter.start(30_000, 0, 256)
    reporter.update(12_345, [{"loss": [5.91234] * 8}], "rank 61/128, learning")
    reporter.bar.refresh()
    reporter.close()
    shown = capsys.readouterr().err.replace("\r", "\n").splitlines()
    last = [line for line in shown if "12345" in line][-1]
    assert all(part in last for part in ("step 12345/30000", "rank 61/128, learning", "0:00:0"))
    assert len(last.replace("\x1b[2K", "").rstrip()) <= 80


def test_progress_in_a_notebook_is_one_line(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    reporter = Reporter()
    assert isinstance(reporter.line, Line)
    reporter.start(50, 0, 8)
    for step in range(1, 51):
        reporter.update(step, [{"loss": [1.0 / step]}], "learning")
    reporter.close()
    reporter.say("learned")
    with console.progress("embedding images", 10) as advance:
        for _ in range(10):
            advance(1)
    shown = capsys.readouterr().err
    assert shown.count("\n") == 2 and shown.count("\r") == 50
    assert shown.endswith("\nlearned\n")


def test_the_first_step_says_nothing_of_speed_and_time_left(capsys, monkeypatch):
    """It also loads libraries: 100 s here, and 10 s each later one, of 8 images."""
    seconds = iter([1000.0, 1100.0, 1120.0, 1150.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(seconds))
    reporter = Reporter()
    reporter.start(50, 20, 8)
    for step in (21, 23, 26):
        reporter.update(step, [{"loss": [0.5]}], "learning")
    assert capsys.readouterr().err.splitlines() == [
        "step 21/50 · loss 0.5 · learning",
        "step 23/50 · loss 0.5 · 1 images/s · learning · 4:30 left",
        "step 26/50 · loss 0.5 · 1 images/s · learning · 4:00 left",
    ]


@pytest.mark.parametrize(
    ("seconds", "lines"),
    [((100, 250), ["40 of 200", "50 of 200 · 37:30 left"]), ((0, 20), ["50 of 200 · 5:00 left"])],
)
def test_the_time_left_is_that_of_later_parts(capsys, monkeypatch, seconds, lines):
    """Forty images while libraries are loaded, or at once, as they were done before; then ten in 150 or in 20 s."""
    clock = iter([0.0, *map(float, seconds)])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.progress("embedding", 200) as advance:
        for count in (40, 10):
            advance(count)
    assert capsys.readouterr().err.splitlines() == [f"embedding: {line}" for line in lines]


def test_prose_ends_its_lines_between_words_on_a_terminal_alone(capsys):
    words = "not collapsed: " + "/a/path " * 30 + "[bold]"
    for terminal, lines in ((True, 4), (False, 1)):
        reporter = Reporter()
        reporter.console = Screen(force_terminal=terminal, width=80, color_system=None)
        reporter.tell(words)
        shown = capsys.readouterr().err.splitlines()
        assert len(shown) == lines and " ".join(line.rstrip() for line in shown) == words
        assert lines == 1 or max(map(len, shown)) <= 80


def test_a_stream_that_is_closed_takes_words_and_drops_them(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    Reporter().say("unseen")
