"""The orchestrator: gives jobs to devices, publishes the outbox and, as the leader, moves rollouts on and takes leases back."""

import logging
import os
import threading
import time

from sqlalchemy import delete, exists, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from device_profiles.errors import EdgeError
from edge_runtime.messages import JobOrder, MessageError, encode_control
from edge_runtime.mqtt import LinkOptions, MqttError, MqttLink, Packet
from orchestrator.fleet import jobs, presence
from orchestrator.fleet.jobs import UPDATE, Lease
from orchestrator.fleet.leadership import Leadership
from orchestrator.fleet.program import Program, run_program
from orchestrator.fleet.queries import list_devices, list_groups, summarise
from orchestrator.fleet.records import say_refused
from orchestrator.fleet.registry import add_snapshot, change_desired, config_for, drop_snapshots, send, topics_of
from orchestrator.fleet.rollouts import active_rollouts, advance, carry_out_updates
from orchestrator.fleet.store import Store, now_ms
from orchestrator.fleet.tables import ConfigKey, Job, OutboxRow

log = logging.getLogger(__name__)
_TICK_S = 0.1
_AWAY_S = 1.0  # between attempts while the database is away
_LEAD_EVERY_S = 0.5
_FIGURES_EVERY_S = 10.0
_KEEP_FIGURES_MS = 7 * 86_400_000
_BATCH = 60  # below the connection's limit of outstanding packets
_OUTBOX_LEASE_MS = 10_000


class _OutboxLink(MqttLink):
    """A connection that can say whether the broker has everything."""

    def publish_all(self, packets: list[Packet], *, timeout_s: float = 5.0) -> bool:
        """Publish and wait for the broker's word on every one; false when it did not come."""
        connects = self.connects
        try:
            for packet in packets:
                self.publish(packet)
            infos = list(self._outstanding)
            end = time.monotonic() + timeout_s
            for info in infos:
                info.wait_for_publish(max(0.01, end - time.monotonic()))
                if not info.is_published():
                    return False
        except (MqttError, RuntimeError, ValueError):
            return False
        return self.connected and self.connects == connects


class Brain:
    """One orchestrator; any number may run on one database.

    Args:
        store: The truth.
        broker: mqtt://host:port.
        owner: Its name in leases.
    """

    def __init__(self, store: Store, broker: str, *, owner: str) -> None:
        self._store, self._owner = store, owner
        self._link = _OutboxLink(broker, LinkOptions(reconnect_max_s=2), lambda *_: None)
        self._leadership = Leadership(store, owner)
        self._stop = threading.Event()
        self._led = self._figured = 0.0

    def run(self) -> None:
        """Until `stop`."""
        with self._link:
            while not self._stop.is_set():
                try:
                    busy = self._dispatch() + self._publish()
                    self._lead()
                except DBAPIError as error:
                    log.warning("the database is not to be had, trying again: %s", error.orig)
                    self._stop.wait(_AWAY_S)
                    continue
                if not busy:
                    self._stop.wait(_TICK_S)
        self._leadership.close()

    def stop(self) -> None:
        """End `run` soon."""
        self._stop.set()

    def _dispatch(self) -> int:
        """Turn jobs that are due into desired states and orders, in one transaction with their leases."""
        now = now_ms()
        with self._store.read() as session:
            due = exists().where(Job.state == "queued", Job.not_before_ms <= now, Job.device.is_not(None))
            if not session.scalar(select(due)):
                return 0
        with self._store.write() as session:
            leases = jobs.claim_for_devices(session, self._owner, now_ms=now, limit=200)
            carry_out_updates(session, [lease for lease in leases if lease.kind == UPDATE], now_ms=now)
            for lease in leases:
                if lease.kind != UPDATE and lease.device is not None:
                    try:
                        send(session, topics_of(lease.device).job, encode_control(_order(lease, now)), now_ms=now)
                    except MessageError as error:  # its attempts run out, and the other jobs go on
                        log.warning("the job %s cannot be sent: %s", lease.id, error)
        return len(leases)

    def _publish(self) -> int:
        """Send what is in the outbox; a row goes when the broker has it."""
        now = now_ms()
        if not self._link.connected:
            return 0
        with self._store.read() as session:
            if not session.scalar(select(exists().where(OutboxRow.lease_until_ms <= now))):
                return 0
        query = select(OutboxRow).where(OutboxRow.lease_until_ms <= now).order_by(OutboxRow.id).limit(_BATCH)
        with self._store.write() as session:
            rows = session.scalars(query.with_for_update(skip_locked=True)).all()
            for row in rows:
                row.lease_until_ms = now + _OUTBOX_LEASE_MS
        sent = self._link.publish_all([Packet(row.topic, row.payload, row.qos, row.retain) for row in rows])
        with self._store.write() as session:
            chosen = [row.id for row in rows]
            if sent:
                session.execute(delete(OutboxRow).where(OutboxRow.id.in_(chosen)))
            else:
                for row in session.scalars(select(OutboxRow).where(OutboxRow.id.in_(chosen))):
                    row.lease_until_ms = now + 500
        return len(rows) if sent else 0

    def _lead(self) -> None:
        if time.monotonic() - self._led < _LEAD_EVERY_S or not self._leadership.hold(now_ms=now_ms()):
            return
        self._led = time.monotonic()
        now = now_ms()
        with self._store.write() as session:
            jobs.reap(session, now_ms=now)
            presence.sweep_presence(session, now_ms=now)
        with self._store.read() as session:
            rollouts = active_rollouts(session)
        for rollout in rollouts:
            try:
                with self._store.write() as session:
                    advance(session, rollout, now_ms=now)
            except EdgeError as error:  # the others go on
                say_refused(f"rollout {rollout}: {error}")
        if time.monotonic() - self._figured >= _FIGURES_EVERY_S:
            self._figured = time.monotonic()
            self._keep_figures(now)

    def _keep_figures(self, now: int) -> None:
        with self._store.write() as session:
            summary = summarise(session, now_ms=now)
            figures = {f"devices_{status}": float(count) for status, count in summary.by_status.items()}
            figures |= {f"jobs_{state}": float(count) for state, count in summary.jobs.items()}
            add_snapshot(session, "fleet", {**figures, "out_of_step": float(summary.out_of_step)}, now_ms=now)
            drop_snapshots(session, before_ms=now - _KEEP_FIGURES_MS)
            if session.scalar(select(exists().where(ConfigKey.scope != "fleet"))):
                refresh_config(session, now_ms=now, passes_over=True)


def refresh_config(session: Session, *, now_ms: int, passes_over: bool = False) -> int:
    """Bring the configuration in every device's desired state in line with the keys.

    Args:
        session: Writes.
        now_ms: The time.
        passes_over: A device that would not take what its scopes give together keeps what it has; a line in the log.

    Returns:
        How many changed.

    Raises:
        MessageError: A device would not take what its scopes give together.
    """
    groups = list_groups(session, now_ms=now_ms)
    changed = 0
    for view in list_devices(session, now_ms=now_ms):
        config = config_for(session, view.id, [group.name for group in groups if view.id in group.devices])
        before = view.desired.config if view.desired else {}
        if config != before:
            rev = (view.desired.config_rev if view.desired else 0) + 1
            try:
                change_desired(session, view.id, now_ms=now_ms, config=config, config_rev=rev)
            except MessageError as error:
                if not passes_over:
                    raise
                log.warning("%s keeps its configuration: %s", view.id, error)
                continue
            changed += 1
    return changed


def _order(lease: Lease, now: int) -> JobOrder:
    return JobOrder(
        boot=os.urandom(8).hex(),
        job=lease.id,
        attempt=lease.attempt,
        kind=lease.kind,
        arguments=lease.arguments,
        budget_ms=max(0, lease.until_ms - now),
    )


def _start(program: Program) -> None:
    brain = Brain(Store(program.store), program.broker, owner=program.owner)
    program.on_stop(brain.stop)
    program.say_ready("orchestrator")
    brain.run()


if __name__ == "__main__":
    run_program(_start)
