"""TensorBoard and Weights & Biases beside `metrics.jsonl`, for those who look there; imported only when asked for."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from twinblock.core.errors import InputError, first_line
from twinblock.core.seeding import hashed

Logger = Literal["tensorboard", "wandb"]
Log = Callable[[Mapping[str, float], int], None]  # numbers by name, step


def make_loggers(names: Sequence[Logger], path: Path, again_from: int | None = None) -> list[Log]:
    """One function for each logger of the run at `path`. Raises InputError where one cannot start.

    `again_from`: the step from which on all numbers come once more; those of a killed start are dropped.
    """
    makers = {"tensorboard": _tensorboard, "wandb": _wandb}
    loggers = []
    for name in names:
        try:
            loggers.append(makers[name](path, again_from))
        except ImportError as error:
            raise InputError(f"train.loggers: {error.name} is not installed; pip install {error.name}") from None
        except Exception as error:  # a service has errors of its own
            raise InputError(
                f"train.loggers: {name} cannot start ({_reason(error)}); mend that, or go on without: train.loggers=[]"
            ) from None
    return loggers


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """A row of `metrics.jsonl` as numbers by name: `loss/learner 1`, `encoder effective_rank/learner 1`."""
    values = {f"loss/learner {i}": value for i, value in enumerate(row.get("loss", ()), start=1)}
    for i, measurement in enumerate(row.get("diagnosis", ()), start=1):
        for part, numbers in measurement.items():
            if isinstance(numbers, Mapping):
                values |= {f"{part} {name}/learner {i}": value for name, value in numbers.items()}
            else:
                values[f"{part}/learner {i}"] = numbers
    return values


def _tensorboard(path: Path, again_from: int | None) -> Log:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(path / "tensorboard"), purge_step=again_from)

    def log(numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return log


def _wandb(path: Path, again_from: int | None) -> Log:
    import wandb  # pyright: ignore[reportMissingImports]

    # a run that goes on is the same run there, and passes over steps that it has
    run = wandb.init(dir=str(path), name=path.name, id=f"{hashed(str(path.resolve())):x}", resume="allow")
    return lambda numbers, step: run.log(dict(numbers), step=step)


def log_rows(loggers: list[Log], rows: Iterable[Mapping[str, Any]], warn: Callable[[str], None]) -> None:
    """Give the rows of the metrics to loggers; one that cannot write is let go: no training depends on it."""
    for log in list(loggers):
        try:
            for row in rows:
                log(scalars(row), row["step"])
        except Exception as error:  # a service has errors of its own
            loggers.remove(log)
            warn(f"a logger cannot write ({_reason(error)}); it gets no more numbers")


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or first_line(error)
