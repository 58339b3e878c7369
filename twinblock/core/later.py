"""Work that is done while other work goes on."""

import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

log = logging.getLogger(__name__)


class Later:
    """One piece of work after the other, in a thread of its own."""

    def __init__(self):
        self._pool, self._work = ThreadPoolExecutor(1), None

    def start(self, work: Callable[[], None]) -> None:
        """Begin, once what was begun before has ended. Raises what that raised."""
        self.wait()
        self._work: Future[None] | None = self._pool.submit(work)

    def wait(self) -> None:
        """Until what was begun has ended. Raises what it raised, once."""
        work, self._work = self._work, None
        if work is not None:
            work.result()

    def close(self) -> None:
        """The same where something else went wrong, and is told first."""
        try:
            self.wait()
        except Exception as error:
            log.warning(str(error))


class Daemons:
    """Calls in so many threads, begun in order, which neither an interrupt nor the end of the program waits for."""

    def __init__(self, count: int):
        self._count = count
        self._begin()
        os.register_at_fork(after_in_child=self._begin)  # a child has none of the threads

    def _begin(self) -> None:
        self._lock, self._calls, self._threads = threading.Lock(), SimpleQueue(), 0

    def call(self, work: Callable[..., Any], *given: Any) -> Future:
        """What comes of `work(*given)`, or what it raises."""
        future: Future = Future()
        self._calls.put((future, work, given))
        with self._lock:
            while self._threads < self._count:
                threading.Thread(target=self._run, daemon=True).start()
                self._threads += 1
        return future

    def _run(self) -> None:
        while True:
            future, work, given = self._calls.get()
            try:
                future.set_result(work(*given))
            except BaseException as error:
                future.set_exception(error)
            del future, work, given  # not held until the next call
