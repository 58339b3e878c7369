"""The processes of a run: how many there are, and the signals that ask them to stop."""

import inspect
import os
import re
import signal as signals
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch.nn.parallel import DistributedDataParallel

from twinblock.config.schema import Config
from twinblock.core.console import say_last
from twinblock.core.distributed import meet
from twinblock.core.errors import InputError, Interrupted

PATIENCE = 30.0  # seconds in which a run should come to its stop
SHORT, GRACE = 1.4, 0.4  # seconds in which a step should end after Ctrl-C, and in which Python should after that
TOGETHER = 60.0  # seconds between the first and the last process that start
NUMBERS = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK")
ends_process = False  # whether the run may end the process: the command line's, never a notebook's
READ = (*NUMBERS, "GROUP_RANK", "NODE_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # by Lightning, as numbers


def make_fabric():
    """Lightning Fabric for one process, or for as many as torchrun or SLURM's srun started.

    Raises InputError, within seconds, for variables that no launcher sets so, and where the others do not come.
    """
    _need_numbers(os.environ)  # first: Lightning reads them when it is imported
    of_srun = _from_srun(os.environ) if "WORLD_SIZE" not in os.environ else {}
    added = of_srun.keys() - os.environ.keys()
    os.environ |= of_srun
    try:
        return _launched(*_counts(os.environ))
    except BaseException:
        for name in added:
            os.environ.pop(name, None)
        raise


def _launched(world: int, local: int):
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
    from lightning_fabric.strategies.ddp import DDPStrategy

    # each process keeps its own buffers: synchronised norms agree by themselves, others are local by definition
    parameters = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"  # from torch 2.15 on
    # gradients lie in the buckets that processes exchange: no copy into them, and none of them twice
    how: dict[str, Any] = {name: False, "gradient_as_bucket_view": True}
    strategy = DDPStrategy(**how) if world > 1 else "auto"
    # named, so that a SLURM job's variables do not make Fabric wait for tasks that nobody started
    started_by = TorchElasticEnvironment() if world > 1 else LightningEnvironment()
    fabric = Fabric(
        accelerator="auto", devices=local, num_nodes=world // local, strategy=strategy, plugins=[started_by]
    )
    here = (os.environ.get("MASTER_ADDR", ""), int(os.environ.get("MASTER_PORT", 0)), int(os.environ.get("RANK", 0)))
    # torchrun's own process keeps the place of meeting, and has checked it
    alone = world == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    place = None if alone else meet(*here, world, TOGETHER)  # held until they are a group
    fabric.launch()
    del place
    return fabric


def share(config: Config, world: int) -> int:
    """Images of each process in a batch. Raises InputError where they cannot be shared out."""
    batch = config.data.batch
    if batch % world:
        raise InputError(f"data.batch={batch} cannot be split over {world} processes; use a multiple of {world}")
    alone = [name for name in config.norms_of_batches() if "sync" not in name] if batch == world else []
    if alone:
        raise InputError(
            f"data.batch={batch} over {world} processes is one image each, which has no batch statistics "
            f"({alone[0]}): raise data.batch, use fewer processes, or norm sync"
        )
    return batch // world


def _need_numbers(given: Mapping[str, str]) -> None:
    wrong = [f"{name}={given[name]!r}" for name in READ if name in given and _number(given[name]) is None]
    if wrong:
        raise InputError(f"{', '.join(wrong)}: no whole number, as launchers set it; unset it, or start with torchrun")


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\d{1,9}", text, re.ASCII) else None


def _counts(given: Mapping[str, str]) -> tuple[int, int]:
    """Processes in all and on this machine. Raises InputError for what torchrun would not have set."""
    if "WORLD_SIZE" not in given:
        if given.get("RANK", "0") != "0":
            raise InputError(f"RANK={given['RANK']} is set, but WORLD_SIZE is not; start with torchrun, or unset RANK")
        return 1, 1
    world, local, rank, local_rank = (_number(given.get(name, "")) for name in NUMBERS)
    assert world is not None, "checked before"
    port = _number(given.get("MASTER_PORT", ""))
    wrong = ""
    if world == 0:
        wrong = "a run has at least one process"
    elif local is not None and (local == 0 or world % local):
        wrong = f"LOCAL_WORLD_SIZE={local} does not divide it: every machine needs the same number of processes"
    elif rank is not None and rank >= world:
        wrong = f"RANK={rank} is beyond it: ranks count from 0 to {world - 1}"
    elif local is not None and local_rank is not None and local_rank >= local:
        wrong = f"LOCAL_RANK={local_rank} is beyond LOCAL_WORLD_SIZE={local}: local ranks count from 0"
    elif world > 1:
        needed = (*NUMBERS, "MASTER_ADDR", "MASTER_PORT")
        if missing := [name for name in needed if not given.get(name)]:
            wrong = f"{', '.join(missing)} not"
        elif port is None or not 0 < port < 65_536:
            wrong = f"MASTER_PORT={given['MASTER_PORT']} is no port: ports count from 1 to 65535"
    if wrong:
        raise InputError(f"WORLD_SIZE={world} is set, but {wrong}; start with torchrun, or unset WORLD_SIZE")
    return (world, local or 1) if world > 1 else (1, 1)


def _from_srun(given: Mapping[str, str]) -> dict[str, str]:
    """torchrun's variables for a task that srun started, one of several; else none."""
    world, nodes = (_of_srun(given, f"SLURM_STEP_NUM_{what}", "1") for what in ("TASKS", "NODES"))
    if world <= 1 or _in_a_shell(given):
        return {}
    if nodes == 0 or world % nodes:
        raise InputError(f"srun started {world} tasks on {nodes} machines: use --ntasks-per-node, the same on each")
    ranks = [_of_srun(given, f"SLURM_{name}") for name in ("PROCID", "LOCALID", "NODEID")]
    machines = re.sub(r"\[(\w*)[^]]*\]", r"\1", given.get("SLURM_STEP_NODELIST", "")).replace(",", " ").split()
    if not machines:
        raise InputError(f"SLURM_STEP_NUM_TASKS={world}, but SLURM_STEP_NODELIST names no machine; start with srun")
    port = 15_000 + _of_srun(given, "SLURM_JOB_ID", "0") % 10_000  # the same for all tasks, another for another job
    return {
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world // nodes),
        **dict(zip(("RANK", "LOCAL_RANK", "GROUP_RANK"), map(str, ranks), strict=True)),
        "MASTER_ADDR": machines[0],
        "MASTER_PORT": given.get("MASTER_PORT", str(port)),
    }


def _of_srun(given: Mapping[str, str], name: str, default: str = "") -> int:
    text = given.get(name, default)
    if (number := _number(text)) is None:
        raise InputError(
            f"{name}={text!r} is no whole number, as srun sets it: start with srun, or unset SLURM_STEP_NUM_TASKS"
        )
    return number


def _in_a_shell(given: Mapping[str, str]) -> bool:
    """Whether this was started in the shell of `srun --pty`, which is the only task of its step that runs it.

    A later step started in that shell inherits the variable of the terminal, but has none.
    """
    shell = "SLURM_PTY_PORT" in given and given.get("SLURM_TASK_PID") != str(os.getpid())
    return shell and (given.get("SLURM_STEP_ID", "0") == "0" or os.isatty(0))


class Stop(list[int]):
    """The signals that asked a run to stop, as they came."""

    saving = False

    def asked(self) -> bool:
        """Whether one came; asked between two steps. The run then saves its state, however long that takes."""
        self.saving = bool(self)
        return self.saving


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """The signals that ask for a stop: Ctrl-C, SIGTERM, SIGUSR1, and SIGHUP of a terminal that is closed.

    The run ends after its step. Ctrl-C does not wait for a long one: after 1.5 seconds, or at a second Ctrl-C, the run
    ends within its step, with Interrupted, and its last checkpoint is kept. A second signal of another kind half a
    minute after the first ends the process: something hangs then, such as another process of the run. Sooner it may be
    the same one, sent by a launcher once more.
    """
    stop, began, at_once = Stop(), 0.0, threading.Event()

    def note(signum: int, frame: Any) -> None:
        nonlocal began
        if at_once.is_set() or (signum == signals.SIGINT and signum in stop):
            raise Interrupted(signals.SIGINT, None)
        if stop and time.monotonic() - began > PATIENCE:
            signals.signal(signum, signals.SIG_DFL)
            signals.raise_signal(signum)
        began = began if stop else time.monotonic()
        stop.append(signum)

    names = [signals.SIGINT, signals.SIGTERM, signals.SIGUSR1]
    names += [signals.SIGHUP] if signals.getsignal(signals.SIGHUP) != signals.SIG_IGN else []  # as under nohup
    try:
        old = {name: signals.signal(name, note) for name in names}
    except ValueError:  # not the main thread: the caller's program keeps its own handlers
        yield stop
        return
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    over, heard = threading.Event(), signals.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(receiver, stop, at_once, over), daemon=True)
    watcher.start()
    try:
        yield stop
    finally:
        over.set()
        signals.set_wakeup_fd(heard)
        for name, handler in old.items():
            signals.signal(name, handler)
        sender.close()
        watcher.join()
        receiver.close()


def _watch(receiver: socket.socket, stop: Stop, at_once: threading.Event, over: threading.Event) -> None:
    """See to it that Ctrl-C ends a long step.

    Python's own handler runs only between two calls of torch, and a backward pass is one call. The command line ends
    its process even then; another program gets Interrupted when the call returns.
    """
    if not _ctrl_c(receiver):
        return
    receiver.settimeout(SHORT)
    again = _ctrl_c(receiver)
    if not again and (stop.saving or over.is_set()):
        receiver.settimeout(None)
        again = _ctrl_c(receiver)
    if over.is_set() or (stop.saving and not again):
        return
    at_once.set()
    signals.pthread_kill(threading.main_thread().ident or 0, signals.SIGINT)
    if not over.wait(GRACE) and ends_process:
        say_last(str(Interrupted(signals.SIGINT, None)))
        os._exit(128 + signals.SIGINT)


def _ctrl_c(receiver: socket.socket) -> bool:
    """Wait for Ctrl-C; False where the time is over, or the run."""
    try:
        while got := receiver.recv(1):
            if got[0] == signals.SIGINT:
                return True
    except TimeoutError:
        pass
    return False
