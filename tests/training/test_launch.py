"""How many processes a run has: torchrun's variables, srun's, or one."""

import os
import signal as signals
import subprocess
import sys

import pytest
import tiny
import torch
from lightning_fabric import Fabric
from torch import multiprocessing

from twinblock.core.errors import InputError
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
    multiprocessing.spawn(task, (free_port, tmp_path), nprocs=2)
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["2 [0, 1]"] * 2


@pytest.mark.parametrize("norm", ["batch", "sync"])
def test_one_image_a_process_has_no_statistics_of_its_own(tmp_path, monkeypatch, norm):
    monkeypatch.setattr(Fabric, "world_size", 16)
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
    with pytest.raises(InputError, match="WORLD_SIZE=2 is set, but LOCAL_WORLD_SIZE, LOCAL_RANK, MASTER_PORT, MASTER_"):
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
