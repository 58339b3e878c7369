"""The processes of a run: how many there are, and the signals that ask them to stop."""

import inspect
import os
import signal as signals
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from twinblock.config.schema import Config
from twinblock.core.errors import InputError

PATIENCE = 30.0  # seconds in which a run should come to its stop


def make_fabric() -> Fabric:
    """One process, or as many as torchrun or SLURM's srun started."""
    if "WORLD_SIZE" not in os.environ:
        os.environ |= _from_srun(os.environ)
    world, local = _counts(os.environ)
    # each process keeps its own buffers: synchronised norms agree by themselves, others are local by definition
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # from torch 2.15 on
    strategy = DDPStrategy(**{name: False}) if world > 1 else "auto"  # pyright: ignore[reportArgumentType]
    # named, so that a SLURM job's variables do not make Fabric wait for tasks that nobody started
    started_by = TorchElasticEnvironment() if world > 1 else LightningEnvironment()
    fabric = Fabric(
        accelerator="auto", devices=local, num_nodes=world // local, strategy=strategy, plugins=[started_by]
    )
    fabric.launch()
    return fabric


def share(config: Config, images: int, world: int) -> int:
    """Images of each process in a batch. Raises InputError where they cannot be shared out."""
    batch = config.data.batch
    if images < batch:
        raise InputError(f"{images} images are fewer than a batch: set data.batch to at most {images}")
    if batch % world:
        raise InputError(f"data.batch={batch} cannot be split over {world} processes; use a multiple of {world}")
    alone = [name for name in config.norms_of_batches() if "sync" not in name] if batch == world else []
    if alone:
        raise InputError(
            f"data.batch={batch} over {world} processes is one image each, which has no batch statistics "
            f"({alone[0]}): raise data.batch, use fewer processes, or norm sync"
        )
    return batch // world


def _counts(given: Mapping[str, str]) -> tuple[int, int]:
    """Processes in all and on this machine. Raises InputError for a part of torchrun's variables."""
    numbers = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK")
    if given.get("WORLD_SIZE", "1") == "1":
        return 1, 1
    wrong = [name for name in (*numbers, "MASTER_PORT") if not given.get(name, "").isdecimal()]
    wrong += ["MASTER_ADDR"] if not given.get("MASTER_ADDR") else []
    if wrong:
        raise InputError(
            f"WORLD_SIZE={given['WORLD_SIZE']} is set, but {', '.join(wrong)} are not, as torchrun sets them: start "
            "with torchrun, or unset WORLD_SIZE"
        )
    return int(given["WORLD_SIZE"]), int(given["LOCAL_WORLD_SIZE"])


def _from_srun(given: Mapping[str, str]) -> dict[str, str]:
    """torchrun's variables for a task that srun started, one of several; else none."""
    world, nodes = (int(given.get(f"SLURM_STEP_NUM_{what}", 1)) for what in ("TASKS", "NODES"))
    if world == 1:
        return {}
    if world % nodes:
        raise InputError(f"srun started {world} tasks on {nodes} machines: use --ntasks-per-node, the same on each")
    port = 15_000 + int(given.get("SLURM_JOB_ID", "0")[-4:])  # the same for all tasks, another for another job
    return {
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world // nodes),
        "RANK": given["SLURM_PROCID"],
        "LOCAL_RANK": given["SLURM_LOCALID"],
        "GROUP_RANK": given["SLURM_NODEID"],
        "MASTER_ADDR": SLURMEnvironment.resolve_root_node_address(given["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": given.get("MASTER_PORT", str(port)),
    }


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """The signals that ask for a stop (Ctrl-C, SIGTERM, SIGUSR1), as they come.

    A second Ctrl-C stops at once; so does any of them half a minute after the first: something hangs then, such as
    another process of the run. Sooner it may be the same one, told by a launcher once more.
    """
    received: list[int] = []
    began = 0.0

    def note(signum: int, frame: Any) -> None:
        nonlocal began
        if received and (signum == signals.SIGINT or time.monotonic() - began > PATIENCE):
            signals.signal(signum, signals.SIG_DFL if signum != signals.SIGINT else signals.default_int_handler)
            signals.raise_signal(signum)
        began = began if received else time.monotonic()
        received.append(signum)

    names = (signals.SIGINT, signals.SIGTERM, signals.SIGUSR1)
    try:
        old = {name: signals.signal(name, note) for name in names}
    except ValueError:  # not the main thread: the caller's program keeps its own handlers
        old = {}
    try:
        yield received
    finally:
        for name, handler in old.items():
            signals.signal(name, handler)
