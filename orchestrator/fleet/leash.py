"""Nothing outlives its supervisor: a process of its own ends what the supervisor started when that is killed.

The supervisor holds the other end of this process's standard input and names on it what it starts and what has ended. The kernel
closes that end however the supervisor ends, SIGKILL included; what is still named then is ended here.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress

_PATIENCE_S = 5.0
_POLL_S = 0.05


class Leash:
    """Holds processes by their ids."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the supervisor
        )
        self._held: frozenset[int] = frozenset()

    def hold(self, pids: Iterable[int]) -> None:
        """Exactly these end with the caller."""
        wanted = frozenset(pids)
        changes = [f"+{pid}\n" for pid in wanted - self._held] + [f"-{pid}\n" for pid in self._held - wanted]
        stream = self._process.stdin
        if changes and stream is not None:
            with suppress(OSError):  # it was killed: the supervisor still ends all in order
                stream.write("".join(changes).encode())
                stream.flush()
        self._held = wanted

    def close(self) -> None:
        """Let go of everything."""
        self.hold(())
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
        self._process.wait()


def main() -> None:
    """Read `+PID` and `-PID` until the end, then end what is left: SIGTERM, and SIGKILL for what stays."""
    held: set[int] = set()
    for line in sys.stdin:
        (held.add if line[0] == "+" else held.discard)(int(line[1:]))
    number = int(signal.SIGTERM)
    deadline = time.monotonic() + _PATIENCE_S
    while held:
        for pid in tuple(held):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                held.discard(pid)
        number = 0 if time.monotonic() < deadline else int(signal.SIGKILL)  # 0: is it still there?
        time.sleep(_POLL_S)


if __name__ == "__main__":
    main()
