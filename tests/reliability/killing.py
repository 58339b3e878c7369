"""Runs in forked processes that are really killed: at a step, or at one of the moments of writing a checkpoint."""

import os
import signal
import socket
import traceback
from pathlib import Path

import tiny
import torch

from twinblock import checkpoint
from twinblock.config import Config
from twinblock.distributed import lost_peer

BEREAVED = 3  # exit code of a process that ended because another one did

MOMENTS = ("before the file", "half of the file", "before it has its name", "between the names", "after the names")


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_step(trainer, step: int) -> None:
    take = trainer.train_step

    def train_step(*batch):
        if trainer.step == step:
            kill()
        return take(*batch)

    trainer.train_step = train_step


def kill_while_saving(trainer, step: int, moment: str) -> None:
    """Die while the first checkpoint at or after `step` is written."""
    save_file, replace, names = checkpoint.save_file, os.replace, []

    def half(tensors, path, metadata):
        if trainer.step >= step and moment == "before the file":
            kill()
        save_file(tensors, path, metadata)
        if trainer.step >= step and moment == "half of the file":
            os.truncate(path, os.path.getsize(path) // 2)
            kill()

    def rename(old, new):
        names.append(new)
        if trainer.step < step or Path(new).parent.name != "checkpoint":
            return replace(old, new)
        if moment == "before it has its name" and Path(new).name == checkpoint.FRESH:
            kill()
        replace(old, new)
        if moment == "between the names" and Path(new).name in (checkpoint.PREVIOUS, checkpoint.FRESH):
            kill()
        if moment == "after the names" and Path(new).name == checkpoint.LAST:
            kill()

    checkpoint.save_file, os.replace = half, rename


def train(config: Config, out: Path, rank: int, world: int, port: int, end: tuple[int, str | None] | None) -> None:
    """One process of a run; `end`: the step to die at, and the moment of writing or None."""
    torch.set_num_threads(1)
    if world > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    trainer = tiny.trainer(config, out)
    if end is not None and rank == 0:
        step, moment = end
        kill_at_step(trainer, step) if moment is None else kill_while_saving(trainer, step, moment)
    trainer.resume()
    trainer.fit()
    if rank == 0:
        checkpoint.write(out / "end.safetensors", trainer.state(), {"step": trainer.step})


def in_processes(config: Config, out: Path, world: int = 1, end: tuple[int, str | None] | None = None) -> list[int]:
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
                elif end is None:
                    traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
