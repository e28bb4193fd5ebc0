"""`headtail fleet ..`: look at the fleet, change labels and groups, queue jobs."""

import getpass
import os
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path

import msgspec

from edge_runtime.messages import Setting
from orchestrator.commands.output import print_fields, print_json, print_table
from orchestrator.fleet import jobs as job_queue
from orchestrator.fleet import queries, registry
from orchestrator.fleet.audit import read_audit, verify_audit
from orchestrator.fleet.errors import FleetError, StoreError, UnknownError
from orchestrator.fleet.fleet_file import default_folder, find_store
from orchestrator.fleet.store import Store, now_ms

_SQLITE = "sqlite:///"


def devices(to: str | None = None, *, store: str | None = None, folder: Path | None = None, json: bool = False) -> None:
    """List devices with what they run.

    Args:
        to: A device, group or selector (site=lab,!old); all when not given.
        store: URL of the fleet's database.
        folder: Folder of `headtail fleet up`.
        json: Print JSON.
    """
    with open_store(store, folder).read() as session:
        views = queries.list_devices(session, now_ms=now_ms(), to=to)
    if json:
        print_json(views)
        return
    rows = [
        (
            view.id,
            view.status,
            view.board,
            (view.reported.version if view.reported else None) or (view.slots.whole or view.slots.head or "")[:12],
            _agent(view),
            view.reported.state if view.reported else None,
            _ago(view.seen_ms),
            ",".join(f"{key}={value}" if value else key for key, value in sorted(view.labels.items()) if key not in ("name", "board", "tenant")),
        )
        for view in views
    ]  # fmt: skip
    print_table(_devices(len(rows)), ("device", "status", "board", "runs", "agent", "state", "seen", "labels"), rows)


def groups(
    name: str | None = None,
    *members: str,
    selector: str | None = None,
    store: str | None = None,
    folder: Path | None = None,
    json: bool = False,
) -> None:
    """List groups; with a name and members or a selector, make or replace that one.

    Args:
        name: The group to make.
        members: Its devices by name.
        selector: Devices with these labels are in it as well.
        store: URL of the fleet's database.
        folder: Folder of `headtail fleet up`.
        json: Print JSON.
    """
    opened = open_store(store, folder)
    if name is not None and (members or selector):
        with opened.write() as session:
            ids = [device for one in members for device in queries.resolve(session, one, now_ms=now_ms())]
            registry.define_group(session, name, devices=ids, selector=selector, actor=who(), now_ms=now_ms())
    with opened.read() as session:
        views = [view for view in queries.list_groups(session, now_ms=now_ms()) if name in (None, view.name)]
    if name is not None and not views:
        raise UnknownError(f"Wanted the group {name!r}, found none. Make it: headtail fleet groups {name} DEVICE..")
    if json:
        print_json(views)
    else:
        rows = [(view.name, view.selector, len(view.devices)) for view in views]
        print_table("Groups", ("group", "selector", "devices"), rows)


def label(to: str, *labels: str, store: str | None = None, folder: Path | None = None) -> None:
    """Set labels of devices: KEY=VALUE, KEY (a tag), or KEY- to remove it.

    Args:
        to: A device, group or selector.
        labels: What to set.
        store: URL of the fleet's database.
        folder: Folder of `headtail fleet up`.
    """
    new = dict(text.partition("=")[::2] for text in labels if not text.endswith("-"))
    gone = [text[:-1] for text in labels if text.endswith("-")]
    with open_store(store, folder).write() as session:
        found = queries.resolve(session, to, now_ms=now_ms())
        for device in found:
            registry.set_labels(session, device, new, remove=gone, actor=who(), now_ms=now_ms())
    sys.stdout.write(f"{_devices(len(found))} labelled\n")


def status(
    rollout_id: str | None = None, *, store: str | None = None, folder: Path | None = None, json: bool = False
) -> None:
    """Show the fleet in figures with its rollouts, or one rollout with its devices.

    Args:
        rollout_id: As `headtail fleet rollout` printed it.
        store: URL of the fleet's database.
        folder: Folder of `headtail fleet up`.
        json: Print JSON.
    """
    now = now_ms()
    with open_store(store, folder).read() as session:
        summary = queries.summarise(session, now_ms=now)
        if rollout_id is None:
            shown = queries.list_rollouts(session, now_ms=now)
        else:
            shown = [queries.show_rollout(session, rollout_id, now_ms=now)]
    if json:
        print_json({"fleet": summary, "rollouts": shown})
        return
    if rollout_id is None:
        print_fields("Fleet", summary_fields(summary))
    print_table(
        "Rollouts",
        ("rollout", "version", "phase", "stage", "ended", "failed", "out of reach", "left", "why"),
        [rollout_row(view) for view in shown],
    )
    for view in shown if rollout_id is not None else ():
        rows = [(target.device, target.stage + 1, target.state, target.error) for target in view.targets]
        print_table("Devices", ("device", "stage", "state", "error"), rows)


def jobs(
    *,
    device: str | None = None,
    state: job_queue.JobState | None = None,
    store: str | None = None,
    folder: Path | None = None,
    json: bool = False,
) -> None:
    """List the newest jobs."""
    with open_store(store, folder).read() as session:
        found = queries.list_jobs(session, device=device, state=state)
    if json:
        print_json(found)
    else:
        rows = [(job.id, job.device, job.kind, job.state, job.attempt, job.error) for job in found]
        print_table("Jobs", ("job", "device", "kind", "state", "attempt", "error"), rows)


def job(
    kind: str,
    *arguments: str,
    to: str,
    job_id: str | None = None,
    store: str | None = None,
    folder: Path | None = None,
) -> None:
    """Queue a job for devices; each does it once.

    Args:
        kind: What to do, such as echo or reboot.
        arguments: KEY=VALUE.
        to: A device, group or selector.
        job_id: The same id again queues nothing new.
        store: URL of the fleet's database.
        folder: Folder of `headtail fleet up`.
    """
    base = job_id or f"j-{os.urandom(6).hex()}"
    values = {key: _value(value) for key, _, value in (text.partition("=") for text in arguments)}
    with open_store(store, folder).write() as session:
        found = queries.resolve(session, to, now_ms=now_ms())
        new = [
            job_queue.NewJob(id=f"{base}:{device.replace('/', ':')}", kind=kind, arguments=values, device=device)
            for device in found
        ]
        added = job_queue.enqueue(session, new, now_ms=now_ms())
    sys.stdout.write(f"{base}: queued for {added} of {len(found)} devices\n")


def cancel(job_id: str, *, store: str | None = None, folder: Path | None = None) -> None:
    """Cancel a job."""
    with open_store(store, folder).write() as session:
        job_queue.cancel(session, job_id, now_ms=now_ms())


def config(
    scope: str,
    *settings: str,
    store: str | None = None,
    folder: Path | None = None,
) -> None:
    """Set keys of remote configuration: KEY=VALUE (JSON, or text), KEY- removes.

    Args:
        scope: all, group:NAME or device:TENANT/NAME.
        settings: What to set.
        store: URL of the fleet's database.
        folder: Folder of `headtail fleet up`.
    """
    from edge_runtime.remote_config import read_config
    from orchestrator.fleet.brain import refresh_config

    new: dict[str, Setting] = {}
    with open_store(store, folder).write() as session:
        for text in settings:
            key, found, value = text.partition("=")
            if not found and not key.endswith("-"):
                raise FleetError(f"Wanted KEY=VALUE, or KEY- to remove it, found {text!r}.")
            key, setting = (key, _value(value)) if found else (key[:-1], None)
            if setting is not None:
                new[key] = setting
            registry.set_config(session, scope, key, setting, actor=who(), now_ms=now_ms())
        changed = refresh_config(session, now_ms=now_ms())
    sys.stdout.write(f"{_devices(changed)} with another configuration\n")
    problem = read_config(new)[1]
    if problem is not None:
        sys.stderr.write(f"agents of this version pass over it and report so: {problem}\n")


def logs(service: str = "orchestrator", *, lines: int = 40, folder: Path | None = None) -> None:
    """Show the end of a service's log: orchestrator, ingest, dashboard, files, tails, enrolment, devices."""
    if lines < 1:
        raise FleetError(f"Wanted one line or more, found --lines {lines}.")
    path = (folder or default_folder()) / "logs" / f"{service}.log"
    if not path.is_file():
        there = ", ".join(sorted(one.stem for one in path.parent.glob("*.log")))
        found = f"those of {there}" if there else "none. Start the fleet: headtail fleet up, or name its --folder"
        raise FleetError(f"Wanted the log of {service!r} in {path.parent}, found {found}.")
    with path.open(errors="replace") as stream:
        sys.stdout.writelines(deque(stream, maxlen=lines))


def audit(
    *, limit: int = 50, verify: bool = False, store: str | None = None, folder: Path | None = None, json: bool = False
) -> None:
    """Show who changed what, newest first; with --verify check that nothing was changed since."""
    with open_store(store, folder).read() as session:
        if verify:
            count = verify_audit(session)
            if json:
                print_json({"lines": count, "holds": True})
            else:
                sys.stdout.write(f"{count} lines, the chain holds\n")
            return
        found = read_audit(session, limit=limit)
    if json:
        print_json(found)
    else:
        rows = [(line.seq, _time(line.at_ms), line.actor, line.action, line.subject, msgspec.json.encode(line.detail).decode()[:80]) for line in found]  # fmt: skip
        print_table("Audit log", ("line", "at", "who", "did", "to", "detail"), rows)


def open_store(store: str | None, folder: Path | None) -> Store:
    """The database by URL, or that of the fleet in a folder.

    Raises:
        StoreError: No fleet there.
    """
    if store is not None and store.startswith(_SQLITE) and not Path(store.removeprefix(_SQLITE)).is_file():
        raise StoreError(
            f"Wanted a fleet's database, found no {store.removeprefix(_SQLITE)}. headtail fleet up makes it."
        )
    return Store(store or find_store(folder), migrate=store is not None)


def summary_fields(summary: queries.FleetSummary) -> list[tuple[str, str]]:
    """The fleet in figures, for people."""

    def counted(counts: Mapping[str, int]) -> str:
        return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"

    return [
        ("devices", f"{summary.devices}: {counted(summary.by_status)}" if summary.devices else "none"),
        ("versions", counted(summary.by_version)),
        ("boards", counted(summary.by_board)),
        ("jobs", counted(summary.jobs)),
        ("rollouts", counted({phase.replace("_", " "): count for phase, count in summary.rollouts.items()})),
        (
            "out of step",
            "none"
            if not summary.out_of_step
            else f"{_devices(summary.out_of_step)} not running what the registry says",
        ),
    ]


def rollout_row(view: queries.RolloutView) -> tuple[object, ...]:
    """A rollout in one line."""
    rollout, progress = view.rollout, view.progress
    phase = rollout.phase.replace("_", " ") + (" (paused)" if rollout.paused else "")
    left = None if progress.left_s is None else f"{progress.left_s:.0f} s"
    return (
        rollout.id,
        rollout.spec.version,
        phase,
        f"{rollout.stage + 1}/{len(rollout.spec.stages)}",
        f"{progress.ended}/{progress.total}",
        progress.counts.get("failed", 0),
        progress.out_of_reach,
        left,
        rollout.reason or ("its tail is not served yet: headtail fleet logs tails" if view.waits_for_tail else None),
    )


def _value(text: str) -> bool | int | float | str:
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
    return value if isinstance(value, bool | int | float | str) else text


def who() -> str:
    """The person at the keyboard, for the audit log."""
    return f"user:{getpass.getuser()}"


def _agent(view: queries.DeviceView) -> str:
    """Version of the agent, with the bundle that it runs from."""
    bundle = view.birth.agent_artefact if view.birth is not None else None
    return f"{view.agent} ({bundle[:8]})" if bundle else view.agent


def _devices(count: int) -> str:
    return "1 device" if count == 1 else f"{count} devices"


def _ago(at_ms: int | None) -> str | None:
    return None if at_ms is None else f"{max(0, now_ms() - at_ms) / 1000:.0f} s ago"


def _time(at_ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at_ms / 1000))
