"""Rollouts in the database: make one, give it an order, move it on. The decisions are those of `state.py`."""

import hashlib
import logging
from collections.abc import Sequence

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from device_profiles.errors import EdgeError
from edge_runtime.messages import INSTALLED, ArtefactRef, Models, Slots
from orchestrator.fleet import jobs
from orchestrator.fleet.audit import append_audit
from orchestrator.fleet.errors import ConflictError, FleetError, UnknownError
from orchestrator.fleet.jobs import UPDATE, Lease, NewJob, RetryPolicy
from orchestrator.fleet.queries import DeviceView, list_devices, load_rollout, resolve
from orchestrator.fleet.registry import Held, change_desired, hold_desired
from orchestrator.fleet.served_tails import tail_is_served
from orchestrator.fleet.state import (
    ENDED,
    Action,
    Event,
    Move,
    Ordered,
    Revert,
    Rollout,
    RolloutSpec,
    RolloutState,
    Skip,
    TargetChanged,
    Update,
    apply,
    apply_all,
    begin,
    event_of,
    plan,
)
from orchestrator.fleet.tables import ArtefactRow, ConfigKey, Job, RolloutRow, TargetRow, Version

log = logging.getLogger(__name__)
_ENDS = {"succeeded": "succeeded", "failed": "failed", "expired": "failed", "cancelled": "failed"}
_RESTART_S = 120.0  # longer than an agent may take to confirm, or to give way to the one before
FILES_SCOPE, FILES_KEY = "fleet", "files_url"  # where devices fetch artefacts: set by `headtail fleet up`


def create_rollout(
    session: Session, rollout_id: str, spec: RolloutSpec, *, actor: str, now_ms: int, tenant: str = "default"
) -> RolloutState:
    """Begin a rollout over the devices that `spec.to` means now; those that can be reached are touched first.

    Raises:
        FleetError: A value that no rollout can have.
        UnknownError: No such version, group or device.
        ConflictError: No device, stages that do not grow, or a device that another rollout is busy with.
    """
    spec = check_spec(spec)
    version = session.get(Version, spec.version)
    if version is None:
        newest = session.scalars(select(Version.name).order_by(Version.created_ms.desc(), Version.name).limit(5)).all()
        raise UnknownError(
            f"Wanted the version {spec.version!r}, found {', '.join(sorted(newest)) or 'none'}. "
            "Register it: headtail deploy, or headtail fleet add."
        )
    chosen = set(resolve(session, spec.to, now_ms=now_ms, tenant=tenant))
    views = {view.id: view for view in list_devices(session, now_ms=now_ms) if view.id in chosen and not view.blocked}
    _check_free(session, set(views))
    agent = version.agent is not None
    if agent:
        spec = msgspec.structs.replace(spec, restart_s=max(spec.restart_s, _RESTART_S))
    rollout = Rollout(id=rollout_id, spec=spec, created_ms=now_ms)
    ordered = sorted(views.values(), key=lambda view: (view.status != "online", _shuffled(rollout_id, view.id)))
    state = begin(rollout, [(view.id, view.status == "online") for view in ordered])
    session.add(
        RolloutRow(id=rollout_id, version=spec.version, phase="running", document="", created_ms=now_ms, changed_ms=0)
    )
    session.flush()
    for position, target in enumerate(state.targets.values()):
        before = msgspec.json.encode(_models_of(session, views[target.device])).decode()
        session.add(
            TargetRow(
                rollout=rollout_id,
                device=target.device,
                position=position,
                stage=target.stage,
                state="pending",
                before=before,
                before_agent=_agent_before(session, views[target.device]) if agent else None,
                changed_ms=now_ms,
            )
        )
    _save(session, state, None, now_ms)
    append_audit(session, actor, "rollout", rollout_id, msgspec.to_builtins(spec), now_ms=now_ms)
    return state


def check_spec(spec: RolloutSpec) -> RolloutSpec:
    """The spec as its row will hold it.

    Raises:
        FleetError: A value that no rollout can have.
    """
    try:
        return msgspec.json.decode(msgspec.json.encode(spec), type=RolloutSpec)  # what is not finite becomes null
    except msgspec.ValidationError as error:
        raise FleetError(
            f"Wanted a rollout within its limits, found: {str(error).replace('$.', '')}. "
            "They are in: headtail fleet rollout --help."
        ) from error


def order_rollout(session: Session, rollout_id: str, order: Ordered, *, actor: str) -> RolloutState:
    """Pause, resume, approve or roll back.

    Raises:
        UnknownError: No such rollout.
        ConflictError: Its state does not allow that.
    """
    _lock(session, rollout_id)
    before = load_rollout(session, rollout_id)
    after = apply(before, order)
    _save(session, after, before, order.at_ms)
    append_audit(session, actor, order.order, rollout_id, {"reason": order.reason}, now_ms=order.at_ms)
    return after


def advance(session: Session, rollout_id: str, *, now_ms: int) -> RolloutState:
    """Take note of what devices did, and do what is next, until nothing is left to do now."""
    _lock(session, rollout_id)
    before = load_rollout(session, rollout_id)
    state = apply_all(before, _news(session, before, now_ms))
    while actions := _possible(session, state, plan(state, now_ms), now_ms):
        _carry_out_all(session, state, actions, now_ms)
        state = apply_all(state, [event_of(action, now_ms) for action in actions])
    _save(session, state, before, now_ms)
    return state


def _possible(session: Session, state: RolloutState, actions: list[Action], now_ms: int) -> list[Action]:
    """The actions, without those that would have devices ask for a tail that is not there yet."""
    updates = [action for action in actions if isinstance(action, Update)]
    if not updates or tail_is_served(session, state.rollout.spec.version, now_ms=now_ms):
        return actions
    log.info("rollout %s waits until the tail of %s is served", state.rollout.id, state.rollout.spec.version)
    return [action for action in actions if not isinstance(action, Update)]


def active_rollouts(session: Session) -> list[str]:
    """Ids of those that have not ended."""
    return list(session.scalars(select(RolloutRow.id).where(RolloutRow.phase.not_in(ENDED)).order_by(RolloutRow.id)))


def carry_out_updates(session: Session, leases: Sequence[Lease], *, now_ms: int) -> None:
    """The orders of update jobs become the devices' desired states; one that cannot be read ends its own job alone."""
    devices = [lease.device for lease in leases if lease.device is not None]
    held = hold_desired(session, devices)
    rollouts = {lease.rollout for lease in leases}
    chosen = select(TargetRow).where(TargetRow.rollout.in_(rollouts), TargetRow.device.in_(devices))
    targets = {(target.rollout, target.device): target for target in session.scalars(chosen)}
    refused: list[tuple[Lease, str]] = []
    with session.no_autoflush:
        for lease in leases:
            try:
                _carry_out(session, lease, targets.get((str(lease.rollout), str(lease.device))), held, now_ms)
            except (EdgeError, msgspec.DecodeError) as error:
                refused.append((lease, f"{type(error).__name__}: {error}"))
    session.flush()
    for lease, why in refused:
        log.error("the update %s of %s is passed over: %s", lease.id, lease.device, why)
        jobs.finish(session, lease.id, lease.attempt, now_ms=now_ms, error=why, retry=False)


def _carry_out(session: Session, lease: Lease, target: TargetRow | None, held: Held, now_ms: int) -> None:
    if lease.device is None or target is None:
        raise UnknownError(f"Wanted the rollout that the update {lease.id} is part of, found none. Begin another one.")
    rollout = msgspec.json.decode(session.get_one(RolloutRow, lease.rollout).document, type=Rollout)
    revert = bool(lease.arguments.get("revert"))
    change_desired(
        session,
        lease.device,
        now_ms=now_ms,
        held=held,
        job=lease.id,
        probation_s=0.0 if revert else rollout.spec.probation_s,
        **_wanted(session, rollout.spec.version, target if revert else None),
    )


def _wanted(session: Session, version: str, revert: TargetRow | None) -> dict[str, object]:
    """What changes in a desired state: the models or the agent of a version, or what a target had before."""
    agent = session.get_one(Version, version).agent
    if agent is None:
        return {
            "models": models_for(session, version)
            if revert is None
            else msgspec.json.decode(revert.before, type=Models)
        }
    if revert is None:
        return {"agent": _ref(session, agent)}
    return {"agent": msgspec.json.decode(revert.before_agent or "", type=ArtefactRef)}


def models_for(session: Session, version: str) -> Models:
    """What the slots of a device hold when it runs a version."""
    row = session.get_one(Version, version)
    return Models(version=version, head=_ref(session, row.head), whole=_ref(session, row.whole))


def _models_of(session: Session, view: DeviceView) -> Models:
    """What a device runs now, to go back to."""
    if view.desired is not None and view.desired.models is not None and view.in_step:
        return view.desired.models
    slots: Slots = view.slots
    version = (view.reported.version if view.reported else None) or ""
    return Models(version=version, head=_ref(session, slots.head), whole=_ref(session, slots.whole))


def _agent_before(session: Session, view: DeviceView) -> str:
    """The agent that a device runs now, to go back to; its bundle or the installed one."""
    running = view.birth.agent_artefact if view.birth is not None else None
    ref = _ref(session, running or None) or ArtefactRef(artefact=INSTALLED)
    return msgspec.json.encode(ref).decode()


def _ref(session: Session, artefact: str | None) -> ArtefactRef | None:
    if artefact is None:
        return None
    row = session.get(ArtefactRow, artefact)
    if row is None:
        return ArtefactRef(artefact=artefact)
    base = session.get(ConfigKey, (FILES_SCOPE, FILES_KEY))
    url = None if base is None else f"{msgspec.json.decode(base.value, type=str)}/{row.zip_sha256}.zip"
    return ArtefactRef(artefact=artefact, zip_sha256=row.zip_sha256, size=row.size, url=url)


def _news(session: Session, state: RolloutState, now_ms: int) -> list[Event]:
    query = select(Job.device, Job.state, Job.error, Job.id).where(
        Job.rollout == state.rollout.id, Job.state.in_(jobs.FINAL)
    )
    events: list[Event] = []
    for device, job_state, error, job_id in session.execute(query):
        target = state.targets.get(device or "")
        if (
            device is None
            or target is None
            or job_id != _job_id(state.rollout.id, device, revert=target.state == "reverting")
        ):
            continue
        if target.state == "updating":
            events.append(TargetChanged(device, _ENDS[job_state], now_ms, error))  # type: ignore[arg-type] # a literal
        elif target.state == "reverting" and job_state == "succeeded":
            events.append(TargetChanged(device, "reverted", now_ms))
    return events


def _carry_out_all(session: Session, state: RolloutState, actions: list[Action], now_ms: int) -> None:
    rollout = state.rollout
    new: list[NewJob] = []
    for action in actions:
        if isinstance(action, Update):
            new.append(_update_job(rollout, action.device, revert=False))
        elif isinstance(action, Revert):
            _withdraw(session, rollout.id, action.device, now_ms)
            new.append(_update_job(rollout, action.device, revert=True))
        elif isinstance(action, Skip):
            _withdraw(session, rollout.id, action.device, now_ms)
        elif isinstance(action, Move) and action.phase != rollout.phase:
            detail: dict[str, object] = {"stage": action.stage + 1, "reason": action.reason}
            append_audit(session, "rollout", action.phase, rollout.id, detail, now_ms=now_ms)
    jobs.enqueue(session, new, now_ms=now_ms)


def _update_job(rollout: Rollout, device: str, *, revert: bool) -> NewJob:
    spec = rollout.spec
    return NewJob(
        id=_job_id(rollout.id, device, revert=revert),
        kind=UPDATE,
        arguments={"revert": revert},
        device=device,
        policy=RetryPolicy(attempts=20 if revert else spec.attempts, attempt_s=spec.update_timeout_s),
        deadline_s=2 * spec.give_up_s,
        priority=100 if revert else 0,
        rollout=rollout.id,
    )


def _withdraw(session: Session, rollout_id: str, device: str, now_ms: int) -> None:
    job_id = _job_id(rollout_id, device, revert=False)
    if session.get(Job, job_id) is not None:
        jobs.cancel(session, job_id, now_ms=now_ms)


def _job_id(rollout_id: str, device: str, *, revert: bool) -> str:
    return f"{rollout_id}:{'revert' if revert else 'update'}:{device.replace('/', ':')}"


def _save(session: Session, after: RolloutState, before: RolloutState | None, now_ms: int) -> None:
    """Write what differs."""
    row = session.get_one(RolloutRow, after.rollout.id)
    if before is None or before.rollout != after.rollout:
        row.document, row.phase = msgspec.json.encode(after.rollout).decode(), after.rollout.phase
        row.changed_ms = now_ms
    changed = {
        device: target
        for device, target in after.targets.items()
        if before is not None and before.targets[device] != target
    }
    if changed:
        for one in session.scalars(select(TargetRow).where(TargetRow.rollout == after.rollout.id)):
            target = changed.get(one.device)
            if target is not None:
                one.state, one.error, one.changed_ms = target.state, target.error, target.changed_ms
    session.flush()


def _lock(session: Session, rollout_id: str) -> None:
    query = select(RolloutRow.id).where(RolloutRow.id == rollout_id).with_for_update()
    if session.execute(query).first() is None:
        raise UnknownError(f"Wanted the rollout {rollout_id!r}, found none. `headtail fleet status` lists them.")


def _check_free(session: Session, devices: set[str]) -> None:
    query = (
        select(TargetRow.device, TargetRow.rollout)
        .join(RolloutRow, RolloutRow.id == TargetRow.rollout)
        .where(RolloutRow.phase.not_in(ENDED))
    )
    for device, rollout in session.execute(query):
        if device in devices:
            raise ConflictError(
                f"Wanted {device} free, found rollout {rollout} busy with it. Wait for it, or: headtail fleet rollback {rollout}"
            )


def _shuffled(rollout_id: str, device: str) -> bytes:
    """An order that is the same every time and another one for each rollout."""
    return hashlib.sha256(f"{rollout_id} {device}".encode()).digest()
