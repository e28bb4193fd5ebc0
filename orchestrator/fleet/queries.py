"""Read the fleet: what the dashboard, the commands and `headtail fleet top` show. Nothing here writes.

Use with `Store.read()`; everything returned is a frozen struct that can be printed as JSON.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from edge_runtime.messages import Birth, Desired, Heartbeat, Reported, Slots
from orchestrator.fleet.errors import FleetError, UnknownError
from orchestrator.fleet.records import read_record, say_refused
from orchestrator.fleet.selectors import is_selector, parse_selector
from orchestrator.fleet.served_tails import tail_is_served
from orchestrator.fleet.state import Progress, Rollout, RolloutState, Target, progress
from orchestrator.fleet.tables import (
    ArtefactRow,
    DesiredState,
    Device,
    Group,
    Job,
    Member,
    Presence,
    ReportedState,
    RolloutRow,
    Snapshot,
    TargetRow,
    Version,
)

STALE_MS = 20_000  # an online device that has said nothing for so long
Status = Literal["online", "stale", "offline", "never"]


class DeviceView(msgspec.Struct, frozen=True, kw_only=True):
    """One device with all that is known. `labels` are its own and those that people set, with name, board and tenant."""

    id: str
    tenant: str
    name: str
    status: Status
    blocked: bool
    board: str
    agent: str
    labels: dict[str, str]
    since_ms: int | None  # of the status
    seen_ms: int | None
    birth: Birth | None
    heartbeat: Heartbeat | None
    desired: Desired | None
    reported: Reported | None

    @property
    def slots(self) -> Slots:
        """What runs there, as it last said."""
        for source in (self.heartbeat, self.reported, self.birth):
            if source is not None:
                return source.slots
        return Slots()

    @property
    def in_step(self) -> bool:
        """Whether the device has what it should have."""
        if self.desired is None:
            return True
        return self.reported is not None and self.reported.rev == self.desired.rev and self.reported.state == "active"


class GroupView(msgspec.Struct, frozen=True, kw_only=True):
    """A group and the devices that are in it now."""

    name: str
    selector: str | None
    devices: tuple[str, ...]


class JobView(msgspec.Struct, frozen=True, kw_only=True):
    """One job."""

    id: str
    device: str | None
    kind: str
    state: str
    attempt: int
    owner: str | None
    not_before_ms: int
    deadline_ms: int
    created_ms: int
    finished_ms: int | None
    rollout: str | None
    result: dict[str, Any] | None
    error: str | None


class RolloutView(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout, how far it is, and (when asked for) its devices."""

    rollout: Rollout
    progress: Progress
    waits_for_tail: bool = False  # nobody who follows the registry serves its tail yet
    targets: tuple[Target, ...] = ()


class VersionView(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a model or of the agent, with its artefacts' ids and how many devices run it."""

    name: str
    head: str | None
    tail: str | None
    whole: str | None
    counter: int
    created_ms: int
    devices: int
    agent: str | None = None


class FleetSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The fleet in figures."""

    devices: int
    by_status: dict[str, int]
    by_version: dict[str, int]
    by_board: dict[str, int]
    jobs: dict[str, int]
    rollouts: dict[str, int]
    out_of_step: int


def list_devices(session: Session, *, now_ms: int, to: str | None = None) -> list[DeviceView]:
    """The devices, by name; `to` narrows it to a device, a group or a selector.

    Raises:
        UnknownError: No such device or group.
        SelectorError: The selector cannot be read.
    """
    views = _views(session, _all_of_devices(), now_ms)
    if to is None:
        return views
    wanted = set(resolve(session, to, now_ms=now_ms, views=views))
    return [view for view in views if view.id in wanted]


def show_device(session: Session, device: str, *, now_ms: int) -> DeviceView:
    """One device by tenant/name.

    Raises:
        UnknownError: No such device.
    """
    found = _views(session, _all_of_devices().where(Device.id == device), now_ms)
    if not found:
        raise UnknownError(
            f"Wanted the device {device!r}, found none of that name. `headtail fleet devices` lists them."
        )
    return found[0]


def resolve(
    session: Session, to: str, *, now_ms: int, tenant: str = "default", views: Sequence[DeviceView] | None = None
) -> list[str]:
    """Ids of the devices that a name means: "all", a group, tenant/name, name (of the tenant), or a selector.

    Raises:
        UnknownError: None of these.
        SelectorError: The selector cannot be read.
    """
    if views is None:
        views = _views(session, _all_of_devices(), now_ms)
    if to == "all":
        return [view.id for view in views]
    if is_selector(to):
        matches = parse_selector(to)
        return [view.id for view in views if matches(view.labels)]
    group = session.get(Group, to)
    if group is not None:
        members = set(session.scalars(select(Member.device).where(Member.group_name == to)))
        chosen = parse_selector(group.selector) if group.selector else None
        return [view.id for view in views if view.id in members or (chosen is not None and chosen(view.labels))]
    wanted = to if "/" in to else f"{tenant}/{to}"
    if any(view.id == wanted for view in views):
        return [wanted]
    raise UnknownError(
        f"Wanted a device, a group or a selector, found nothing that is called {to!r}. "
        "`headtail fleet devices` and `headtail fleet groups` list them."
    )


def list_groups(session: Session, *, now_ms: int) -> list[GroupView]:
    """The groups and who is in them."""
    views = _views(session, _all_of_devices(), now_ms)
    groups = session.scalars(select(Group).order_by(Group.name)).all()
    return [
        GroupView(
            name=group.name,
            selector=group.selector,
            devices=tuple(resolve(session, group.name, now_ms=now_ms, views=views)),
        )
        for group in groups
    ]


def list_jobs(
    session: Session,
    *,
    limit: int = 200,
    device: str | None = None,
    state: str | None = None,
    rollout: str | None = None,
) -> list[JobView]:
    """The newest jobs first."""
    query = select(Job).order_by(Job.created_ms.desc(), Job.id).limit(limit)
    for column, value in ((Job.device, device), (Job.state, state), (Job.rollout, rollout)):
        if value is not None:
            query = query.where(column == value)
    return [_job_view(job) for job in session.scalars(query)]


def show_job(session: Session, job_id: str) -> JobView:
    """One job.

    Raises:
        UnknownError: No such job.
    """
    job = session.get(Job, job_id)
    if job is None:
        raise UnknownError(f"Wanted the job {job_id!r}, found none of that id. `headtail fleet jobs` lists them.")
    return _job_view(job)


def load_rollout(session: Session, rollout_id: str) -> RolloutState:
    """The pure core's state of a rollout, from its rows.

    Raises:
        UnknownError: No such rollout.
        FleetError: One that this version cannot read.
    """
    row = session.get(RolloutRow, rollout_id)
    if row is None:
        raise UnknownError(f"Wanted the rollout {rollout_id!r}, found none. `headtail fleet status` lists them.")
    try:
        rollout = msgspec.json.decode(row.document, type=Rollout)
    except msgspec.DecodeError as error:
        raise FleetError(
            f"Wanted the rollout {rollout_id} as this version reads it, found: {error}. Read it with the version that began it."
        ) from error
    rows = session.execute(
        select(TargetRow, Presence.online)
        .outerjoin(Presence, Presence.device == TargetRow.device)
        .where(TargetRow.rollout == rollout_id)
        .order_by(TargetRow.position)
    )
    targets = {
        target.device: Target(
            device=target.device,
            stage=target.stage,
            state=target.state,  # type: ignore[arg-type] # only the core's own words are stored
            reachable=bool(online),
            error=target.error,
            changed_ms=target.changed_ms,
        )
        for target, online in rows
    }
    return RolloutState(rollout, targets)


def list_rollouts(session: Session, *, now_ms: int, limit: int = 50, targets: bool = False) -> list[RolloutView]:
    """The newest rollouts first, without those that this version cannot read."""
    ids = session.scalars(
        select(RolloutRow.id).order_by(RolloutRow.created_ms.desc(), RolloutRow.id).limit(limit)
    ).all()
    found: list[RolloutView] = []
    for one in ids:
        try:
            found.append(show_rollout(session, one, now_ms=now_ms, targets=targets))
        except FleetError as error:
            say_refused(f"rollout {one}: {error}")
    return found


def show_rollout(session: Session, rollout_id: str, *, now_ms: int, targets: bool = True) -> RolloutView:
    """One rollout.

    Raises:
        UnknownError: No such rollout.
    """
    state = load_rollout(session, rollout_id)
    shown = tuple(state.targets.values()) if targets else ()
    waits = state.rollout.phase == "running" and not tail_is_served(session, state.rollout.spec.version, now_ms=now_ms)
    return RolloutView(rollout=state.rollout, progress=progress(state, now_ms), waits_for_tail=waits, targets=shown)


def list_versions(session: Session) -> list[VersionView]:
    """The versions of models, newest first."""
    told = session.execute(select(ReportedState.device, ReportedState.document))
    reports = [read_record(text, Reported, device) for device, text in told]
    counts = Counter(one.version for one in reports if one is not None)
    born = session.execute(select(Device.id, Device.birth).where(Device.birth.is_not(None)))
    births = [read_record(text or None, Birth, device) for device, text in born]
    agents = Counter(one.agent_artefact or None for one in births if one is not None)
    rows = session.scalars(select(Version).order_by(Version.created_ms.desc(), Version.name))
    return [
        VersionView(
            name=row.name,
            head=row.head,
            tail=row.tail,
            whole=row.whole,
            counter=row.counter,
            created_ms=row.created_ms,
            devices=counts[row.name] if row.agent is None else agents[row.agent],
            agent=row.agent,
        )
        for row in rows
    ]


def get_artefact(session: Session, artefact: str) -> ArtefactRow | None:
    """The row of an artefact, to serve its .zip."""
    return session.get(ArtefactRow, artefact)


def read_snapshots(session: Session, scope: str, *, since_ms: int) -> list[tuple[int, dict[str, float]]]:
    """Figures of a scope over time: (at_ms, figures), oldest first."""
    query = select(Snapshot).where(Snapshot.scope == scope, Snapshot.at_ms >= since_ms).order_by(Snapshot.at_ms)
    return [(row.at_ms, row.figures) for row in session.scalars(query)]


def summarise(session: Session, *, now_ms: int) -> FleetSummary:
    """The fleet in figures, for the top of the dashboard."""
    views = _views(session, _all_of_devices(), now_ms)
    jobs = session.execute(select(Job.state, func.count()).group_by(Job.state)).all()
    rollouts = session.execute(select(RolloutRow.phase, func.count()).group_by(RolloutRow.phase)).all()
    versions = Counter((view.reported.version if view.reported else None) or "unmanaged" for view in views)
    return FleetSummary(
        devices=len(views),
        by_status=dict(Counter(view.status for view in views)),
        by_version=dict(versions),
        by_board=dict(Counter(view.board for view in views)),
        jobs={state: count for state, count in jobs},
        rollouts={phase: count for phase, count in rollouts},
        out_of_step=sum(not view.in_step for view in views),
    )


def _all_of_devices() -> Select[Device, Presence, str, str]:
    return (
        select(Device, Presence, DesiredState.document, ReportedState.document)
        .outerjoin(Presence, Presence.device == Device.id)
        .outerjoin(DesiredState, DesiredState.device == Device.id)
        .outerjoin(ReportedState, ReportedState.device == Device.id)
        .order_by(Device.id)
    )


def _views(session: Session, query: Select[Device, Presence, str, str], now_ms: int) -> list[DeviceView]:
    return [_view(*row, now_ms=now_ms) for row in session.execute(query)]


def _view(
    device: Device, presence: Presence | None, desired: str | None, reported: str | None, *, now_ms: int
) -> DeviceView:
    status: Status = "never"
    if presence is not None:
        quiet = now_ms - presence.seen_ms > STALE_MS
        status = "offline" if not presence.online else "stale" if quiet else "online"
    facts = {"name": device.name, "board": device.board, "tenant": device.tenant}
    return DeviceView(
        id=device.id,
        tenant=device.tenant,
        name=device.name,
        status=status,
        blocked=device.blocked,
        board=device.board,
        agent=device.agent,
        labels={**device.own_labels, **device.labels, **facts},
        since_ms=presence.since_ms if presence else None,
        seen_ms=presence.seen_ms if presence else None,
        birth=read_record(device.birth or None, Birth, device.id),
        heartbeat=read_record((presence.heartbeat or None) if presence else None, Heartbeat, device.id),
        desired=read_record(desired, Desired, device.id),
        reported=read_record(reported, Reported, device.id),
    )


def _job_view(job: Job) -> JobView:
    return JobView(
        **{name: getattr(job, name) for name in JobView.__struct_fields__},
    )
