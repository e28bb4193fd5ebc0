"""The pure core of rollouts: `apply(state, event) -> state` and `plan(state, now) -> actions`. No clock, database or network.

A rollout touches its targets stage by stage. A stage is over when every device in it that can be reached has ended; after
its soak time the next one begins, perhaps after somebody's approval. Too many failures revert every device that was touched.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import msgspec

from orchestrator.fleet.errors import ConflictError

Phase = Literal["running", "soaking", "awaiting_approval", "rolling_back", "done", "rolled_back"]
TargetState = Literal["pending", "updating", "succeeded", "failed", "reverting", "reverted", "skipped"]
ENDED: tuple[Phase, ...] = ("done", "rolled_back")
_TOUCHED: tuple[TargetState, ...] = ("updating", "succeeded", "failed", "reverting", "reverted")
_OVER: tuple[TargetState, ...] = ("succeeded", "failed", "reverted", "skipped")


class Stage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many devices have been touched when this stage is over: `count` of them, or the `share` of all."""

    count: Annotated[int, msgspec.Meta(ge=1)] | None = None
    share: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    soak_s: Annotated[float, msgspec.Meta(ge=0)] = 60.0
    approval: bool = False  # somebody has to approve before the next stage


class RolloutSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to bring where, and how carefully."""

    version: str
    to: str  # group, device or selector, as it was asked for
    stages: tuple[Stage, ...] = (Stage(share=0.05), Stage(share=0.25), Stage(share=1.0, soak_s=0.0))
    abort_share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.1  # failures among a stage's devices that ended
    minimum_sample: Annotated[int, msgspec.Meta(ge=1)] = 5  # devices that ended, before failures count
    max_parallel: Annotated[int, msgspec.Meta(ge=1)] = 100
    update_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 600.0
    attempts: Annotated[int, msgspec.Meta(ge=1, le=20)] = 2
    give_up_s: Annotated[float, msgspec.Meta(gt=0)] = 7 * 86_400.0  # devices that never come back are skipped then
    probation_s: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 10.0  # as `Desired` allows
    restart_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0  # out of reach for less after its order: it starts anew


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """One device of a rollout. `stage` is the one in which it is touched."""

    device: str
    stage: int
    state: TargetState = "pending"
    reachable: bool = True
    error: str | None = None
    changed_ms: int = 0


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one rollout, without its targets: what its row holds."""

    id: str
    spec: RolloutSpec
    created_ms: int
    phase: Phase = "running"
    paused: bool = False
    stage: int = 0
    since_ms: int = 0  # of the phase
    reason: str | None = None  # why it rolls back


@dataclass(frozen=True)
class RolloutState:
    """A rollout and its targets by device."""

    rollout: Rollout
    targets: Mapping[str, Target]


@dataclass(frozen=True)
class TargetChanged:
    """A device was asked, or has ended."""

    device: str
    state: TargetState
    at_ms: int
    error: str | None = None


@dataclass(frozen=True)
class Reached:
    """A device came or went."""

    device: str
    reachable: bool


@dataclass(frozen=True)
class Moved:
    """The rollout goes to another phase or stage."""

    phase: Phase
    stage: int
    at_ms: int
    reason: str | None = None


@dataclass(frozen=True)
class Ordered:
    """A person's word."""

    order: Literal["pause", "resume", "approve", "rollback"]
    at_ms: int
    reason: str | None = None


Event = TargetChanged | Reached | Moved | Ordered


@dataclass(frozen=True)
class Update:
    """Give a device the new version."""

    device: str


@dataclass(frozen=True)
class Revert:
    """Give a device back what it had."""

    device: str


@dataclass(frozen=True)
class Skip:
    """Withdraw the order to a device that never came back."""

    device: str


@dataclass(frozen=True)
class Move:
    """Go to another phase or stage."""

    phase: Phase
    stage: int
    reason: str | None = None


Action = Update | Revert | Skip | Move


def begin(rollout: Rollout, devices: Iterable[tuple[str, bool]]) -> RolloutState:
    """A new rollout over devices in the order in which they are to be touched, each with whether it can be reached.

    Raises:
        ConflictError: No device, or stages that do not grow to all of them.
    """
    ordered = list(devices)
    sizes = stage_sizes(rollout.spec.stages, len(ordered))
    targets: dict[str, Target] = {}
    for position, (device, reachable) in enumerate(ordered):
        stage = next(index for index, size in enumerate(sizes) if position < size)
        targets[device] = Target(device=device, stage=stage, reachable=reachable)
    return RolloutState(replace_rollout(rollout, since_ms=rollout.created_ms), targets)


def stage_sizes(stages: tuple[Stage, ...], total: int) -> list[int]:
    """How many devices have been touched at the end of each stage.

    Raises:
        ConflictError: No device, no stage, a stage without exactly one size, or stages that do not grow to all devices.
    """
    if not total or not stages:
        raise ConflictError(f"Wanted devices and stages for a rollout, found {total} devices and {len(stages)} stages.")
    sizes: list[int] = []
    for stage in stages:
        if (stage.count is None) == (stage.share is None):
            raise ConflictError(f"Wanted either a count or a share of each stage, found {stage}.")
        wanted = stage.count if stage.count is not None else math.ceil(round((stage.share or 0) * total, 6))
        sizes.append(min(total, wanted))
    if sizes != sorted(sizes) or sizes[-1] != total:
        raise ConflictError(f"Wanted stages that grow to all {total} devices, found {sizes}. End with 100%.")
    return sizes


def apply(state: RolloutState, event: Event) -> RolloutState:
    """The state after an event.

    Raises:
        ConflictError: An order that this state cannot follow.
    """
    return apply_all(state, (event,))


def apply_all(state: RolloutState, events: Iterable[Event]) -> RolloutState:
    """The state after several events, at the cost of one copy."""
    rollout, targets = state.rollout, dict(state.targets)
    for event in events:
        if isinstance(event, TargetChanged):
            before = targets.get(event.device)
            if before is not None and _may_become(before.state, event.state):
                targets[event.device] = msgspec.structs.replace(
                    before, state=event.state, error=event.error or before.error, changed_ms=event.at_ms
                )
        elif isinstance(event, Reached):
            before = targets.get(event.device)
            if before is not None:
                targets[event.device] = msgspec.structs.replace(before, reachable=event.reachable)
        elif isinstance(event, Moved):
            rollout = replace_rollout(
                rollout,
                phase=event.phase,
                stage=event.stage,
                since_ms=event.at_ms,
                reason=event.reason or rollout.reason,
            )
        else:
            rollout = _follow(rollout, event)
    return RolloutState(rollout, targets)


def plan(state: RolloutState, now_ms: int) -> list[Action]:
    """What to do now. Doing it and applying `event_of` each action, until nothing is left, moves the rollout on."""
    rollout = state.rollout
    if rollout.phase in ENDED:
        return []
    if rollout.phase == "rolling_back":
        return _plan_rollback(state, now_ms)
    failed = failure(state)
    if failed is not None:
        return [Move("rolling_back", rollout.stage, failed)]
    if rollout.paused:
        return []
    if rollout.phase == "running":
        return _plan_stage(state, now_ms)
    if rollout.phase == "soaking" and now_ms - rollout.since_ms >= 1000 * rollout.spec.stages[rollout.stage].soak_s:
        return [_leave_stage(rollout)]
    return []


def event_of(action: Action, now_ms: int) -> Event:
    """What has happened when an action was carried out."""
    if isinstance(action, Update):
        return TargetChanged(action.device, "updating", now_ms)
    if isinstance(action, Revert):
        return TargetChanged(action.device, "reverting", now_ms)
    if isinstance(action, Skip):
        return TargetChanged(action.device, "skipped", now_ms, "never came back")
    return Moved(action.phase, action.stage, now_ms, action.reason)


def failure(state: RolloutState) -> str | None:
    """Why the rollout must not go on: failures of this stage reach the share, and enough devices have ended."""
    spec, stage = state.rollout.spec, state.rollout.stage
    here = [target.state for target in state.targets.values() if target.stage == stage]
    failed, ended = here.count("failed"), here.count("failed") + here.count("succeeded")
    if failed and ended >= min(spec.minimum_sample, len(here)) and failed >= spec.abort_share * ended:
        first = next(target for target in state.targets.values() if target.stage == stage and target.state == "failed")
        return f"{failed} of {ended} devices failed in stage {stage + 1}; first {first.device}: {first.error}"[:500]
    return None


def _plan_stage(state: RolloutState, now_ms: int) -> list[Action]:
    rollout = state.rollout
    spec, stage = rollout.spec, rollout.stage
    here = [target for target in state.targets.values() if target.stage <= stage]
    pending = [target for target in here if target.state == "pending"]
    updating = [target for target in here if target.state == "updating"]
    if now_ms - rollout.created_ms >= 1000 * spec.give_up_s and (pending or updating):
        return [Skip(target.device) for target in (*pending, *updating)]
    # Devices out of reach get the order as well (it waits for them) and do not fill the places of the others.
    room = spec.max_parallel - sum(target.reachable for target in updating)
    near = [target for target in pending if target.reachable][: max(0, room)]
    far = [target for target in pending if not target.reachable]
    actions: list[Action] = [Update(target.device) for target in (*near, *far)]
    if actions:
        return actions
    last = stage == len(spec.stages) - 1
    in_stage = [target for target in here if target.stage == stage]
    if not in_stage:  # fewer devices than stages: nothing to watch here
        return [Move("done", stage) if last else Move("running", stage + 1)]
    ended = sum(target.state in ("succeeded", "failed", "skipped") for target in in_stage)
    busy = any(target.reachable or last or _restarts(spec, target, now_ms) for target in updating)
    if not pending and not busy and (last or ended >= min(spec.minimum_sample, len(in_stage))):
        return [Move("soaking", stage)]
    return []


def _plan_rollback(state: RolloutState, now_ms: int) -> list[Action]:
    rollout = state.rollout
    actions: list[Action] = [
        Revert(target.device)
        for target in state.targets.values()
        if target.state in ("updating", "succeeded", "failed")
    ]
    if actions:
        return actions
    over = now_ms - rollout.since_ms >= 1000 * rollout.spec.give_up_s
    reverting = [target for target in state.targets.values() if target.state == "reverting"]
    if over or not any(target.reachable or _restarts(rollout.spec, target, now_ms) for target in reverting):
        return [Move("rolled_back", rollout.stage)]  # the desired state of the others is written: it waits for them
    return []


def _restarts(spec: RolloutSpec, target: Target, now_ms: int) -> bool:
    """Whether a device that cannot be reached may be between two agents: its word still counts for its stage."""
    return now_ms - target.changed_ms < 1000 * spec.restart_s


def _leave_stage(rollout: Rollout) -> Move:
    if rollout.stage == len(rollout.spec.stages) - 1:
        return Move("done", rollout.stage)
    if rollout.spec.stages[rollout.stage].approval:
        return Move("awaiting_approval", rollout.stage)
    return Move("running", rollout.stage + 1)


def _follow(rollout: Rollout, event: Ordered) -> Rollout:
    if event.order == "rollback" and rollout.phase not in ("rolling_back", "rolled_back"):
        reason = event.reason or "asked for"
        return replace_rollout(rollout, phase="rolling_back", since_ms=event.at_ms, reason=reason, paused=False)
    if event.order == "approve" and rollout.phase == "awaiting_approval":
        return replace_rollout(rollout, phase="running", stage=rollout.stage + 1, since_ms=event.at_ms)
    if event.order in ("pause", "resume") and rollout.phase not in (*ENDED, "rolling_back"):
        return replace_rollout(rollout, paused=event.order == "pause")
    raise ConflictError(f"Wanted to {event.order} rollout {rollout.id}, found it {rollout.phase.replace('_', ' ')}.")


def _may_become(before: TargetState, after: TargetState) -> bool:
    """Late news of an order that was withdrawn changes nothing."""
    allowed: dict[TargetState, tuple[TargetState, ...]] = {
        "pending": ("updating", "skipped"),
        "updating": ("succeeded", "failed", "reverting", "skipped"),
        "succeeded": ("reverting",),
        "failed": ("reverting",),
        "reverting": ("reverted",),
        "reverted": (),
        "skipped": (),
    }
    return after in allowed[before]


def replace_rollout(rollout: Rollout, **changes: object) -> Rollout:
    """A rollout with some fields changed."""
    return msgspec.structs.replace(rollout, **changes)


@dataclass(frozen=True)
class Progress:
    """How far a rollout is; `left_s` is null when nobody can know (paused, waiting, nothing has ended yet)."""

    counts: Mapping[TargetState, int]
    touched: int
    ended: int
    total: int
    out_of_reach: int
    left_s: float | None


def progress(state: RolloutState, now_ms: int) -> Progress:
    """Counts, and the time left: the waves of devices to come at the pace so far, and the soak times to come."""
    rollout, targets = state.rollout, state.targets.values()
    counts: Counter[TargetState] = Counter(target.state for target in targets)
    ended = sum(counts[name] for name in _OVER)
    touched = sum(counts[name] for name in _TOUCHED)
    far = sum(not target.reachable and target.state in ("pending", "updating", "reverting") for target in targets)
    result = Progress(counts, touched, ended, len(targets), far, None)
    if rollout.phase in ENDED:
        return replace(result, left_s=0.0)
    if rollout.paused or rollout.phase in ("awaiting_approval", "rolling_back") or not ended:
        return result
    soaks = [stage.soak_s for stage in rollout.spec.stages]
    waited = now_ms - rollout.since_ms if rollout.phase == "soaking" else 0
    waves = _waves(rollout.spec, len(targets))
    in_stage = [target for target in targets if target.stage == rollout.stage]
    there = [target for target in in_stage if target.reachable or target.state in _OVER]
    done = waves[rollout.stage] * sum(target.state in _OVER for target in there) / max(1, len(there))
    if done and rollout.phase == "running":
        pace_ms = (now_ms - rollout.since_ms) / done
    else:  # nothing of this stage has ended, or all of it: the stages before tell
        working_ms = now_ms - rollout.created_ms - waited - 1000 * sum(soaks[: rollout.stage])
        pace_ms = max(0.0, working_ms) / (sum(waves[: rollout.stage]) + done or 1)
    soak_left_s = max(0.0, sum(soaks[rollout.stage :]) - waited / 1000)
    return replace(result, left_s=(sum(waves[rollout.stage :]) - done) * pace_ms / 1000 + soak_left_s)


def _waves(spec: RolloutSpec, total: int) -> list[int]:
    """How often each stage has all that may update at once busy: devices of one wave end at about the same time."""
    sizes = stage_sizes(spec.stages, total)
    return [math.ceil((size - before) / spec.max_parallel) for before, size in zip([0, *sizes], sizes, strict=False)]
