"""What devices say, written into the registry: births, deaths, heartbeats, reports. Order and repetition do not matter.

A birth counts when its boot count is newer, or the device is not online; everything else only when its boot is the current
one, and a heartbeat or report when its seq is newer than the one before. So shared subscriptions may reorder.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import msgspec
from sqlalchemy import Dialect, and_, bindparam, or_, select, true, update
from sqlalchemy.orm import Session

from edge_runtime.messages import (
    Birth,
    Death,
    Desired,
    Heartbeat,
    JobStatus,
    MessageError,
    Reported,
    decode_control,
)
from orchestrator.fleet.insert import insert_into
from orchestrator.fleet.jobs import finish
from orchestrator.fleet.registry import MOST_REV, change_desired, hold_desired, send, topics_of
from orchestrator.fleet.tables import Base, DesiredState, Device, Job, Presence, ReportedState

log = logging.getLogger(__name__)
_REWRITE_MS, _LONGEST_REWRITE_MS = 10_000, 3_600_000  # from one revision above a device's own to the next
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
        online=true(),  # whatever order its death and its return came in
        seen_ms=bindparam("t"),
        heartbeat=bindparam("h"),
        desired_rev=bindparam("r"),
    )
)


@dataclass(frozen=True, slots=True)
class Born:
    """A birth that came."""

    device: str
    birth: Birth
    at_ms: int


@dataclass(frozen=True, slots=True)
class Told:
    """A report that came."""

    device: str
    reported: Reported
    at_ms: int


@dataclass(frozen=True, slots=True)
class Beat:
    """A heartbeat that was decoded, and its text."""

    device: str
    heartbeat: Heartbeat
    text: str
    at_ms: int


def record_birth(session: Session, device: str, birth: Birth, *, now_ms: int) -> bool:
    """A device says that it is there. False when an older boot says so, or the device is blocked."""
    return record_births(session, [Born(device, birth, now_ms)]) == 1


def record_births(session: Session, births: Sequence[Born]) -> int:
    """Many births at once, no device twice; returns how many counted.

    A whole fleet comes back together when a broker does: one statement for each birth would keep it waiting.
    """
    known = {
        device: (blocked, presence)
        for device, blocked, presence in session.execute(
            select(Device.id, Device.blocked, Presence)
            .outerjoin(Presence, Presence.device == Device.id)
            .where(Device.id.in_([born.device for born in births]))
        )
    }
    devices: list[dict[str, object]] = []
    presences: list[dict[str, object]] = []
    counted: dict[str, Born] = {}
    for born in sorted(births, key=lambda born: born.device):  # one order for all writers: no deadlock
        blocked, before = known.get(born.device, (False, None))
        if blocked or not _is_newer(before, born.birth):
            continue
        counted[born.device] = born
        devices.append(_device_row(born))
        presences.append(_presence_row(born, before))
    if counted:
        _upsert(session, Device, devices, "id", ("board", "agent", "birth", "own_labels"))
        changed = tuple(name for name in presences[0] if name != "device")
        _upsert(session, Presence, presences, "device", changed)
        session.expire_all()
        _send_desired_again(session, counted)
    return len(counted)


def _is_newer(before: Presence | None, birth: Birth) -> bool:
    if before is None or before.boot == birth.boot or not before.online:
        return True
    return birth.boot_count > before.boot_count


def _device_row(born: Born) -> dict[str, object]:
    tenant, _, name = born.device.partition("/")
    return {
        "id": born.device,
        "tenant": tenant,
        "name": name,
        "board": born.birth.board,
        "agent": born.birth.agent,
        "birth": msgspec.json.encode(born.birth).decode(),
        "labels": {},
        "own_labels": dict(born.birth.labels),
        "created_ms": born.at_ms,
        "blocked": False,
    }


def _presence_row(born: Born, before: Presence | None) -> dict[str, object]:
    same = before is not None and before.boot == born.birth.boot
    stayed = before is not None and same and before.online
    return {
        "device": born.device,
        "boot": born.birth.boot,
        "boot_count": born.birth.boot_count,
        "online": True,
        "since_ms": before.since_ms if before is not None and stayed else born.at_ms,
        "seen_ms": born.at_ms,
        "seq": before.seq if before is not None and same else 0,
        "desired_rev": born.birth.desired_rev,
        "heartbeat": before.heartbeat if before is not None and same else None,
    }


def _upsert(
    session: Session, table: type[Base], rows: list[dict[str, object]], key: str, changed: tuple[str, ...]
) -> None:
    statement = insert_into(session, table)
    statement = statement.on_conflict_do_update(
        index_elements=[key], set_={name: statement.excluded[name] for name in changed}
    )
    session.connection().execute(statement, rows)


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
    if not rows:
        return
    sql, places = _heartbeat_sql(session.get_bind().dialect)
    given = rows if places is None else [tuple([row[name] for name in places]) for row in rows]
    session.connection().exec_driver_sql(sql, given)


@lru_cache(maxsize=4)
def _heartbeat_sql(dialect: Dialect) -> tuple[str, tuple[str, ...] | None]:
    """`_HEARTBEAT` as the driver takes it, and the order of its values where it takes no names.

    SQLAlchemy's own way with values costs more than decoding and writing a heartbeat do together.
    """
    compiled = _HEARTBEAT.compile(dialect=dialect)
    places = getattr(compiled, "positiontup", None)
    return str(compiled), None if places is None else tuple(places)


def record_reported(session: Session, device: str, reported: Reported, *, now_ms: int) -> bool:
    """A device says how far it is with its desired state; ends the job that this carries out. False: old news."""
    return record_reports(session, [Told(device, reported, now_ms)]) == 1


def record_reports(session: Session, reports: Sequence[Told]) -> int:
    """Many reports at once, of the newest boot and seq alone; returns how many counted."""
    ids = {told.device for told in reports}
    boots = {
        device: boot
        for device, boot in session.execute(select(Presence.device, Presence.boot).where(Presence.device.in_(ids)))
    }
    query = select(ReportedState.device, ReportedState.boot, ReportedState.seq).where(ReportedState.device.in_(ids))
    last = {device: (boot, seq) for device, boot, seq in session.execute(query)}
    newest: dict[str, Told] = {}
    for told in reports:
        before = newest[told.device].reported.seq if told.device in newest else None
        boot, seq = last.get(told.device, ("", 0))
        if boots.get(told.device) != told.reported.boot or (boot == told.reported.boot and told.reported.seq <= seq):
            continue
        if before is None or told.reported.seq > before:
            newest[told.device] = told
    rows = [_reported_row(newest[device]) for device in sorted(newest)]
    if rows:
        statement = insert_into(session, ReportedState)
        newer = or_(
            statement.excluded.boot != ReportedState.boot, statement.excluded.seq > ReportedState.seq
        )  # again, in the statement: another host may have written meanwhile
        statement = statement.on_conflict_do_update(
            index_elements=["device"],
            set_={name: statement.excluded[name] for name in rows[0] if name != "device"},
            where=newer,
        )
        session.connection().execute(statement, rows)
        session.expire_all()
        _rewrite_decided(session, newest)
    for told in reports:
        if told.reported.job is not None and told.reported.state in ("active", "failed", "rolled_back"):
            _finish_update(session, told.device, told.reported, boots.get(told.device), told.at_ms)
    return len(rows)


def _reported_row(told: Told) -> dict[str, object]:
    return {
        "device": told.device,
        "boot": told.reported.boot,
        "seq": told.reported.seq,
        "rev": told.reported.rev,
        "job": told.reported.job,
        "state": told.reported.state,
        "document": msgspec.json.encode(told.reported).decode(),
        "seen_ms": told.at_ms,
    }


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

    Devices that have seen newer ones than were written (the database is new, or was restored) get it under a newer one.

    Returns:
        How many desired states were sent again.
    """
    silent = (
        update(Presence)
        .where(Presence.online.is_(True), Presence.seen_ms < now_ms - SILENT_MS)
        .values(online=False, since_ms=now_ms)
    )
    session.execute(silent)
    newer = or_(Presence.desired_rev > DesiredState.rev, ReportedState.rev > DesiredState.rev)
    ahead = and_(newer, DesiredState.rewrite_ms <= now_ms)
    behind = and_(Presence.online.is_(True), Presence.desired_rev < DesiredState.rev)
    query = (
        select(DesiredState, ahead)
        .join(Presence, Presence.device == DesiredState.device)
        .outerjoin(ReportedState, ReportedState.device == DesiredState.device)
        .where(or_(ahead, behind), DesiredState.sent_ms < now_ms - resend_ms)
        .limit(500)
        .with_for_update(skip_locked=True, of=DesiredState)
    )
    found = session.execute(query).all()
    for row, is_ahead in found:
        row.sent_ms = now_ms
        if not is_ahead:
            send(session, topics_of(row.device).desired, row.document.encode(), retain=True, now_ms=now_ms)
    return len(found) - _rewrite(session, [row.device for row, is_ahead in found if is_ahead], now_ms)


def _rewrite(session: Session, devices: Collection[str], now_ms: int) -> int:
    """Write desired states again, above what their devices know, or these would pass over them; how many cannot be.

    Ever more rarely until the next order: two databases on one broker would outbid each other for ever.
    """
    if not devices:
        return 0
    held, refused = hold_desired(session, devices), 0
    for device in devices:
        row, known = held.rows.get(device), held.known.get(device, 0)
        if row is None:  # the device was removed meanwhile
            continue
        if known >= MOST_REV:
            refused += 1
            log.warning(
                "Wanted a revision that a fleet has come to, found that %s knows %d: it follows none. "
                "Remove follow.json from its state folder and start its agent again.",
                device,
                known,
            )
            continue
        pause_ms = min(_LONGEST_REWRITE_MS, max(_REWRITE_MS, 2 * (row.rewrite_ms - row.changed_ms)))
        again = "" if pause_ms == _REWRITE_MS else ". Again: does another fleet write to this broker?"
        try:
            desired = change_desired(session, device, now_ms=now_ms, held=held)
        except MessageError as error:
            refused += 1
            log.warning("%s keeps its desired state, which is below its own: %s", device, error)
            continue
        row.rewrite_ms = now_ms + pause_ms
        text = "%s knows newer revisions than this database: its desired state is now %d%s"
        log.log(logging.WARNING if again else logging.INFO, text, device, desired.rev, again)
    session.flush()
    return refused


def _send_desired_again(session: Session, counted: Mapping[str, Born]) -> None:
    """Devices that come (back) and have not seen the newest revision: the broker may have lost what it retained."""
    for row in session.scalars(select(DesiredState).where(DesiredState.device.in_(counted))):
        born = counted[row.device]
        if row.rev > born.birth.desired_rev and row.sent_ms < born.at_ms - 1000:
            row.sent_ms = born.at_ms
            send(session, topics_of(row.device).desired, row.document.encode(), retain=True, now_ms=born.at_ms)
    session.flush()


def _rewrite_decided(session: Session, newest: Mapping[str, Told]) -> None:
    """A device does nothing for a revision that it has decided; if that was for another job, it is not the one written here."""
    decided = {device: told for device, told in newest.items() if told.reported.state != "idle"}
    for row in session.scalars(select(DesiredState).where(DesiredState.device.in_(decided))).all():
        told = decided[row.device]
        if row.rev == told.reported.rev and _job_of(row) not in (None, told.reported.job):
            _rewrite(session, [row.device], told.at_ms)


def _job_of(row: DesiredState) -> str | None:
    try:
        return decode_control(row.document.encode(), Desired).job
    except MessageError:  # named when it is to be written
        return None


def _finish_update(session: Session, device: str, reported: Reported, boot: str | None, now_ms: int) -> None:
    """The update job of a report has ended, if the report is about its current attempt: that wrote the newest revision."""
    if boot != reported.boot:
        return
    job = session.get(Job, reported.job)
    if job is None or job.device != device or job.state != "leased":
        return
    desired = session.get(DesiredState, device)
    if desired is None or desired.rev != reported.rev:
        return
    error = None if reported.state == "active" else reported.error or reported.state
    finish(session, job.id, job.attempt, now_ms=now_ms, error=error, result={"version": reported.version or ""})
