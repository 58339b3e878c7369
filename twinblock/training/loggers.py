"""TensorBoard, Weights & Biases and MLflow beside `metrics.jsonl`, for those who look there.

A logger is a function of numbers by name and a step. Each is imported only when it is asked for.
"""

import atexit
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from twinblock.core.errors import InputError, first_line
from twinblock.core.seeding import hashed

Logger = Literal["tensorboard", "wandb", "mlflow"]
Log = Callable[[Mapping[str, float], int], None]  # numbers by name, step


def make_loggers(names: Sequence[Logger], path: Path, again_from: int | None = None) -> list[Log]:
    """One function for each logger of the run at `path`. Raises InputError where one cannot start.

    `again_from`: the step from which on all numbers come once more; those of a killed start are dropped.
    """
    makers = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}
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
    values = {f"{name}/learner {i}": value for name in ("loss", "lr") for i, value in enumerate(row.get(name, ()), 1)}
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


def _mlflow(path: Path, again_from: int | None) -> Log:
    """To MLFLOW_TRACKING_URI, or without it to `mlflow.db` in the run, which needs no server."""
    from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]
    from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

    for talkative in ("mlflow", "alembic"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{path.resolve() / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("twinblock")
    where = client.create_experiment("twinblock") if experiment is None else experiment.experiment_id
    # a run that goes on is the same run there, and passes over steps that it has
    mark = f"{hashed(str(path.resolve())):x}"
    known = client.search_runs([where], f"tags.twinblock = '{mark}'")
    run = known[0] if known else client.create_run(where, tags={"twinblock": mark}, run_name=path.name)
    number, names = run.info.run_id, run.data.metrics
    last = max((m.step for name in names for m in client.get_metric_history(number, name)), default=-1)
    client.update_run(number, status="RUNNING")
    atexit.register(_ended, client, number)

    def log(numbers: Mapping[str, float], step: int) -> None:
        if step > last:
            now = round(time.time() * 1000)
            client.log_batch(number, [Metric(name, float(value), now, step) for name, value in numbers.items()])

    return log


def _ended(client: Any, number: str) -> None:
    with suppress(Exception):  # a service has errors of its own
        client.set_terminated(number)


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
