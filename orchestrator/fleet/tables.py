"""The tables of the fleet. Times are milliseconds since 1970 UTC; a document is the JSON of a msgspec struct."""

from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, Integer, LargeBinary, MetaData, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAMES = {"ix": "ix_%(column_0_N_label)s", "uq": "uq_%(table_name)s_%(column_0_N_name)s", "pk": "pk_%(table_name)s"}
# SQLite gives row numbers to INTEGER keys alone.
Serial = BigInteger().with_variant(Integer, "sqlite")


class Base(DeclarativeBase):
    """All tables."""

    metadata = MetaData(naming_convention=NAMES)
    type_annotation_map = {int: BigInteger, str: String, dict[str, Any]: JSON, bytes: LargeBinary}  # noqa: RUF012 - SQLAlchemy's


class Device(Base):
    """What a device said at its birth, and what people said of it. `id` is tenant/name."""

    __tablename__ = "devices"
    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    name: Mapped[str]
    board: Mapped[str] = mapped_column(default="")
    agent: Mapped[str] = mapped_column(default="")
    birth: Mapped[str | None] = mapped_column(Text)  # document Birth
    labels: Mapped[dict[str, Any]] = mapped_column(default=dict)  # set by people; "" is a tag
    own_labels: Mapped[dict[str, Any]] = mapped_column(default=dict)  # said by the device
    created_ms: Mapped[int]
    blocked: Mapped[bool] = mapped_column(default=False)  # messages are dropped, no work is given


class Presence(Base):
    """What changes every few seconds: rows are small, because this is written once for each message."""

    __tablename__ = "presence"
    device: Mapped[str] = mapped_column(ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True)
    boot: Mapped[str]
    boot_count: Mapped[int] = mapped_column(default=0)
    online: Mapped[bool]
    since_ms: Mapped[int]  # of `online`
    seen_ms: Mapped[int]
    seq: Mapped[int] = mapped_column(default=0)  # of the newest heartbeat of this boot
    desired_rev: Mapped[int] = mapped_column(default=0)  # newest that the device has seen
    heartbeat: Mapped[str | None] = mapped_column(Text)  # document Heartbeat


class DesiredState(Base):
    """The desired state of a device; its row is published, retained."""

    __tablename__ = "desired"
    device: Mapped[str] = mapped_column(ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True)
    rev: Mapped[int]
    document: Mapped[str] = mapped_column(Text)  # Desired
    changed_ms: Mapped[int]
    sent_ms: Mapped[int] = mapped_column(default=0)
    rewrite_ms: Mapped[int] = mapped_column(default=0, server_default="0")  # not above the device's own before then


class ReportedState(Base):
    """The newest report of a device; (boot, seq) only grows."""

    __tablename__ = "reported"
    device: Mapped[str] = mapped_column(ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True)
    boot: Mapped[str]
    seq: Mapped[int]
    rev: Mapped[int]
    job: Mapped[str | None]
    state: Mapped[str]
    document: Mapped[str] = mapped_column(Text)  # Reported
    seen_ms: Mapped[int]


class Group(Base):
    """A named set of devices: members, and whatever a label selector finds."""

    __tablename__ = "device_groups"
    name: Mapped[str] = mapped_column(primary_key=True)
    selector: Mapped[str | None]
    created_ms: Mapped[int]


class Member(Base):
    """A device that was put into a group by name."""

    __tablename__ = "members"
    group_name: Mapped[str] = mapped_column(ForeignKey("device_groups.name", ondelete="CASCADE"), primary_key=True)
    device: Mapped[str] = mapped_column(ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True)


class ArtefactRow(Base):
    """An artefact, or an agent's bundle, that the host has as a .zip; its manifest was checked before it got here."""

    __tablename__ = "artefacts"
    id: Mapped[str] = mapped_column(primary_key=True)  # sha256 of the manifest
    role: Mapped[str]
    model: Mapped[str]
    engine: Mapped[str]
    target: Mapped[str]
    size: Mapped[int]  # of the .zip
    zip_sha256: Mapped[str]
    path: Mapped[str]  # of the .zip on the host
    key: Mapped[str | None]  # that signed it; null: not signed
    created_ms: Mapped[int]


class Version(Base):
    """One version of a model: head and tail move together; `whole` is the fallback or the only part. Or one of the agent."""

    __tablename__ = "versions"
    name: Mapped[str] = mapped_column(primary_key=True)  # model@version
    head: Mapped[str | None] = mapped_column(ForeignKey("artefacts.id"))
    tail: Mapped[str | None] = mapped_column(ForeignKey("artefacts.id"))
    whole: Mapped[str | None] = mapped_column(ForeignKey("artefacts.id"))
    agent: Mapped[str | None] = mapped_column(ForeignKey("artefacts.id"))
    counter: Mapped[int] = mapped_column(default=0)  # anti-rollback
    created_ms: Mapped[int]


class RolloutRow(Base):
    """A rollout; its document is the pure core's `Rollout` without the targets."""

    __tablename__ = "rollouts"
    id: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[str]
    phase: Mapped[str]
    document: Mapped[str] = mapped_column(Text)
    created_ms: Mapped[int]
    changed_ms: Mapped[int]
    __table_args__ = (Index("ix_rollouts_phase", "phase"),)


class TargetRow(Base):
    """One device in a rollout."""

    __tablename__ = "targets"
    rollout: Mapped[str] = mapped_column(ForeignKey("rollouts.id", ondelete="CASCADE"), primary_key=True)
    device: Mapped[str] = mapped_column(ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int]  # order in which devices are touched
    stage: Mapped[int]
    state: Mapped[str]
    before: Mapped[str] = mapped_column(Text)  # document Models: what to roll back to
    before_agent: Mapped[str | None] = mapped_column(Text)  # document ArtefactRef, where the agent is rolled out
    error: Mapped[str | None] = mapped_column(Text)
    changed_ms: Mapped[int]


class Job(Base):
    """Something to be done once, on a device or (device null) by a worker on a host."""

    __tablename__ = "jobs"
    id: Mapped[str] = mapped_column(primary_key=True)
    device: Mapped[str | None] = mapped_column(ForeignKey("devices.id", ondelete="CASCADE"))
    kind: Mapped[str]
    arguments: Mapped[dict[str, Any]] = mapped_column(default=dict)
    state: Mapped[str]  # queued, leased, succeeded, failed, cancelled, expired
    priority: Mapped[int] = mapped_column(default=0)  # larger first
    owner: Mapped[str | None]  # of the lease
    lease_until_ms: Mapped[int] = mapped_column(default=0)
    attempt: Mapped[int] = mapped_column(default=0)  # begun so far
    policy: Mapped[dict[str, Any]] = mapped_column(default=dict)  # RetryPolicy
    not_before_ms: Mapped[int] = mapped_column(default=0)
    deadline_ms: Mapped[int]
    cancel: Mapped[bool] = mapped_column(default=False)  # asked for
    rollout: Mapped[str | None]
    result: Mapped[dict[str, Any] | None]
    error: Mapped[str | None] = mapped_column(Text)
    created_ms: Mapped[int]
    finished_ms: Mapped[int | None]
    __table_args__ = (
        Index("ix_jobs_state_not_before_ms", "state", "not_before_ms"),
        Index("ix_jobs_device_state", "device", "state"),
        Index("ix_jobs_rollout", "rollout"),
    )


class OutboxRow(Base):
    """A message to be published, written with the change that it tells of; gone when the broker has it."""

    __tablename__ = "outbox"
    id: Mapped[int] = mapped_column(Serial, primary_key=True, autoincrement=True)
    topic: Mapped[str]
    payload: Mapped[bytes]
    qos: Mapped[int] = mapped_column(default=1)
    retain: Mapped[bool] = mapped_column(default=False)
    lease_until_ms: Mapped[int] = mapped_column(default=0)
    created_ms: Mapped[int]


class ConfigKey(Base):
    """One key of remote configuration for a scope: "all", "group:NAME" or "device:TENANT/NAME"; the narrowest wins."""

    __tablename__ = "config"
    scope: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str] = mapped_column(Text)  # JSON
    changed_ms: Mapped[int]


class AuditRow(Base):
    """One line of the audit log; `hash` covers it and the line before."""

    __tablename__ = "audit"
    seq: Mapped[int] = mapped_column(Serial, primary_key=True, autoincrement=False)
    at_ms: Mapped[int]
    actor: Mapped[str]
    action: Mapped[str]
    subject: Mapped[str]
    detail: Mapped[str] = mapped_column(Text)  # JSON, keys sorted
    previous: Mapped[str]
    hash: Mapped[str]


class Snapshot(Base):
    """Figures at one moment, for charts: of the fleet, a device ("device:ID") or a model ("model:NAME")."""

    __tablename__ = "snapshots"
    id: Mapped[int] = mapped_column(Serial, primary_key=True, autoincrement=True)
    at_ms: Mapped[int]
    scope: Mapped[str]
    figures: Mapped[dict[str, Any]]
    __table_args__ = (Index("ix_snapshots_scope_at_ms", "scope", "at_ms"),)


class Key(Base):
    """A public key whose signatures devices accept."""

    __tablename__ = "keys"
    id: Mapped[str] = mapped_column(primary_key=True)
    role: Mapped[str]  # root, targets, snapshot, timestamp, artefact
    public: Mapped[str] = mapped_column(Text)
    created_ms: Mapped[int]
    revoked_ms: Mapped[int | None]


class Enrolment(Base):
    """A single-use token by which a device gets its certificate; only the token's hash is kept."""

    __tablename__ = "enrolments"
    token_sha256: Mapped[str] = mapped_column(primary_key=True)
    device: Mapped[str | None]  # tenant/name it is for; null: any name of the tenant
    tenant: Mapped[str]
    labels: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_ms: Mapped[int]
    expires_ms: Mapped[int]
    used_ms: Mapped[int | None]
    used_by: Mapped[str | None]


class Certificate(Base):
    """A certificate that was given to a device."""

    __tablename__ = "certificates"
    serial: Mapped[str] = mapped_column(primary_key=True)
    device: Mapped[str]
    pem: Mapped[str] = mapped_column(Text)
    not_after_ms: Mapped[int]
    revoked_ms: Mapped[int | None]
    __table_args__ = (Index("ix_certificates_device", "device"),)


class Leader(Base):
    """Who advances rollouts on SQLite; PostgreSQL uses an advisory lock."""

    __tablename__ = "leader"
    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str]
    until_ms: Mapped[int]
