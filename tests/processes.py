"""Processes that train together in a test: one that waits for the others for ever fails it, and outlives nothing."""

import time
from collections.abc import Callable
from typing import Any

from torch import multiprocessing

LIMIT = 180.0  # seconds for a run of a few steps, which takes a tenth of it


def together(work: Callable[..., None], given: tuple[Any, ...], count: int, start: str = "fork", limit: float = LIMIT):
    """Call `work(rank, *given)` in so many processes and wait for all.

    Raises what the first of them to fail raises, and AssertionError where one still runs after `limit` seconds.
    """
    context = multiprocessing.start_processes(work, given, nprocs=count, join=False, daemon=True, start_method=start)
    assert context is not None
    until = time.monotonic() + limit
    try:
        while not context.join(timeout=max(0.0, until - time.monotonic())):
            late = [rank for rank, process in enumerate(context.processes) if process.is_alive()]
            assert time.monotonic() < until, f"processes {late} of {count} still run after {limit:.0f} s"
    finally:
        for process in context.processes:
            process.kill()
            process.join()


def apart(work: Callable[..., Any], *given: Any) -> Any:
    """What a function gives that must not be called in this process, such as one after which autograd cannot fork."""
    queue = multiprocessing.get_context("fork").SimpleQueue()
    together(_put, (queue, work, given), 1)
    return queue.get()


def _put(rank: int, queue: Any, work: Callable[..., Any], given: tuple[Any, ...]) -> None:
    queue.put(work(*given))
