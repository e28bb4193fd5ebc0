"""Devices in Home Assistant: MQTT discovery messages that point at the heartbeats which devices send anyway."""

import logging
import threading
from typing import Any

import msgspec

from edge_runtime.messages import Topics
from edge_runtime.mqtt import MqttError, MqttLink, Packet
from orchestrator.broker_access import DISCOVERY
from orchestrator.fleet.queries import DeviceView, list_devices
from orchestrator.fleet.store import Store, now_ms

log = logging.getLogger(__name__)
_EVERY_S = 30.0
# name -> (heartbeat field, device class, unit, state class)
_SENSORS = {
    "Uptime": ("uptime_s", "duration", "s", "total_increasing"),
    "Answers of the tail": ("remote", None, None, "total_increasing"),
    "Answers of the device": ("local", None, None, "total_increasing"),
    "Frames without an answer": ("failed", None, None, "total_increasing"),
    "Memory": ("rss_bytes", "data_size", "B", "measurement"),
    "Temperature": ("temperature_c", "temperature", "°C", "measurement"),
}


def discovery(view: DeviceView) -> Packet:
    """The retained message that makes a device and its sensors known."""
    topics = Topics(view.tenant, view.name)
    identity = f"headtail_{view.tenant}_{view.name}".replace(".", "_")
    parts: dict[str, Any] = {}
    for name, (field, device_class, unit, state_class) in _SENSORS.items():
        part = {
            "p": "sensor",
            "name": name,
            "unique_id": f"{identity}_{field}",
            "value_template": f"{{{{ value_json.{field} }}}}",
            "state_class": state_class,
            "device_class": device_class,
            "unit_of_measurement": unit,
        }
        parts[field] = {key: value for key, value in part.items() if value is not None}
    document = {
        "dev": {"ids": [identity], "name": view.name, "mf": "headtail", "mdl": view.board, "sw": view.agent},
        "o": {"name": "headtail"},
        "cmps": parts,
        "state_topic": topics.up("hb"),
        "expire_after": 60,
        "qos": 0,
    }
    return Packet(f"{DISCOVERY}/device/{identity}/config", msgspec.json.encode(document), 1, retain=True)


class Announcer:
    """Publishes the discovery message of every device that is new or has changed."""

    def __init__(self, store: Store, link: MqttLink) -> None:
        self._store = store
        self._link = link
        self._sent: dict[str, bytes] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="home-assistant", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stop.set()
        self._thread.join(5)

    def announce(self) -> int:
        """Publish what is new; how many messages that were.

        Raises:
            MqttError: No connection.
        """
        count = 0
        with self._store.read() as session:
            views = list_devices(session, now_ms=now_ms())
        for view in views:
            packet = discovery(view)
            if self._sent.get(packet.topic) != packet.payload:
                self._link.publish(packet)
                self._sent[packet.topic] = packet.payload
                count += 1
        return count

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.announce()
            except MqttError as error:
                log.info("Home Assistant was not told: %s", error)
            self._stop.wait(_EVERY_S if self._link.connected else 1.0)
