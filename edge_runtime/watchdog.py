"""Tell systemd that the agent is up and its main loop goes on (sd_notify(3)); does nothing where systemd did not ask."""

import os
import socket
import time
from collections.abc import Callable, Mapping


class Watchdog:
    """Speaks to the socket that systemd names in the environment.

    Args:
        environment: With NOTIFY_SOCKET, and WATCHDOG_USEC where a sign of life is wanted.
        clock: Seconds, never going back.
    """

    def __init__(
        self, environment: Mapping[str, str] = os.environ, clock: Callable[[], float] = time.monotonic
    ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        asked = environment.get("WATCHDOG_USEC", "")
        meant = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._every_s = int(asked) / 3e6 if asked.isdigit() and meant else None
        self._clock = clock
        self._next = clock()

    def ready(self) -> None:
        """The agent is up."""
        self._send("READY=1")

    def alive(self) -> None:
        """The main loop went round; sent three times in each period that systemd waits for."""
        if self._every_s is not None and self._clock() >= self._next:
            self._next = self._clock() + self._every_s
            self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """The agent ends in order."""
        self._send("STOPPING=1")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as speaker:
                speaker.sendto(text.encode(), self._address)
        except OSError:
            return  # without systemd at the other end there is nobody to tell
