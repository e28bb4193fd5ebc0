"""What commands share that run until they are stopped."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

_AGAIN_S = 0.05


@contextlib.contextmanager
def until_stopped() -> Iterator[None]:
    """End the block, in order, at Ctrl-C or SIGTERM."""
    with contextlib.suppress(KeyboardInterrupt), interruptible():
        yield


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Make SIGTERM do what Ctrl-C does, so that whoever started processes ends them. From the main thread.

    What a handler raises in a finaliser or a callback of the garbage collector goes no further: the signal is sent again.
    """
    main = threading.main_thread().ident
    assert main is not None

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def lost(what: "UnraisableHookArgs") -> None:
        if issubclass(what.exc_type, KeyboardInterrupt):
            again = threading.Timer(_AGAIN_S, signal.pthread_kill, (main, signal.SIGTERM))
            again.daemon = True
            again.start()
        else:
            hook_before(what)

    before, hook_before = signal.signal(signal.SIGTERM, stop), sys.unraisablehook
    sys.unraisablehook = lost
    try:
        yield
    finally:
        sys.unraisablehook = hook_before
        signal.signal(signal.SIGTERM, before)
