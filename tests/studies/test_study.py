"""What studies share: an arm is done once, a failed one stops no other, and no worker outlives its study."""

import fcntl
import json
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest

from twinblock.core.errors import InputError, Interrupted
from twinblock.studies.study import Arm, Options, carry_out, folder, publish, summary

SMALL = ("data.batch=64", "encoder.width=8")


def measure(run):
    return {"linear %": 50.0 + run.config.train.seed}


def test_arms_are_measured_once_and_a_failed_one_gives_its_reason(tmp_path):
    diverging = ("optim.lr=1e9", "optim.warmup=0epochs", "train.length=30steps")
    arms = [Arm("good", "demo", ("train.length=2steps",)), Arm("bad", "demo", diverging)]
    options = Options(tmp_path, 2, SMALL)
    rows = carry_out(arms, measure, options)
    assert [(row["arm"], row["seed"], row.get("linear %")) for row in rows] == [
        ("good", 0, 50.0),
        ("good", 1, 51.0),
        ("bad", 0, None),
        ("bad", 1, None),
    ]
    assert "training diverged" in rows[2]["failed"]
    kept = folder("good", 1, options) / "measured.json"
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "linear %": 99.0}))  # a second look would be noticed
    assert [row["linear %"] for row in carry_out(arms[:1], measure, options)] == [50.0, 99.0]
    with pytest.raises(InputError, match=r"good-0 holds a finished run with another config \(train\.length"):
        carry_out([Arm("good", "demo", ("train.length=3steps",))], measure, options)
    good, bad = summary(rows)
    assert good == {"arm": "good", "linear %": "50.5 ± 0.7"}
    assert bad["linear %"] == rows[2]["failed"]


def test_an_interrupted_arm_can_say_so_to_its_study():
    ended = pickle.loads(pickle.dumps(Interrupted(15, 7)))
    assert (ended.code, str(ended)) == (143, str(Interrupted(15, 7)))


def test_workers_end_with_a_study_that_is_killed(tmp_path):
    """Seen by the lock of a run in training: it is free once its worker is gone, and the same command can go on."""
    command = [sys.executable, "-m", "twinblock", "reproduce", "longtail", f"out={tmp_path}", "seeds=1", *SMALL]
    study = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait(lambda: any(map(in_training, tmp_path.iterdir())), 600)
        begun = [run for run in tmp_path.iterdir() if in_training(run)]
    finally:
        study.kill()
        study.wait()
    wait(lambda: not any(map(in_training, begun)), 120)


def in_training(run: Path) -> bool:
    if not (run / "config.yaml").exists():
        return False
    with open(run / ".lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_the_table_says_how_long_was_trained(tmp_path, capsys):
    rows = [{"arm": arm, "seed": 0, "length": length, "x": 5.0} for arm, length in (("a", "2epochs"), ("b", "2epochs"))]
    publish("Title", rows, tmp_path)
    assert (tmp_path / "table.md").read_text().startswith("Title; trained for 2epochs\n")
    publish("Title", [*rows, {"arm": "c", "seed": 0, "length": "9steps", "x": 5.0}], tmp_path)
    assert "trained for 2epochs (a, b), 9steps (c)" in (tmp_path / "table.md").read_text()
    assert "| length" not in (tmp_path / "table.md").read_text()


def test_a_column_has_one_number_of_decimals():
    rows = [
        {"arm": arm, "seed": seed, "gap": gap, "cosine": cosine}
        for arm, gaps in {"a": (0.0, 0.0), "b": (-12.5, 12.9)}.items()
        for seed, (gap, cosine) in enumerate(zip(gaps, (0.5, 0.9), strict=True))
    ]
    assert [line["gap"] for line in summary(rows)] == ["0.0 ± 0.0", "0.2 ± 18.0"]
    assert [line["cosine"] for line in summary(rows)] == ["0.700 ± 0.283"] * 2


def wait(until, seconds):
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, f"waited {seconds} s"
        time.sleep(0.1)
