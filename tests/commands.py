"""The command line program, called in this process."""

import sys

from twinblock import cli


def call(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, output and error stream of one command."""
    monkeypatch.setattr(sys, "argv", ["twinblock", *map(str, arguments)])
    try:
        cli.main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err
