"""Features by several processes on one machine: each computes some of the parts that a run keeps."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO, Any

import torch

from twinblock.core.errors import InputError, one_line

Started = tuple[subprocess.Popen, IO[bytes]]  # a process, and the file that it writes its errors to


def in_processes(
    jobs: Sequence[Mapping[str, Any]],
    advance: Callable[[int], None],
    note: Callable[[int], None] = lambda start: None,
) -> None:
    """Do each job, the fields of `twinblock.evaluation.worker`, in a process of its own; `advance` is told of images,
    `note` of the first image of each part that is written, one at a time.

    They share the threads and the GPUs of this one. Raises InputError, once all have ended, where one of them fails;
    what they have kept stays.
    """
    told = threading.Lock(), advance, note
    with _started(jobs) as started:
        readers = [threading.Thread(target=_read, args=(process, *told), daemon=True) for process, _ in started]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        for process, errors in started:
            if process.wait():
                errors.seek(0)
                lines = errors.read().decode("utf-8", "replace").strip().splitlines() or [f"code {process.returncode}"]
                why = one_line(lines[-1].removeprefix("error: "))
                raise InputError(f"a process ended early ({why}); what is done is kept: give the same command again")


@contextmanager
def _started(jobs: Sequence[Mapping[str, Any]]) -> Iterator[list[Started]]:
    """Processes that end with this block, however it ends."""
    started: list[Started] = []
    with ExitStack() as files:
        try:
            for rank, job in enumerate(jobs):
                errors, pipe = files.enter_context(tempfile.TemporaryFile()), subprocess.PIPE
                command, given = [sys.executable, "-m", "twinblock.evaluation.worker"], _environment(rank, len(jobs))
                process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, env=given, text=True)
                started.append((process, errors))
                assert process.stdin is not None
                process.stdin.write(json.dumps(job))
                process.stdin.close()
            yield started
        finally:
            for process, _ in started:
                process.kill()
                process.wait()
                assert process.stdout is not None
                process.stdout.close()


def _environment(rank: int, count: int) -> dict[str, str]:
    given = {**os.environ, "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // count))}
    if gpus := torch.cuda.device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        given["CUDA_VISIBLE_DEVICES"] = (visible if visible != [""] else [*map(str, range(gpus))])[rank % gpus]
    return given


def _read(
    process: subprocess.Popen, lock: threading.Lock, advance: Callable[[int], None], note: Callable[[int], None]
) -> None:
    """Each line that a process writes is a number of images that are done, or says that a part is written."""
    assert process.stdout is not None
    for line in process.stdout:
        word, _, start = line.strip().partition(" ")
        with lock:
            if word.isdecimal():
                advance(int(word))
            elif word == "part" and start.isdecimal():
                note(int(start))
