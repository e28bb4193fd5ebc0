"""What devices say goes into the database: one MQTT connection, one writer, many messages in one transaction."""

import logging
import threading
from collections import deque
from collections.abc import Sequence

from sqlalchemy.exc import DataError, DBAPIError
from sqlalchemy.orm import Session

from device_profiles.errors import EdgeError
from edge_runtime.messages import (
    Birth,
    Death,
    Heartbeat,
    JobStatus,
    Reported,
    check_segment,
    decode_control,
    fleet_filters,
    parse_topic,
)
from edge_runtime.mqtt import LinkOptions, MqttLink
from orchestrator.fleet import presence
from orchestrator.fleet.fast_link import FastLink
from orchestrator.fleet.program import Program, run_program
from orchestrator.fleet.store import Store, now_ms

log = logging.getLogger(__name__)
_BATCH = 500
_PAUSE_S = 0.03
_MAX_WAITING = 200_000
_Message = tuple[str, bytes, int]  # topic, payload, arrival


class Ingest:
    """Takes messages until closed.

    Args:
        store: Written with what a process kill survives; a power loss takes the last telemetry alone.
        broker: mqtt://host:port.
        group: Orchestrators of one group share what is not retained.
    """

    def __init__(self, store: Store, broker: str, *, group: str | None = "orch") -> None:
        self._store = store
        self._waiting: deque[_Message] = deque(maxlen=_MAX_WAITING)
        self._devices: dict[str, tuple[str, str]] = {}
        self._stop = threading.Event()
        self.written = self.refused = 0
        filters = fleet_filters(group)
        self._link: FastLink | MqttLink
        if broker.startswith("mqtt://"):
            self._link = FastLink(broker, filters, self._received_many)
        else:  # TLS
            self._link = MqttLink(broker, LinkOptions(subscriptions=filters), self._received)

    @property
    def backlog(self) -> int:
        """Messages that wait to be written."""
        return len(self._waiting)

    def run(self) -> None:
        """Until `stop`."""
        with self._link:
            while not self._stop.is_set():
                if not self._waiting:
                    self._stop.wait(_PAUSE_S)
                    continue
                batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
                self._write(batch)
                if len(batch) < _BATCH:
                    self._stop.wait(_PAUSE_S)

    def stop(self) -> None:
        """End `run` soon."""
        self._stop.set()

    def _received(self, topic: str, payload: bytes, _qos: int) -> None:
        self._waiting.append((topic, payload, now_ms()))

    def _received_many(self, messages: Sequence[tuple[str, bytes]]) -> None:
        at_ms = now_ms()
        self._waiting.extend([(topic, payload, at_ms) for topic, payload in messages])

    def _write(self, batch: list[_Message]) -> None:
        while not self._stop.is_set():
            try:
                with self._store.write() as session:
                    self._write_in(session, batch)
                self.written += len(batch)
                return
            except DataError as error:  # a value that the database does not take: the others do not wait for it
                if len(batch) == 1:
                    self.refused += 1
                    log.warning("ignored a message on %s: %s", batch[0][0][:100], error.orig)
                    return
                for one in batch:
                    self._write([one])
                return
            except DBAPIError as error:
                log.warning("the database is not to be had, trying again: %s", error.orig)
                self._stop.wait(0.5)

    def _write_in(self, session: Session, batch: list[_Message]) -> None:
        """Heartbeats, reports and births together; what must keep its order within a device, one after the other."""
        beats: list[presence.Beat] = []
        reports: list[presence.Told] = []
        births: dict[str, presence.Born] = {}
        for topic, payload, at_ms in batch:
            try:
                device, kind = self._parse(topic)
                if kind == "hb":
                    beat = decode_control(payload, Heartbeat)
                    beats.append(presence.Beat(device, beat, bytes(payload).decode(), at_ms))
                elif kind == "reported":
                    reports.append(presence.Told(device, decode_control(payload, Reported), at_ms))
                elif kind == "birth":
                    birth = presence.Born(device, decode_control(payload, Birth), at_ms)
                    if device in births:
                        presence.record_births(session, [births.pop(device)])
                    births[device] = birth
                else:
                    if device in births:
                        presence.record_births(session, [births.pop(device)])
                    _record(session, device, kind, payload, at_ms)
            except EdgeError as error:
                self.refused += 1
                log.warning("ignored a message on %s: %s", topic[:100], error)
        if births:
            presence.record_births(session, list(births.values()))
        if reports:
            presence.record_reports(session, reports)
        presence.record_heartbeats(session, beats)

    def _parse(self, topic: str) -> tuple[str, str]:
        found = self._devices.get(topic)
        if found is None:
            parsed = parse_topic(topic)
            kind = check_segment("kind", parsed.rest[1])
            found = (f"{parsed.topics.tenant}/{parsed.topics.device}", kind)
            if len(self._devices) < _MAX_WAITING:
                self._devices[topic] = found
        return found


def _record(session: Session, device: str, kind: str, payload: bytes, at_ms: int) -> None:
    if kind == "death":
        presence.record_death(session, device, decode_control(payload, Death), now_ms=at_ms)
    elif kind == "job":
        presence.record_job_status(session, device, decode_control(payload, JobStatus), now_ms=at_ms)


def _start(program: Program) -> None:
    ingest = Ingest(Store(program.store, durability="process-kill"), program.broker)
    program.on_stop(ingest.stop)
    program.say_ready("ingest")
    ingest.run()


if __name__ == "__main__":
    run_program(_start)
