"""The processes of a run: how many there are, and the signals that ask them to stop."""

import inspect
import os
import signal as signals
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch.nn.parallel import DistributedDataParallel


def make_fabric() -> Fabric:
    """One process, or as many as torchrun or SLURM started."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    # each process keeps its own buffers: synchronised norms agree by themselves, others are local by definition
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # from torch 2.15 on
    strategy = DDPStrategy(**{name: False}) if world > 1 else "auto"  # pyright: ignore[reportArgumentType]
    fabric = Fabric(accelerator="auto", devices=local, num_nodes=world // local, strategy=strategy)
    fabric.launch()
    return fabric


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """The signals that ask for a stop (Ctrl-C, SIGTERM, SIGUSR1), as they come; a second Ctrl-C stops at once."""
    received: list[int] = []

    def note(signum: int, frame: Any) -> None:
        if signum == signals.SIGINT and received:
            raise KeyboardInterrupt
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
