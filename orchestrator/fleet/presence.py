"""What devices say, written into the registry: births, deaths, heartbeats, reports. Order and repetition do not matter.

A birth counts when its boot count is newer, or the device is not online; everything else only when its boot is the current
one, and a heartbeat or report when its seq is newer than the one before. So shared subscriptions may reorder.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from sqlalchemy import bindparam, or_, select, update
from sqlalchemy.orm import Session

from edge_runtime.messages import Birth, Death, Heartbeat, JobStatus, Reported
from orchestrator.fleet.insert import insert_into
from orchestrator.fleet.jobs import finish
from orchestrator.fleet.registry import send, topics_of
from orchestrator.fleet.tables import DesiredState, Device, Job, Presence, ReportedState

SILENT_MS = 60_000  # an online device that has said nothing for so long counts as offline

# One statement for a whole batch, run with a list of parameters.
_HEARTBEAT = (
    update(Presence)
    .where(
        Presence.device == bindparam("d"),
        Presence.boot == bindparam("b"),
        Presence.seq < bindparam("s"),
    )
    .values(
        seq=bindparam("s"),
        seen_ms=bindparam("t"),
        heartbeat=bindparam("h"),
        desired_rev=bindparam("r"),
    )
)


@dataclass(frozen=True, slots=True)
class Beat:
    """A heartbeat that was decoded, and its text."""

    device: str
    heartbeat: Heartbeat
    text: str
    at_ms: int


def record_birth(session: Session, device: str, birth: Birth, *, now_ms: int) -> bool:
    """A device says that it is there. False when an older boot says so, or the device is blocked."""
    row = session.get(Device, device)
    if row is None:
        topics = topics_of(device)
        values = {"id": device, "tenant": topics.tenant, "name": topics.device, "created_ms": now_ms}
        session.execute(insert_into(session, Device).values(values).on_conflict_do_nothing())
        row = session.get_one(Device, device)
    if row.blocked:
        return False
    presence = session.scalars(select(Presence).where(Presence.device == device).with_for_update()).first()
    if presence is None:
        presence = Presence(device=device, boot="", online=False, since_ms=now_ms, boot_count=0)
        session.add(presence)
    same = presence.boot == birth.boot
    if not same and presence.online and birth.boot_count <= presence.boot_count:
        return False
    if not (same and presence.online):
        presence.since_ms = now_ms
    if not same:
        presence.seq, presence.heartbeat = 0, None
    presence.boot, presence.boot_count, presence.online = birth.boot, birth.boot_count, True
    presence.seen_ms, presence.desired_rev = now_ms, birth.desired_rev
    row.board, row.agent, row.own_labels = birth.board, birth.agent, dict(birth.labels)
    row.birth = msgspec.json.encode(birth).decode()
    session.flush()
    _send_desired_again(session, device, birth.desired_rev, now_ms)
    return True


def record_death(session: Session, device: str, death: Death, *, now_ms: int) -> bool:
    """The broker says that a device is gone; ignored when another boot is there by now."""
    statement = (
        update(Presence)
        .where(Presence.device == device, Presence.boot == death.boot, Presence.online.is_(True))
        .values(online=False, since_ms=now_ms)
        .returning(Presence.device)
    )
    return session.execute(statement).first() is not None


def record_heartbeats(session: Session, beats: Sequence[Beat]) -> None:
    """Many heartbeats at once; of several from one device only the newest is written."""
    newest: dict[str, Beat] = {}
    for beat in beats:
        before = newest.get(beat.device)
        if before is None or before.heartbeat.boot != beat.heartbeat.boot or before.heartbeat.seq < beat.heartbeat.seq:
            newest[beat.device] = beat
    rows = [
        {
            "d": beat.device,
            "b": beat.heartbeat.boot,
            "s": beat.heartbeat.seq,
            "t": beat.at_ms,
            "h": beat.text,
            "r": beat.heartbeat.desired_rev,
        }
        for beat in sorted(newest.values(), key=lambda beat: beat.device)  # one order for all writers: no deadlock
    ]
    if rows:
        session.connection().execute(_HEARTBEAT, rows)


def record_reported(session: Session, device: str, reported: Reported, *, now_ms: int) -> bool:
    """A device says how far it is with its desired state; ends the job that this carries out. False: old news."""
    boot = session.scalar(select(Presence.boot).where(Presence.device == device))
    if boot != reported.boot:
        return False
    values = {
        "device": device,
        "boot": reported.boot,
        "seq": reported.seq,
        "rev": reported.rev,
        "job": reported.job,
        "state": reported.state,
        "document": msgspec.json.encode(reported).decode(),
        "seen_ms": now_ms,
    }
    statement = insert_into(session, ReportedState).values(values)
    newer = statement.excluded.seq > ReportedState.seq
    statement = statement.on_conflict_do_update(
        index_elements=["device"],
        set_={name: statement.excluded[name] for name in values if name != "device"},
        where=or_(statement.excluded.boot != ReportedState.boot, newer),
    )
    written = session.execute(statement.returning(ReportedState.device)).first() is not None
    if reported.job is not None and reported.state in ("active", "failed", "rolled_back"):
        _finish_update(session, device, reported, now_ms)
    return written


def record_job_status(session: Session, device: str, status: JobStatus, *, now_ms: int) -> bool:
    """A device says what became of a job; false when that attempt is not the current one."""
    job = session.get(Job, status.job)
    if job is None or job.device != device or status.state == "accepted":
        return False
    error = None if status.state == "succeeded" else status.error or status.state
    retry = status.state == "failed"
    return finish(
        session, status.job, status.attempt, now_ms=now_ms, error=error, result=dict(status.result), retry=retry
    )


def sweep_presence(session: Session, *, now_ms: int, resend_ms: int = 5000) -> int:
    """Mark silent devices as offline, and send the desired state again to those that have not seen its newest revision.

    Returns:
        How many desired states were sent again.
    """
    silent = (
        update(Presence)
        .where(Presence.online.is_(True), Presence.seen_ms < now_ms - SILENT_MS)
        .values(online=False, since_ms=now_ms)
    )
    session.execute(silent)
    behind = (
        select(DesiredState)
        .join(Presence, Presence.device == DesiredState.device)
        .where(
            Presence.online.is_(True),
            Presence.desired_rev < DesiredState.rev,
            DesiredState.sent_ms < now_ms - resend_ms,
        )
        .limit(500)
        .with_for_update(skip_locked=True, of=DesiredState)
    )
    rows = session.scalars(behind).all()
    for row in rows:
        row.sent_ms = now_ms
        send(session, topics_of(row.device).desired, row.document.encode(), retain=True, now_ms=now_ms)
    return len(rows)


def _send_desired_again(session: Session, device: str, seen: int, now_ms: int) -> None:
    """A device that comes (back) and has not seen the newest revision: the broker may have lost what it retained."""
    row = session.get(DesiredState, device)
    if row is not None and row.rev > seen and row.sent_ms < now_ms - 1000:
        row.sent_ms = now_ms
        send(session, topics_of(device).desired, row.document.encode(), retain=True, now_ms=now_ms)
        session.flush()


def _finish_update(session: Session, device: str, reported: Reported, now_ms: int) -> None:
    """The update job of a report has ended, if the report is about its current attempt: that wrote the newest revision."""
    job = session.get(Job, reported.job)
    desired = session.get(DesiredState, device)
    if job is None or job.device != device or desired is None or desired.rev != reported.rev:
        return
    error = None if reported.state == "active" else reported.error or reported.state
    finish(session, job.id, job.attempt, now_ms=now_ms, error=error, result={"version": reported.version or ""})
