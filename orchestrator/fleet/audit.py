"""The audit log: who changed what, each line chained to the one before by its hash."""

import hashlib

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from orchestrator.fleet.errors import AuditError
from orchestrator.fleet.store import lock_audit
from orchestrator.fleet.tables import AuditRow

FIRST = "0" * 64


class AuditLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line as it is shown."""

    seq: int
    at_ms: int
    actor: str
    action: str
    subject: str
    detail: dict[str, object]
    hash: str


def append_audit(
    session: Session, actor: str, action: str, subject: str, detail: dict[str, object] | None = None, *, now_ms: int
) -> None:
    """Add a line, in the transaction of the change that it tells of. No secret belongs in `detail`."""
    lock_audit(session)
    last = session.scalars(select(AuditRow).order_by(AuditRow.seq.desc()).limit(1)).first()
    row = AuditRow(
        seq=last.seq + 1 if last else 1,
        at_ms=now_ms,
        actor=actor,
        action=action,
        subject=subject,
        detail=msgspec.json.encode(detail or {}, order="sorted").decode(),
        previous=last.hash if last else FIRST,
    )
    row.hash = hash_line(row)
    session.add(row)
    session.flush()


def hash_line(row: AuditRow) -> str:
    """The sha256 of a line's fields, the hash of the line before among them."""
    fields = [row.seq, row.at_ms, row.actor, row.action, row.subject, row.detail, row.previous]
    return hashlib.sha256(msgspec.json.encode(fields)).hexdigest()


def verify_audit(session: Session, *, until: str | None = None) -> int:
    """Check the chain from its first line; returns how many lines there are.

    Args:
        session: Reads.
        until: A hash that somebody kept elsewhere: it must be among the lines, or the end was cut off.

    Raises:
        AuditError: A line was changed, removed or put in.
    """
    previous, count, seen = FIRST, 0, until is None
    for row in session.scalars(select(AuditRow).order_by(AuditRow.seq)).yield_per(1000):
        count += 1
        if row.seq != count or row.previous != previous or row.hash != hash_line(row):
            raise AuditError(
                f"Wanted line {count} of the audit log as it was written, found line {row.seq} changed: {row.action} "
                f"{row.subject}. Compare with a copy of the database."
            )
        previous = row.hash
        seen = seen or row.hash == until
    if not seen:
        raise AuditError(f"Wanted the line {str(until)[:16]}.. in the audit log, found {count} others: it was cut off.")
    return count


def read_audit(session: Session, *, limit: int = 100, subject: str | None = None) -> list[AuditLine]:
    """The newest lines first."""
    query = select(AuditRow).order_by(AuditRow.seq.desc()).limit(limit)
    if subject is not None:
        query = query.where(AuditRow.subject == subject)
    return [
        AuditLine(
            seq=row.seq,
            at_ms=row.at_ms,
            actor=row.actor,
            action=row.action,
            subject=row.subject,
            detail=msgspec.json.decode(row.detail, type=dict[str, object]),
            hash=row.hash,
        )
        for row in session.scalars(query)
    ]
