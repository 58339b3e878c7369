"""What studies share: an arm is done once, a failed one stops no other, and no worker outlives its study."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from twinblock.studies.study import Arm, Options, carry_out, folder, summary

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
    (folder("good", 1, options) / "config.yaml").unlink()  # a second training would be noticed
    assert carry_out(arms[:1], measure, options) == rows[:2]
    good, bad = summary(rows)
    assert good == {"arm": "good", "linear %": "50.5 ± 0.7"}
    assert bad["linear %"] == rows[2]["failed"]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for child processes in /proc")
def test_workers_end_with_a_study_that_is_killed(tmp_path):
    options = (f"out={tmp_path}", "seeds=1", *SMALL)
    command = [sys.executable, "-m", "twinblock", "reproduce", "longtail", *options]
    study = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait(lambda: any((run / "config.yaml").exists() for run in tmp_path.iterdir()), 120)  # a worker trains
        workers = children(study.pid)
    finally:
        study.kill()
        study.wait()
    assert workers
    wait(lambda: not any(map(alive, workers)), 20)


def wait(until, seconds):
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, f"waited {seconds} s"
        time.sleep(0.1)


def children(pid: int) -> list[int]:
    found = [(task / "children").read_text().split() for task in Path(f"/proc/{pid}/task").iterdir()]
    return [int(child) for some in found for child in some]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIG_DFL)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False
