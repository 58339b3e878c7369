"""The command line: argument plumbing, nothing else."""

import errno
import os
import sys

from twinblock.cli import begin, measure, use
from twinblock.cli.app import app
from twinblock.core.console import say_last
from twinblock.core.errors import Collapsed, InputError, Interrupted, one_line

__all__ = ["app", "begin", "main", "measure", "use"]

UNREAD = 128 + 13  # the exit code of a command whose reader has left, as of one that SIGPIPE ends


def main() -> None:
    """Run the command line.

    Exit codes: 0 done, 2 wrong input, 3 collapsed or diverged, 128 + n ended by signal n (Ctrl-C: 130; 141: whoever
    read the output has left).
    """
    try:
        try:
            app()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except InputError as error:
        print(f"error: {one_line(error, 10_000)}", file=sys.stderr)
        sys.exit(2)
    except (Interrupted, Collapsed) as stop:
        say_last(str(stop))  # all processes of a run stop at the same step; one says so
        sys.exit(stop.code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        _drop_output()
        sys.exit(UNREAD)
    except SystemExit as end:
        sys.exit(UNREAD if end.code == 1 else end.code)  # typer's 1 is for this alone
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        where = error.filename or "where the output goes, or in the temporary folder"
        print(f"error: {error.strerror}: {where}; make room, then give the same command", file=sys.stderr)
        _drop_output()
        sys.exit(2)


def _drop_output() -> None:
    """What is still to be written to the output cannot be."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
