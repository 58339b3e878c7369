"""How many processes a run has: torchrun's variables, srun's, or one."""

import os
import signal as signals
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import tiny
import torch
from processes import together

from twinblock.core import distributed
from twinblock.core.errors import InputError
from twinblock.training import launch
from twinblock.training.finish import unused
from twinblock.training.launch import _from_srun, make_fabric

TASK = {
    "SLURM_JOB_ID": "7781234",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_PROCID": "6",
    "SLURM_LOCALID": "2",
    "SLURM_NODEID": "1",
}


def test_a_task_of_srun_is_a_process_of_the_run():
    assert _from_srun(TASK) == {
        "WORLD_SIZE": "8",
        "LOCAL_WORLD_SIZE": "4",
        "RANK": "6",
        "LOCAL_RANK": "2",
        "GROUP_RANK": "1",
        "MASTER_ADDR": "node07",
        "MASTER_PORT": "16234",
    }
    with pytest.raises(InputError, match="--ntasks-per-node"):
        _from_srun(TASK | {"SLURM_STEP_NUM_TASKS": "7"})


def test_a_job_of_many_tasks_without_srun_is_one_process(monkeypatch):
    """The script of `sbatch --ntasks=8` itself, or a shell in an allocation: there is nobody to wait for."""
    for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"):
        monkeypatch.setenv(name, TASK[name])
    assert _from_srun(os.environ) == {}
    assert make_fabric().world_size == 1


def task(rank: int, port: int, folder) -> None:
    os.environ |= TASK | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1", "MASTER_PORT": str(port)}
    os.environ |= {"SLURM_STEP_NODELIST": "localhost", "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
    os.environ |= {"SLURM_NODEID": "0"}
    fabric = make_fabric()
    ranks = fabric.all_gather(torch.tensor(fabric.global_rank)).tolist()
    (folder / str(rank)).write_text(f"{fabric.world_size} {ranks}")
    torch.distributed.destroy_process_group()


def test_two_tasks_of_srun_find_each_other(tmp_path, free_port):
    together(task, (free_port, tmp_path), 2, "spawn")
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["2 [0, 1]"] * 2


@pytest.mark.parametrize("norm", ["batch", "sync"])
def test_one_image_a_process_has_no_statistics_of_its_own(tmp_path, monkeypatch, norm):
    monkeypatch.setattr("twinblock.training.trainer.world_size", lambda: 16)
    config = tiny.config("simclr", norm=norm)
    if norm == "sync":
        assert tiny.trainer(config, tmp_path / "run").loader.share == 1
    else:
        with pytest.raises(InputError, match=r"16 over 16 processes is one image each.*encoder\.norm=batch.*norm sync"):
            tiny.trainer(config, tmp_path / "run")


def test_a_part_of_the_variables_of_torchrun_is_one_line(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(
        InputError, match="WORLD_SIZE=2 is set, but LOCAL_WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT not"
    ):
        make_fabric()


@pytest.mark.parametrize(("patience", "code"), [(0.0, -signals.SIGTERM), (60.0, 7)])
def test_a_second_signal_ends_a_run_that_hangs(patience, code):
    text = f"""
import os, signal, sys, time
from twinblock.training import launch
launch.PATIENCE = {patience}
with launch.stop_signals() as stop:
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
    assert stop == [signal.SIGTERM] * 2
sys.exit(7)
"""
    assert subprocess.run([sys.executable, "-c", text]).returncode == code


HERE = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
HERE |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29777"}


def launched(monkeypatch, given: dict[str, str]):
    for name in (*HERE, "GROUP_RANK", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as told:
        make_fabric()
    assert "\n" not in str(told.value)
    return str(told.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0 is set, but a run has at least one process"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two': no whole number"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE='-1': no whole number"),
        ({"WORLD_SIZE": "9" * 5000}, "no whole number"),
        ({"RANK": "abc"}, "RANK='abc': no whole number"),
        ({"NODE_RANK": "abc"}, "NODE_RANK='abc': no whole number"),
        ({"SLURM_PROCID": "x"}, "SLURM_PROCID='x': no whole number"),
        ({"RANK": "3"}, "RANK=3 is set, but WORLD_SIZE is not"),
        ({"WORLD_SIZE": "1", "RANK": "5"}, "RANK=5 is beyond it"),
        (HERE | {"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE=0 does not divide it"),
        (HERE | {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "3"}, "LOCAL_WORLD_SIZE=3 does not divide it"),
        (HERE | {"LOCAL_WORLD_SIZE": "4"}, "LOCAL_WORLD_SIZE=4 does not divide it"),
        (HERE | {"RANK": "2"}, "RANK=2 is beyond it: ranks count from 0 to 1"),
        (HERE | {"LOCAL_RANK": "2"}, "LOCAL_RANK=2 is beyond LOCAL_WORLD_SIZE=2"),
        (HERE | {"MASTER_PORT": "99999"}, "MASTER_PORT=99999 is no port"),
        (HERE | {"MASTER_PORT": "0"}, "MASTER_PORT=0 is no port"),
        (HERE | {"MASTER_PORT": "http"}, "MASTER_PORT=http is no port"),
        (HERE | {"MASTER_ADDR": "no.such.host.invalid"}, "no machine of that name is found"),
        (HERE | {"MASTER_ADDR": "a" * 99}, "no machine of that name is found"),
        (TASK | {"SLURM_STEP_NUM_TASKS": "many"}, "SLURM_STEP_NUM_TASKS='many' is no whole number"),
        ({"SLURM_STEP_NUM_TASKS": "8"}, "SLURM_PROCID='' is no whole number"),
        (TASK | {"SLURM_STEP_NUM_NODES": "0"}, "8 tasks on 0 machines"),
        (TASK | {"SLURM_STEP_NODELIST": ""}, "SLURM_STEP_NODELIST names no machine"),
        (TASK | {"SLURM_STEP_NODELIST": "no-such-node[1-2]"}, "MASTER_ADDR=no-such-node1"),
    ],
)
def test_variables_that_no_launcher_sets_so_are_one_line(monkeypatch, given, words):
    assert words in launched(monkeypatch, given)


def test_a_port_that_another_program_has(monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert "Address already in use" in launched(monkeypatch, HERE | {"MASTER_PORT": port})
        monkeypatch.setattr(launch, "TOGETHER", 0.5)  # as another process than the first: nobody answers as torch does
        words = launched(monkeypatch, HERE | {"MASTER_PORT": port, "RANK": "1", "LOCAL_RANK": "1"})
        assert "cannot meet there" in words


@pytest.mark.parametrize(("rank", "words"), [("0", "rank 1 did not come within"), ("1", "(RANK=0) is not there")])
def test_processes_that_never_come_are_not_waited_for(monkeypatch, capsys, free_port, rank, words):
    """As where the variables of a shell in an allocation are those of one of several tasks."""
    monkeypatch.setattr(launch, "TOGETHER", 1.0)
    monkeypatch.setattr(distributed, "SAY_AFTER", 0.2)
    given = HERE | {"RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": str(free_port)}
    assert words in launched(monkeypatch, given)
    assert capsys.readouterr().err.startswith("waiting for the ")


def test_the_shell_of_srun_pty_is_one_process(monkeypatch):
    shell = TASK | {"SLURM_PTY_PORT": "41000", "SLURM_STEP_ID": "0", "SLURM_TASK_PID": str(os.getppid())}
    assert _from_srun(shell) == {}
    assert _from_srun(shell | {"SLURM_TASK_PID": str(os.getpid())}) != {}  # srun --pty python -m twinblock
    assert _from_srun(shell | {"SLURM_STEP_ID": "1"}) != {}  # srun, typed in that shell


def one_of_two(rank: int, given_rank: int, port: int, folder) -> None:
    os.environ |= HERE | {"RANK": str(given_rank), "LOCAL_RANK": str(given_rank), "MASTER_PORT": str(port)}
    launch.TOGETHER = 5.0
    try:
        make_fabric()
    except InputError as error:
        (folder / str(rank)).write_text(str(error))


def test_two_processes_of_one_rank_are_said(tmp_path, free_port):
    together(one_of_both, (free_port, tmp_path), 2, "spawn")
    assert any(
        "two processes have RANK=0" in file.read_text() or "in use" in file.read_text() for file in tmp_path.iterdir()
    )


def one_of_both(rank: int, port: int, folder) -> None:
    one_of_two(rank, 0, port, folder)


LONG = """
import os, signal, sys, threading, time
from twinblock.core.errors import Interrupted
from twinblock.training import launch
launch.ends_process = {ends}
launch.SHORT = 0.2
how = sys.argv[1]
try:
    with launch.stop_signals() as stop:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        if how == "python":
            time.sleep(60)
        elif how == "one call":  # of C, in which no handler of Python's runs
            import hashlib
            hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
        elif how == "short":
            time.sleep(0.15)
            assert stop.asked()
            time.sleep(0.5)  # while the state is saved
except Interrupted as end:
    print(end)
    sys.exit(end.code)
sys.exit(7)
"""


@pytest.mark.parametrize(
    ("how", "ends", "code", "words"),
    [
        ("python", False, 130, "stopped within a step, the last checkpoint is kept"),
        ("one call", True, 130, "stopped within a step, the last checkpoint is kept"),
        ("short", True, 7, ""),
    ],
)
def test_ctrl_c_ends_a_long_step_and_leaves_a_short_one_its_end(how, ends, code, words):
    done = subprocess.run(
        [sys.executable, "-c", LONG.format(ends=ends), how], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, words in done.stdout + done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_ctrl_c_ends_a_run_that_saves():
    text = """
import os, signal, threading, time
from twinblock.core.errors import Interrupted
from twinblock.training import launch
launch.SHORT = 0.1
try:
    with launch.stop_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked()
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        time.sleep(60)
except Interrupted as end:
    raise SystemExit(end.code)
"""
    assert subprocess.run([sys.executable, "-c", text], timeout=300).returncode == 130


def test_signals_that_nohup_ignores_stay_ignored():
    text = """
import os, signal
signal.signal(signal.SIGHUP, signal.SIG_IGN)
from twinblock.training import launch
with launch.stop_signals() as stop:
    os.kill(os.getpid(), signal.SIGHUP)
assert not stop and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
signal.signal(signal.SIGHUP, signal.SIG_DFL)
with launch.stop_signals() as stop:
    os.kill(os.getpid(), signal.SIGHUP)
assert stop == [signal.SIGHUP] and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
"""
    assert subprocess.run([sys.executable, "-c", text]).returncode == 0


@pytest.mark.parametrize(("kind", "world", "said"), [("cuda", 1, True), ("cuda", 4, False), ("cpu", 1, False)])
def test_gpus_that_are_not_used_are_said_with_what_uses_them(monkeypatch, kind, world, said):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    words = unused(SimpleNamespace(device=torch.device(kind), world_size=world))
    assert bool(words) == said == ("--nproc-per-node 4 -m twinblock" in words)
