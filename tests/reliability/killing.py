"""Runs in forked processes that are really killed: within a step, or at one of the moments of writing."""

import os
import signal
import socket
import traceback
from pathlib import Path

import tiny
import torch

from twinblock.config.schema import Config
from twinblock.core.distributed import lost_peer
from twinblock.runs import checkpoint

BEREAVED = 3  # exit code of a process that ended because another one did

IN_A_STEP = ("before a step", "half of a step")  # the second: one Learner has moved, the others and the queue have not
WRITING = (  # by the first process
    "half of a row of metrics",
    "before the file",
    "half of the file",
    "before it has its name",
    "between the names",
    "after the names",
)

End = tuple[int, str, int]  # the first moment of this kind at or after this step, and the process that dies then


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(trainer, step: int, moment: str) -> None:
    """Make a Trainer die."""
    update, append = trainer.train_step.update, trainer.run.append_metrics
    save_file, replace = checkpoint.save_file, os.replace

    def due(at: str) -> bool:
        return moment == at and trainer.step >= step

    def train_step(*batch):
        if due("before a step"):
            kill()
        return take(*batch)

    def update_one(*which):
        update(*which)
        if due("half of a step"):
            kill()

    def append_metrics(rows):
        append(rows)
        if due("half of a row of metrics"):
            file = trainer.run.path / "metrics.jsonl"
            os.truncate(file, file.stat().st_size - 9)
            kill()

    def save(tensors, path, metadata):
        if due("before the file"):
            kill()
        save_file(tensors, path, metadata)
        if due("half of the file"):
            os.truncate(path, os.path.getsize(path) // 2)
            kill()

    def rename(old, new):
        name = Path(new).name
        if due("before it has its name") and name == checkpoint.FRESH:
            kill()
        replace(old, new)
        if due("between the names") and name == (checkpoint.PREVIOUS if trainer.step > first else checkpoint.FRESH):
            kill()
        if due("after the names") and name == checkpoint.LAST:
            kill()

    first = trainer.save_every  # this checkpoint has none before it
    trainer.train_step.update, trainer.run.append_metrics = update_one, append_metrics
    take = tiny.take_steps_by(trainer, train_step)
    checkpoint.save_file, os.replace = save, rename


def train(config: Config, out: Path, rank: int, world: int, port: int, end: End | None) -> None:
    """One process of a run."""
    torch.set_num_threads(1)
    if world > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    trainer = tiny.trainer(config, out)
    trainer.resume()
    if end is not None and rank == end[2]:
        kill_at(trainer, *end[:2])
    trainer.fit()
    if rank == 0:
        checkpoint.write(out / "end.safetensors", trainer.state(), {"step": trainer.step})


def in_processes(config: Config, out: Path, world: int = 1, end: End | None = None) -> list[int]:
    """Train in forked processes until they end; their exit codes, -9 for one that was killed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                train(config, out, rank, world, port, end)
                code = 0
            except BaseException as error:
                if isinstance(error, RuntimeError) and lost_peer(error):
                    code = BEREAVED
                else:
                    traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
