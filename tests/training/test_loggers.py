"""Other people's loggers get the numbers of metrics.jsonl, and are not imported unless asked for."""

import errno
import subprocess
import sys

import pytest
import tiny

from twinblock.core.console import Reporter
from twinblock.core.errors import InputError
from twinblock.training import loggers
from twinblock.training.loggers import make_loggers, scalars
from twinblock.training.pretrain import pretrain


def test_tensorboard_holds_the_losses(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = tiny.trainer(tiny.config("simclr", "simultaneous", train={"loggers": ["tensorboard"]}), tmp_path / "run")
    trainer.fit()
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    for i in range(4):
        found = [(e.step, e.value) for e in events.Scalars(f"loss/learner {i + 1}")]
        written = [(row["step"], row["loss"][i]) for row in trainer.run.metrics() if "loss" in row]
        assert found == [(step, pytest.approx(loss)) for step, loss in written]
        assert len(found) == 5


@pytest.mark.filterwarnings("ignore")  # of its own libraries
def test_mlflow_holds_every_step_once_after_a_kill(tmp_path, monkeypatch):
    """In a database in the run, without a server."""
    client = pytest.importorskip("mlflow.tracking").MlflowClient
    pytest.importorskip("sqlalchemy")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = tmp_path / "my run"
    run.mkdir()
    for start in (0, 3):
        (log,) = make_loggers(["mlflow"], run, start)
        for step in range(start, start + 5):
            log({"loss/learner 1": float(step), "encoder std/learner 1": float("nan")}, step)
    there = client(f"sqlite:///{run / 'mlflow.db'}")
    (found,) = there.search_runs([there.get_experiment_by_name("twinblock").experiment_id])
    history = there.get_metric_history(found.info.run_id, "loss/learner 1")
    assert found.info.run_name == "my run" and [(m.step, m.value) for m in history] == [(s, s) for s in range(8)]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_is_one_line(monkeypatch, tmp_path, name):
    for module in [m for m in sys.modules if m.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=rf"train\.loggers: {name}\S* is not installed; pip install {name}"):
        make_loggers([name], tmp_path)


@pytest.mark.parametrize(
    ("error", "words"),
    [(OSError(errno.ENOSPC, "No space left on device"), "No space left on device"), (RuntimeError("no key"), "no key")],
)
def test_a_logger_that_cannot_write_does_not_end_the_training(tmp_path, capsys, error, words):
    trainer = tiny.trainer(tiny.config("simclr", "simultaneous"), tmp_path / "run")
    trainer.reporter, told = Reporter(), []

    def full(numbers, step):
        told.append(step)
        raise error

    trainer.loggers = [full]
    trainer.fit()
    assert trainer.step == trainer.plan.total
    assert len(told) == 1
    assert capsys.readouterr().err.count(f"cannot write ({words})") == 1


def test_the_names_of_numbers():
    row = {"step": 3, "loss": [0.5], "lr": [0.1], "diagnosis": [{"encoder": {"std": 1.0}, "knn": 60.0}]}
    numbers = {"loss/learner 1": 0.5, "lr/learner 1": 0.1, "encoder std/learner 1": 1.0, "knn/learner 1": 60.0}
    assert scalars(row) == numbers


def test_nothing_is_imported_unless_asked_for():
    heavy = (
        "tensorboard",
        "wandb",
        "mlflow",
        "timm",
        "torchvision",
    )  # the last two would cost every `twinblock show` a second
    code = f"""
import sys
from twinblock import cli
sys.argv = ["twinblock", "show", "byol"]
try:
    cli.main()
finally:
    assert not any(m in sys.modules for m in {heavy})
"""
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


def test_a_logger_that_cannot_start_is_one_line_and_the_same_folder_trains_without_it(tmp_path, monkeypatch):
    def broken(path, again_from):
        (path / "tensorboard").mkdir()
        raise RuntimeError("no key\nmore")

    monkeypatch.setattr(loggers, "_tensorboard", broken)
    small = ["data.batch=64", "train.length=2steps", "encoder.width=8", "train.precision=fp32"]
    with pytest.raises(InputError, match=r"train\.loggers: tensorboard cannot start \(no key\)"):
        pretrain("simclr", out=tmp_path / "run", quiet=True, overrides=[*small, "train.loggers=[tensorboard]"])
    run = pretrain("simclr", out=tmp_path / "run", quiet=True, overrides=small)
    assert run.finished and run.config.train.loggers == ()


def test_after_a_kill_tensorboard_holds_every_step_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, again_from in ((0, 0), (3, 3), (6, None)):  # the last has no steps left to take
        (log,) = make_loggers(["tensorboard"], tmp_path, again_from)
        for step in range(start, 5 if start == 0 else 6):
            log({"loss": float(start)}, step)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(0, 0), (1, 0), (2, 0), (3, 3), (4, 3), (5, 3)]
