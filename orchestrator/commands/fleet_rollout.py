"""`headtail fleet rollout|pause|resume|approve|rollback`."""

import os
import sys
import time
from pathlib import Path

from orchestrator.commands.fleet import open_store, rollout_row, who
from orchestrator.commands.output import print_json
from orchestrator.fleet import queries
from orchestrator.fleet.errors import FleetError
from orchestrator.fleet.rollouts import create_rollout, order_rollout
from orchestrator.fleet.state import Ordered, RolloutSpec, Stage
from orchestrator.fleet.store import Store, now_ms

USUAL_STAGES = "5%,25%,100%"


def rollout(
    version: str,
    *,
    to: str,
    stages: str = USUAL_STAGES,
    soak: float = 60.0,
    approve_each: bool = False,
    abort_at: float = 0.1,
    minimum_sample: int = 5,
    parallel: int = 100,
    timeout: float = 600.0,
    probation: float = 10.0,
    wait: bool = False,
    store: str | None = None,
    folder: Path | None = None,
    json: bool = False,
) -> None:
    """Bring a registered version to devices in stages; too many failures take it back everywhere.

    Args:
        version: MODEL@VERSION.
        to: A device, group or selector.
        stages: Devices touched at the end of each stage: counts or shares, such as 1,10,100%.
        soak: Seconds to wait and watch after each stage but the last.
        approve_each: Wait for `headtail fleet approve` after each stage.
        abort_at: Share of failures among a stage's ended devices that aborts, above 0 and up to 1.
        minimum_sample: So many must have ended before failures count.
        parallel: Devices that may update at the same time.
        timeout: Seconds that one attempt may take on a device.
        probation: Seconds that a device must run it well.
        wait: Show the progress until it ends.
        store: URL of the fleet's database.
        folder: Folder of `headtail fleet up`.
        json: Print JSON.
    """
    spec = RolloutSpec(
        version=version,
        to=to,
        stages=parse_stages(stages, soak, approval=approve_each),
        abort_share=abort_at,
        minimum_sample=minimum_sample,
        max_parallel=parallel,
        update_timeout_s=timeout,
        probation_s=probation,
    )
    opened = open_store(store, folder)
    rollout_id = f"r-{os.urandom(4).hex()}"
    with opened.write() as session:
        state = create_rollout(session, rollout_id, spec, actor=who(), now_ms=now_ms())
    if json:
        print_json({"rollout": rollout_id, "devices": len(state.targets)})
    else:
        sys.stdout.write(f"rollout {rollout_id}: {version} to {len(state.targets)} devices\n")
    if wait:
        _watch(opened, rollout_id)


def pause(rollout_id: str, *, store: str | None = None, folder: Path | None = None) -> None:
    """Touch no further device until `resume`; what was begun ends."""
    _give(rollout_id, "pause", store, folder)


def resume(rollout_id: str, *, store: str | None = None, folder: Path | None = None) -> None:
    """Go on with a paused rollout."""
    _give(rollout_id, "resume", store, folder)


def approve(rollout_id: str, *, store: str | None = None, folder: Path | None = None) -> None:
    """Let a rollout that waits for approval begin its next stage."""
    _give(rollout_id, "approve", store, folder)


def rollback(
    rollout_id: str, *, reason: str | None = None, store: str | None = None, folder: Path | None = None
) -> None:
    """Bring every device that a rollout touched back to what it ran before."""
    _give(rollout_id, "rollback", store, folder, reason)


def parse_stages(text: str, soak_s: float, *, approval: bool) -> tuple[Stage, ...]:
    """5%,25%,100% or counts: the last one is not soaked and needs no approval.

    Raises:
        FleetError: Something else.
    """
    parts = [part.strip() for part in text.split(",")]
    stages: list[Stage] = []
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        try:
            share = float(part.removesuffix("%")) / 100 if part.endswith("%") else None
            count = int(part) if share is None else None
        except ValueError as error:
            raise FleetError(f"Wanted stages such as 5%,25%,100% or 1,10,100%, found {part!r} in {text!r}.") from error
        if not (0 < share <= 1 if share is not None else (count or 0) > 0):
            raise FleetError(
                f"Wanted stages such as 5%,25%,100%, each at least one device and at most 100%, found {part!r} in {text!r}."
            )
        stages.append(Stage(count=count, share=share, soak_s=0.0 if last else soak_s, approval=approval and not last))
    return tuple(stages)


def _give(rollout_id: str, order: str, store: str | None, folder: Path | None, reason: str | None = None) -> None:
    with open_store(store, folder).write() as session:
        state = order_rollout(session, rollout_id, Ordered(order, now_ms(), reason), actor=who())  # type: ignore[arg-type] # a literal
    paused = ", paused" if state.rollout.paused else ""
    sys.stdout.write(f"rollout {rollout_id}: {state.rollout.phase.replace('_', ' ')}{paused}\n")


def _waits_for(view: queries.RolloutView) -> str:
    """What somebody has to do before the rollout goes on."""
    order = "resume" if view.rollout.paused else "approve" if view.rollout.phase == "awaiting_approval" else None
    if order is not None:
        return f"; it waits for: headtail fleet {order} {view.rollout.id}"
    return "; it waits until its tail is served: headtail fleet logs tails" if view.waits_for_tail else ""


def _watch(store: Store, rollout_id: str) -> None:
    """Show one line that changes; where nobody sees it change, a line for each change but those of the time left."""
    shown, live = "", sys.stderr.isatty()
    while True:
        with store.read() as session:
            view = queries.show_rollout(session, rollout_id, now_ms=now_ms(), targets=False)
        row = rollout_row(view)
        line = f"{row[2]}, stage {row[3]}, {row[4]} ended, {row[5]} failed"
        left = f", {row[7] or '?'} left"
        if live:
            sys.stderr.write(f"\r\x1b[K{line}{left}{_waits_for(view)}")
        elif line != shown:
            sys.stderr.write(f"{line}{left}{_waits_for(view)}\n")
        shown = line
        sys.stderr.flush()
        if view.rollout.phase in ("done", "rolled_back"):
            sys.stderr.write("\n" if live else "")
            if view.rollout.phase == "rolled_back":
                raise FleetError(
                    f"Wanted {view.rollout.spec.version} everywhere, found it rolled back: {view.rollout.reason}"
                )
            return
        time.sleep(0.5)
