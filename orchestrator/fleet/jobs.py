"""The job queue: idempotent ids, leases, attempts with back-off, deadlines, cancel. Every function is one part of a transaction."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from sqlalchemy import and_, or_, select, update
from sqlalchemy.orm import Session

from edge_runtime.messages import JobId, JobOrder, Name, Settings, decode_control, encode_control
from orchestrator.fleet.errors import ConflictError, UnknownError
from orchestrator.fleet.insert import insert_into
from orchestrator.fleet.records import read_record
from orchestrator.fleet.tables import Device, Job, Presence

JobState = Literal["queued", "leased", "succeeded", "failed", "cancelled", "expired"]
FINAL: tuple[JobState, ...] = ("succeeded", "failed", "cancelled", "expired")
UPDATE = "update"  # carried out by the desired state instead of a message


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often a job is tried, how long an attempt may take, and how long to wait in between."""

    attempts: Annotated[int, msgspec.Meta(ge=1, le=100)] = 3
    attempt_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    backoff_s: Annotated[float, msgspec.Meta(ge=0)] = 2.0
    factor: Annotated[float, msgspec.Meta(ge=1)] = 2.0
    longest_s: Annotated[float, msgspec.Meta(ge=0)] = 300.0

    def pause_ms(self, attempt: int) -> int:
        """How long to wait after this attempt, counted from 1, has failed."""
        return int(1000 * min(self.longest_s, self.backoff_s * self.factor ** (attempt - 1)))


class NewJob(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A job to be done. `device` is tenant/name, or null for a worker on a host."""

    id: JobId
    kind: Name
    arguments: Settings = {}
    device: str | None = None
    policy: RetryPolicy = RetryPolicy()
    deadline_s: Annotated[float, msgspec.Meta(gt=0)] = 86_400.0
    priority: int = 0
    rollout: str | None = None


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """A job that was given to somebody, for one attempt."""

    id: str
    kind: str
    arguments: dict[str, Any]
    device: str | None
    attempt: int
    until_ms: int
    rollout: str | None


def _order_of(job: NewJob) -> JobOrder:
    """The longest order that it may become."""
    return JobOrder(
        boot="0" * 16,
        job=job.id,
        attempt=job.policy.attempts,
        kind=job.kind,
        arguments=dict(job.arguments),
        budget_ms=2**53,
    )


def enqueue(session: Session, jobs: Sequence[NewJob], *, now_ms: int) -> int:
    """Add jobs; one whose id is there already is not added again. Returns how many are new.

    Raises:
        ConflictError: The id is that of a job of another kind or device.
        UnknownError: No such device.
        MessageError: A device would not take the order; nothing is queued.
    """
    if not jobs:
        return 0
    for job in jobs:  # a struct is not checked when it is made, only when it is read
        if job.device is not None:
            decode_control(encode_control(_order_of(job)), JobOrder)
    rows = [
        {
            "id": job.id,
            "device": job.device,
            "kind": job.kind,
            "arguments": dict(job.arguments),
            "state": "queued",
            "priority": job.priority,
            "policy": msgspec.to_builtins(job.policy),
            "deadline_ms": now_ms + int(1000 * job.deadline_s),
            "rollout": job.rollout,
            "created_ms": now_ms,
        }
        for job in jobs
    ]
    _check_new(session, jobs)
    added = 0
    for start in range(0, len(rows), 500):
        statement = insert_into(session, Job).on_conflict_do_nothing().returning(Job.id)
        added += len(session.execute(statement, rows[start : start + 500]).all())
    return added


def claim(session: Session, owner: str, *, now_ms: int, limit: int, kinds: Sequence[str] | None = None) -> list[Lease]:
    """Lease jobs for a worker on a host; no job is leased to two."""
    query = select(Job).where(_is_due(now_ms), Job.device.is_(None))
    if kinds is not None:
        query = query.where(Job.kind.in_(kinds))
    query = query.order_by(Job.priority.desc(), Job.not_before_ms, Job.id).limit(limit)
    return [_lease(job, owner, now_ms) for job in session.scalars(query.with_for_update(skip_locked=True))]


def claim_for_devices(session: Session, owner: str, *, now_ms: int, limit: int) -> list[Lease]:
    """Lease jobs of devices that can be reached, and updates of all: those wait in the desired state."""
    query = (
        select(Job)
        .join(Device, Device.id == Job.device)
        .outerjoin(Presence, Presence.device == Job.device)
        .where(_is_due(now_ms), Device.blocked.is_(False), or_(Presence.online.is_(True), Job.kind == UPDATE))
        .order_by(Job.priority.desc(), Job.not_before_ms, Job.id)
        .limit(limit)
        .with_for_update(skip_locked=True, of=Job)
    )
    return [_lease(job, owner, now_ms) for job in session.scalars(query)]


def finish(
    session: Session,
    job_id: str,
    attempt: int,
    *,
    now_ms: int,
    error: str | None = None,
    result: dict[str, Any] | None = None,
    retry: bool = True,
) -> bool:
    """End an attempt: well, or with an error (then it is tried again if the policy allows and `retry` does).

    Returns:
        False when this attempt is not the current one any more: whatever it did must be undone with the transaction.
    """
    job = session.scalars(select(Job).where(Job.id == job_id).with_for_update()).first()
    if job is None or job.state != "leased" or job.attempt != attempt:
        return False
    if error is None:
        _end(job, "succeeded", now_ms)
        job.result = result or {}
        job.error = None
    else:
        fail_attempt(job, error, now_ms=now_ms, retry=retry)
    session.flush()
    return True


def fail_attempt(job: Job, error: str, *, now_ms: int, retry: bool = True) -> None:
    """Queue a job again after a pause, or end it: its attempts or its time are used up, or it is to be cancelled."""
    policy = _policy(job)
    job.error = error[:2000]
    pause_ms = policy.pause_ms(max(1, job.attempt))
    if job.cancel:
        _end(job, "cancelled", now_ms)
    elif now_ms + pause_ms >= job.deadline_ms:
        _end(job, "expired", now_ms)
    elif not retry or job.attempt >= policy.attempts:
        _end(job, "failed", now_ms)
    else:
        job.state, job.owner, job.lease_until_ms, job.not_before_ms = "queued", None, 0, now_ms + pause_ms


def cancel(session: Session, job_id: str, *, now_ms: int) -> bool:
    """Ask for a job's end: one that waits ends at once, one that is being done when its attempt ends. False: it has ended.

    Raises:
        UnknownError: No such job.
    """
    job = session.scalars(select(Job).where(Job.id == job_id).with_for_update()).first()
    if job is None:
        raise UnknownError(f"Wanted the job {job_id!r}, found none of that id. `headtail fleet jobs` lists them.")
    if job.state in FINAL:
        return False
    job.cancel = True
    if job.state == "queued":
        _end(job, "cancelled", now_ms)
    session.flush()
    return True


def reap(session: Session, *, now_ms: int, limit: int = 1000) -> int:
    """Take back leases that have run out and end jobs whose deadline has passed; returns how many."""
    late = or_(
        and_(Job.state == "leased", Job.lease_until_ms <= now_ms),
        and_(Job.state == "queued", Job.deadline_ms <= now_ms),
    )
    found = session.scalars(select(Job).where(late).limit(limit).with_for_update(skip_locked=True)).all()
    for job in found:
        if job.state == "queued":
            job.error = job.error or "its deadline passed before anybody could begin it"
            _end(job, "expired", now_ms)
        elif job.kind == UPDATE and job.deadline_ms > now_ms and not _is_online(session, job.device):
            job.lease_until_ms = now_ms + int(1000 * _policy(job).attempt_s)  # it waits
        else:
            fail_attempt(job, f"no answer to attempt {job.attempt} by {job.owner}", now_ms=now_ms)
    session.flush()
    return len(found)


def extend(session: Session, job_id: str, attempt: int, *, until_ms: int) -> bool:
    """Keep a lease longer; false when it is lost."""
    statement = (
        update(Job)
        .where(Job.id == job_id, Job.state == "leased", Job.attempt == attempt)
        .values(lease_until_ms=until_ms)
        .returning(Job.id)
    )
    return session.execute(statement).first() is not None


def _is_due(now_ms: int) -> Any:  # noqa: ANN401 - a SQL expression
    return and_(Job.state == "queued", Job.not_before_ms <= now_ms, Job.deadline_ms > now_ms, Job.cancel.is_(False))


def _is_online(session: Session, device: str | None) -> bool:
    return bool(session.scalar(select(Presence.online).where(Presence.device == device)))


def _policy(job: Job) -> RetryPolicy:
    return read_record(job.policy, RetryPolicy, job.id) or RetryPolicy()


def _lease(job: Job, owner: str, now_ms: int) -> Lease:
    policy = _policy(job)
    job.state, job.owner, job.attempt = "leased", owner, job.attempt + 1
    job.lease_until_ms = min(job.deadline_ms, now_ms + int(1000 * policy.attempt_s))
    return Lease(
        id=job.id,
        kind=job.kind,
        arguments=job.arguments,
        device=job.device,
        attempt=job.attempt,
        until_ms=job.lease_until_ms,
        rollout=job.rollout,
    )


def _end(job: Job, state: JobState, now_ms: int) -> None:
    job.state, job.owner, job.lease_until_ms, job.finished_ms = state, None, 0, now_ms


def _check_new(session: Session, jobs: Sequence[NewJob]) -> None:
    by_id = {job.id: job for job in jobs}
    devices = {job.device for job in jobs if job.device is not None}
    for start in range(0, len(by_id), 500):
        part = list(by_id)[start : start + 500]
        for job_id, kind, device in session.execute(select(Job.id, Job.kind, Job.device).where(Job.id.in_(part))):
            if (kind, device) != (by_id[job_id].kind, by_id[job_id].device):
                raise ConflictError(f"Wanted a new job {job_id}, found that id taken by {kind} for {device}.")
    for start in range(0, len(devices), 500):
        part = sorted(devices)[start : start + 500]
        missing = set(part) - set(session.scalars(select(Device.id).where(Device.id.in_(part))))
        if missing:
            raise UnknownError(f"Wanted a device for a job, found no {min(missing)!r} in the registry.")
