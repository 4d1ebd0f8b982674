"""Work of which a fixed number of pieces is under way at any time."""

from __future__ import annotations

import queue
import threading
import time
from typing import Callable, Dict, Generic, List, Optional, Tuple, TypeVar

T = TypeVar("T")

Attempts = Tuple[float, int]  # when the first one began (time.monotonic()), how many

BEAT = 1.0  # seconds between two signs of life, at most


class Ticket:
    """What a piece of work knows: its row, whether it is still wanted, and what it has tried.

    Attributes:
        row: its place in the list.
        cancelled: set once nobody waits for the result any more.
    """

    def __init__(self, row: int, cancelled: threading.Event, begun: Dict[int, Attempts]) -> None:
        self.row = row
        self.cancelled = cancelled
        self._begun = begun

    def begin(self) -> None:
        """Another attempt begins; with the first, its time."""
        start, count = self._begun.get(self.row, (time.monotonic(), 0))
        self._begun[self.row] = (start, count + 1)


class _Board(Generic[T]):
    """What the waiting thread and the workers share."""

    def __init__(self, count: int) -> None:
        self.rows: queue.SimpleQueue[int] = queue.SimpleQueue()
        for row in range(count):
            self.rows.put(row)
        self.outcomes: queue.SimpleQueue[Tuple[int, Optional[T], Optional[BaseException]]] = queue.SimpleQueue()
        self.cancelled = threading.Event()
        self.begun: Dict[int, Attempts] = {}

    def work(self, work: Callable[[Ticket], T]) -> None:
        """Take one row after another until none is left."""
        while not self.cancelled.is_set():
            try:
                row = self.rows.get_nowait()
            except queue.Empty:
                return
            try:
                self.outcomes.put((row, work(Ticket(row, self.cancelled, self.begun)), None))
            except BaseException as error:  # noqa: BLE001 - the waiting thread raises it
                self.outcomes.put((row, None, error))
            self.begun.pop(row, None)

    def overdue(self, limit: float) -> Optional[Tuple[int, int]]:
        """A row whose time has run for more than ``limit`` seconds, and its attempts."""
        now = time.monotonic()
        return next(((row, count) for row, (start, count) in list(self.begun.items()) if now - start > limit), None)


def gather(
    work: Callable[[Ticket], T],
    count: int,
    width: int,
    *,
    done: Callable[[int], None],
    waiting: Callable[[int], None],
    limit: float,
    late: Callable[[int, int], Exception],
) -> List[T]:
    """Results of ``count`` pieces of work in order, of which ``width`` run at any time while there are so many left.

    All callables but ``work`` run in the calling thread. The first error ends it: no further piece is begun, and
    those under way are no longer waited for. Threads are daemons, so that one that hangs in a read cannot keep the
    process alive; those of concurrent.futures can.

    Args:
        done: called with the number of finished pieces after each.
        waiting: called with that number about every second, if there is nothing else to say.
        limit: seconds after which a piece is late, whatever it does; counted from :meth:`Ticket.begin`.
        late: makes the error for a row that is late, of the row and its attempts.

    Raises:
        Exception: of the first piece that failed.
    """
    board: _Board[T] = _Board(count)
    results: Dict[int, T] = {}
    try:
        for _ in range(min(width, count)):
            threading.Thread(target=board.work, args=(work,), daemon=True).start()
        while len(results) < count:
            try:
                row, result, error = board.outcomes.get(timeout=BEAT)
            except queue.Empty:
                waiting(len(results))
            else:
                if error is not None:
                    raise error
                results[row] = result  # type: ignore[assignment]  # None only if T is
                done(len(results))
            overdue = board.overdue(limit)
            if overdue is not None:
                raise late(*overdue)
    finally:
        board.cancelled.set()
    return [results[row] for row in range(count)]
