"""Listens to results and beats on the broker, and hands them to `Live`."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from edge_runtime.messages import PREFIX, Result, decode_control, parse_topic
from edge_runtime.mqtt import LinkOptions, MqttLink
from edge_runtime.tail_messages import HOST_TENANT, TailBeat
from orchestrator.dashboard.live import Live

FILTERS = ((f"{PREFIX}/+/+/up/result", 0), (f"{PREFIX}/{HOST_TENANT}/+/up/tail", 0))


class Collector:
    """One connection, and what was heard on it.

    Args:
        broker_url: mqtt://host:port.
    """

    def __init__(self, broker_url: str) -> None:
        self._lock = threading.Lock()
        self._models: dict[str, str] = {}
        self._live = Live(lambda device: self._models.get(device, "unmanaged"))
        self._link = MqttLink(broker_url, LinkOptions(subscriptions=FILTERS), self._received)

    @property
    def connected(self) -> bool:
        """Whether the broker is there."""
        return self._link.connected

    @property
    def link(self) -> MqttLink:
        """The connection."""
        return self._link

    def name_models(self, models: dict[str, str]) -> None:
        """Say which model each device runs."""
        with self._lock:
            self._models = models

    @contextmanager
    def read(self) -> Iterator[Live]:
        """What was heard, while nothing changes."""
        with self._lock:
            yield self._live

    def __enter__(self) -> "Collector":
        """Begin to listen; waits for no broker."""
        self._link.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Disconnect."""
        self._link.close()

    def _received(self, topic: str, payload: bytes, _qos: int) -> None:
        parsed = parse_topic(topic)
        now = time.monotonic()
        if parsed.rest == ("up", "tail"):
            beat = decode_control(bytes(payload), TailBeat)
            with self._lock:
                self._live.add_beat(parsed.topics.device, beat, now)
        elif parsed.rest == ("up", "result"):
            result = decode_control(bytes(payload), Result)
            with self._lock:
                self._live.add_result(f"{parsed.topics.tenant}/{parsed.topics.device}", result, now)
