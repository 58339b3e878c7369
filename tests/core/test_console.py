"""What people read: tables keep every number, on a narrow terminal too."""

import subprocess
import sys

import pytest

from twinblock.core.console import print_table


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
