"""Keep a measurement of one thread on one core, with the processes that it starts."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def on_one_core(wanted: bool = True) -> Iterator[None]:
    """The last core that this process may use; the first one serves the machine's interrupts. Nothing when not wanted."""
    before = os.sched_getaffinity(0)
    if wanted:
        os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
