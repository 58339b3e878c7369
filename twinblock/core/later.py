"""Work that is done while other work goes on."""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

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
