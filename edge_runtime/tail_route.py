"""How a request reaches a tail: over MQTT, over the direct data plane when it is large, a second time when no answer comes."""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime.mqtt import MqttLink
from edge_runtime.wire import Reply

if TYPE_CHECKING:
    from edge_runtime.direct import DirectRoute

log = logging.getLogger(__name__)

Pieces = Sequence["bytes | memoryview"]


@dataclass(frozen=True)
class RouteOptions:
    """See `OffloadOptions`."""

    qos: int
    hedge_ms: float | None
    direct_above_bytes: int


class TailRoute:
    """The ways to one model's tails.

    Args:
        link: To the broker.
        topic: Of requests.
        key: The route key, 8 bytes.
        options: See `RouteOptions`.
        on_reply: Called with replies of the direct data plane; those over MQTT come from the link.
    """

    def __init__(
        self, link: MqttLink, topic: str, key: bytes, options: RouteOptions, on_reply: Callable[[memoryview], None]
    ) -> None:
        self._link, self._topic, self._key, self._options, self._on_reply = link, topic, key, options, on_reply
        self._direct: DirectRoute | None = None
        self._no_direct = False
        self._lock = threading.Lock()

    @property
    def direct_ready(self) -> bool:
        """Whether there is a direct connection."""
        return self._direct is not None and self._direct.ready

    def send(self, pieces: Pieces) -> tuple[int, bool]:
        """Send a request; its size in bytes, and whether it went directly.

        Raises:
            MqttError: As the link says.
        """
        size = sum([len(piece) for piece in pieces])
        if size > self._options.direct_above_bytes:
            direct = self._find_direct()
            if direct is not None and direct.send(pieces):
                return size, True
        return self._link.publish_pieces(self._topic, pieces, self._options.qos), False

    def wait(self, ended: threading.Lock, left_s: float, pieces: Pieces, *, direct: bool) -> bool:
        """Wait for the answer; False when the time is over."""
        if direct:
            if ended.acquire(timeout=left_s):
                return True
            if self._direct is not None:
                self._direct.failed()
            return False
        hedge_s = None if self._options.hedge_ms is None else self._options.hedge_ms / 1000
        if hedge_s is None or hedge_s >= left_s:
            return self._link.wait_for(ended, left_s)
        if self._link.wait_for(ended, hedge_s):
            return True
        self._link.publish_pieces(self._topic, pieces, self._options.qos)
        return self._link.wait_for(ended, left_s - hedge_s)

    def take(self, reply: Reply, body: memoryview) -> bool:
        """Whether a reply is an offer of the direct data plane and no answer."""
        return self._direct is not None and self._direct.take(reply, body)

    def close(self) -> None:
        """End the direct connection."""
        if self._direct is not None:
            self._direct.close()

    def _find_direct(self) -> "DirectRoute | None":
        """The direct data plane, as far as this device can speak it; finds out when it is first of use."""
        with self._lock:
            if self._direct is None and not self._no_direct:
                try:
                    from edge_runtime.direct import DirectRoute  # needs pyzmq
                except ModuleNotFoundError:
                    self._no_direct = True
                    log.info("large requests go over MQTT: pip install 'headtail[direct]' for a faster way")
                else:
                    self._direct = DirectRoute(self._link, self._topic, self._key, self._on_reply)
            return self._direct
