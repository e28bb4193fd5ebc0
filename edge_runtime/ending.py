"""End a program in order when a signal says so."""

import signal
import threading
from collections.abc import Callable
from queue import SimpleQueue
from types import FrameType


def when_told_to_end(stop: Callable[[], None]) -> list[int]:
    """Call a function at the first SIGTERM or Ctrl-C, in a thread of its own. From the main thread.

    A handler runs in the middle of what the main thread does. If that holds the lock of the event which `stop` sets, as it does for a
    moment whenever it waits for it, a handler that calls `stop` waits for ever; so it only fills a queue, which a handler may.

    Returns:
        The signals that came so far; it grows.
    """
    told: list[int] = []
    came: SimpleQueue[int] = SimpleQueue()

    def handle(number: int, _frame: FrameType | None) -> None:
        told.append(number)
        came.put(number)

    def watch() -> None:
        came.get()
        stop()

    threading.Thread(target=watch, name="ending", daemon=True).start()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)
    return told
