"""Where and with what a run ran: `environment.json`, an entry for each start of it."""

import json
import platform
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from twinblock.core.errors import InputError
from twinblock.core.version import __version__
from twinblock.runs.run import Run

FILE = "environment.json"


def environment(device: torch.device, processes: int) -> dict[str, Any]:
    """Versions, commit, machine and device of this process. The commit is that of a checkout; else None."""
    return {
        "twinblock": __version__,
        "commit": _commit(Path(__file__).parents[2]),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "host": socket.gethostname(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": processes,
    }


@contextmanager
def recorded(run: Run, facts: Mapping[str, Any], step: Callable[[], int]) -> Iterator[None]:
    """Note a start of a run: the facts, when it began, from which step to which it came, and its seconds.

    `seconds` and `to_step` are missing of a start that was killed.
    """
    starts = starts_of(run)
    entry = {"began": datetime.now(UTC).isoformat(timespec="seconds"), **facts, "from_step": step()}
    run.write_json(FILE, {"starts": [*starts, entry]})
    began = time.monotonic()
    try:
        yield
    finally:
        entry |= {"to_step": step(), "seconds": round(time.monotonic() - began, 1)}
        with suppress(InputError):  # what ends the run is said, not this
            run.write_json(FILE, {"starts": [*starts, entry]})


def starts_of(run: Run) -> list[dict[str, Any]]:
    """The starts of a run so far; none where the file is missing or damaged."""
    try:
        starts = json.loads((run.path / FILE).read_text(encoding="utf-8"))["starts"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    return starts if isinstance(starts, list) else []


def _commit(checkout: Path) -> str | None:
    if not (checkout / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
