"""Processes that end with the one that started them, also when that one is killed.

A small guard process holds the other end of a pipe. When the owner is gone, however that came about, the pipe ends, and the
guard ends every process group that it was told of: politely, then not. Unlike the parent-death signal of Linux this does
not depend on which thread started a process, on its changing its user (mosquitto does), or on the system.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

_GRACE_S = 5.0


class Leash:
    """Names the processes that must not outlive this one; use as a context or `close` it.

    Each process must lead a process group of its own (`start_new_session=True`); what it starts in turn ends with it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: set[int] = set()
        self._guard = self._start()

    def hold(self, pid: int) -> None:
        """End this process when its owner is killed."""
        with self._lock:
            self._held.add(pid)
            self._say(f"+{pid}")

    def let_go(self, pid: int) -> None:
        """The process has ended, and been waited for."""
        with self._lock:
            self._held.discard(pid)
            self._say(f"-{pid}")

    def close(self) -> None:
        """End the guard, and with it whatever is still held."""
        with self._lock:
            self._guard.stdin.close()  # type: ignore[union-attr] # a pipe
            self._guard.wait()

    def __enter__(self) -> "Leash":
        """Guards already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    @property
    def pid(self) -> int:
        """Of the guard."""
        return self._guard.pid

    def _start(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is not for it
        )

    def _say(self, line: str) -> None:
        try:
            self._guard.stdin.write(f"{line}\n".encode())  # type: ignore[union-attr] # a pipe
        except BrokenPipeError:  # the guard itself was killed: another one takes over
            self._guard.wait()
            self._guard = self._start()
            for pid in self._held:
                self._guard.stdin.write(f"+{pid}\n".encode())  # type: ignore[union-attr]


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Deliver Ctrl-C and SIGTERM after the block instead of within; a child's own handling is not touched."""
    if threading.current_thread() is not threading.main_thread():  # signals come to the main thread alone
        yield
        return
    came: list[int] = []
    stops = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda which, _frame: came.append(which)) for number in stops}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for which in came:
            signal.raise_signal(which)


def guard() -> None:
    """The guard's whole life: listen until the pipe ends, then end what is still held."""
    held: set[int] = set()
    for line in sys.stdin:
        (held.add if line[0] == "+" else held.discard)(int(line[1:]))
    _signal(held, signal.SIGTERM)
    end = time.monotonic() + _GRACE_S
    while held and time.monotonic() < end:
        time.sleep(0.02)
        held = {pid for pid in held if _lives(pid)}
    _signal(held, signal.SIGKILL)


def _signal(pids: set[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, number)


def _lives(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # macOS says so of groups that only have ended members
        return False
    return True


if __name__ == "__main__":
    guard()
