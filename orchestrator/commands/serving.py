"""What commands share that run until they are stopped."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def until_stopped() -> Iterator[None]:
    """End the block, in order, at Ctrl-C or SIGTERM."""
    with contextlib.suppress(KeyboardInterrupt), interruptible():
        yield


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Make SIGTERM do what Ctrl-C does, so that whoever started processes ends them."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
