"""Tells workers that requests wait, in the form of the lock that `MqttLink.wait_for` takes.

A worker that reads the connection finds its own request without being woken; the others are woken only for what it
leaves over.
"""

import threading
from collections.abc import Sized


class Arrivals:
    """Stands for "something waits in the queue": "acquired" when it does, "locked" when it does not.

    Args:
        queue: Looked at, never changed.
    """

    def __init__(self, queue: Sized) -> None:
        self._queue = queue
        self._changed = threading.Condition(threading.Lock())
        self._workers: set[int] = set()
        self._waiting = 0
        self._closed = False

    def enrol(self) -> None:
        """Make the calling thread one of the workers."""
        self._workers.add(threading.get_ident())

    def announce(self) -> None:
        """One more request waits: wake a worker, unless the calling one will take it."""
        if self._waiting and (threading.get_ident() not in self._workers or len(self._queue) > 1):
            with self._changed:
                self._changed.notify()

    def wait_for_more(self, timeout_s: float) -> None:
        """Wait until something more arrives, or the time is over."""
        with self._changed:
            self._waiting += 1
            self._changed.wait(timeout_s)
            self._waiting -= 1

    def close(self) -> None:
        """Wake all workers; nothing waits any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def locked(self) -> bool:
        """Whether nothing waits."""
        return not len(self._queue)

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Whether something waits, after at most `timeout` seconds."""
        if len(self._queue) or not blocking or self._closed:
            return bool(len(self._queue))
        with self._changed:
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: len(self._queue) or self._closed, None if timeout < 0 else timeout)
            finally:
                self._waiting -= 1
        return bool(len(self._queue))
