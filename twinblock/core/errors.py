"""The exceptions that the command line turns into one line and an exit code, and the words of messages."""

from collections.abc import Iterable
from difflib import get_close_matches


def one_line(error: BaseException | str, most: int = 120) -> str:
    """What an exception of others says, short enough to stand in a line of ours; its name where it says nothing."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def first_line(error: BaseException) -> str:
    """Only the first line of it: in errors of torch and of services a stack follows."""
    return one_line(str(error).strip().partition("\n")[0]) if str(error).strip() else type(error).__name__


def nearest(word: object, names: Iterable[str], count: int = 1, cutoff: float = 0.6) -> list[str]:
    """The names most like this word, whatever its case, best first; none where all are too different.

    `cutoff`: how alike at least, from 0 to 1 (difflib's ratio).
    """
    by_lower = {name.lower(): name for name in names}
    return [by_lower[name] for name in get_close_matches(str(word).lower(), by_lower, count, cutoff)]


class InputError(ValueError):
    """One line that says what is wrong, where, and what to do. The command line prints it and exits with code 2."""


class Collapsed(Exception):
    """The run has collapsed, was told to stop then (`train.on_collapse=stop`), and has saved its state."""

    code = 3

    def __init__(self, step: int, verdict):
        super().__init__(
            f"stopped at step {step}, state saved: {verdict.headline}: {verdict.evidence}; {verdict.advice}. "
            "The same command with train.on_collapse=warn goes on"
        )


class Interrupted(Exception):
    """The run was asked to stop by a signal; `code` is the exit code for that signal.

    `step`: the step after which its state was saved; None where it was stopped within a long step.
    """

    def __init__(self, signum: int, step: int | None):
        done = (
            "stopped within a step, the last checkpoint is kept"
            if step is None
            else f"stopped at step {step}, state saved"
        )
        super().__init__(f"{done}; the same command goes on from there")
        self.code, self.given = 128 + signum, (signum, step)

    def __reduce__(self):  # so that it passes from a worker to its study
        return type(self), self.given
