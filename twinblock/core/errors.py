"""The exceptions that the command line turns into one line and an exit code."""


def first_line(error: Exception) -> str:
    """What an exception of others says, short enough to stand in a line of ours."""
    return (str(error).splitlines() or [type(error).__name__])[0][:100]


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
    """The run was asked to stop by a signal and has saved its state; `code` is the exit code for that signal."""

    def __init__(self, signum: int, step: int):
        super().__init__(f"stopped at step {step}, state saved; the same command goes on from there")
        self.code, self.given = 128 + signum, (signum, step)

    def __reduce__(self):  # so that it passes from a worker to its study
        return type(self), self.given
