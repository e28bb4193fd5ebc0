"""What a page shows, from the registry and from what was heard: plain values for the templates."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sqlalchemy.orm import Session

from device_profiles.errors import EdgeError
from edge_runtime.artefact import open_artefact
from edge_runtime.manifest import Quality
from orchestrator.dashboard.collector import Collector
from orchestrator.dashboard.drift import ALERT, WATCH
from orchestrator.dashboard.live import Figures, Live, ModelLive, Sample, Tail
from orchestrator.fleet.queries import (
    DeviceView,
    FleetSummary,
    RolloutView,
    VersionView,
    get_artefact,
    list_devices,
    list_rollouts,
    list_versions,
    show_device,
    show_rollout,
    summarise,
)
from orchestrator.fleet.store import Store, now_ms

SHOWN_DEVICES = 300
_ORDER = {"offline": 0, "stale": 1, "online": 2, "never": 3}


@dataclass(frozen=True)
class DeviceLine:
    """A device and its figures."""

    view: DeviceView
    version: str
    figures: Figures
    problem: str | None


@dataclass(frozen=True)
class ModelLine:
    """A model: what its manifest promises, and what is seen."""

    name: str
    devices: int
    figures: Figures
    live: ModelLive
    quality: Quality | None

    @property
    def drift(self) -> str:
        """One of "steady", "watch" and "alert"; empty while there are too few answers."""
        index = self.live.confidence.index
        if index is None:
            return ""
        return "alert" if index >= ALERT else "watch" if index >= WATCH else "steady"


@dataclass(frozen=True)
class Alert:
    """Something that a person should look at. `level` is "bad" or "warn"."""

    level: str
    text: str
    link: str = ""


@dataclass(frozen=True)
class Overview:
    """The first page."""

    at_ms: int
    connected: bool
    summary: FleetSummary
    figures: Figures
    devices: Sequence[DeviceLine]
    hidden: int  # devices beyond the first ones
    models: Sequence[ModelLine]
    rollouts: Sequence[RolloutView]
    tails: Mapping[str, Tail]
    alerts: Sequence[Alert]
    search: str


@dataclass(frozen=True)
class DevicePage:
    """One device."""

    at_ms: int
    line: DeviceLine
    samples: Sequence[Sample]


@dataclass(frozen=True)
class RolloutPage:
    """One rollout, with its devices."""

    at_ms: int
    view: RolloutView


def overview(store: Store, collector: Collector, search: str = "") -> Overview:
    """Read everything for the first page."""
    at_ms, now = now_ms(), time.monotonic()
    with store.read() as session:
        summary = summarise(session, now_ms=at_ms)
        views = list_devices(session, now_ms=at_ms)
        versions = list_versions(session)
        rollouts = list_rollouts(session, now_ms=at_ms, limit=8)
        named = {view.id: _version_of(view, versions) for view in views}
        qualities = {version.name: _quality(session, version) for version in versions}
    collector.name_models(named)
    chosen = [view for view in views if search.lower() in f"{view.id} {named[view.id]} {view.board}".lower()]
    chosen.sort(key=lambda view: (_ORDER[view.status], view.id))
    with collector.read() as live:
        lines = [_line(view, named[view.id], live, now) for view in chosen[:SHOWN_DEVICES]]
        figures = live.together(named, now)
        models = _models(named, live, qualities, now)
        tails = live.tails(now)
    alerts = _alerts(views, models, tails, rollouts, connected=collector.connected)
    return Overview(
        at_ms=at_ms,
        connected=collector.connected,
        summary=summary,
        figures=figures,
        devices=lines,
        hidden=max(0, len(chosen) - SHOWN_DEVICES),
        models=models,
        rollouts=rollouts,
        tails=tails,
        alerts=alerts,
        search=search,
    )


def device_page(store: Store, collector: Collector, device: str) -> DevicePage:
    """Read everything for a device's page.

    Raises:
        UnknownError: No such device.
    """
    at_ms, now = now_ms(), time.monotonic()
    with store.read() as session:
        view = show_device(session, device, now_ms=at_ms)
        version = _version_of(view, list_versions(session))
    with collector.read() as live:
        return DevicePage(at_ms, _line(view, version, live, now), live.series(device, now))


def rollout_page(store: Store, rollout: str) -> RolloutPage:
    """Read everything for a rollout's page.

    Raises:
        UnknownError: No such rollout.
    """
    at_ms = now_ms()
    with store.read() as session:
        return RolloutPage(at_ms, show_rollout(session, rollout, now_ms=at_ms))


def _line(view: DeviceView, version: str, live: Live, now: float) -> DeviceLine:
    problem = view.birth.problem if view.birth else None
    if problem is None and view.reported is not None:
        ended_badly = view.reported.state in ("failed", "rolled_back")
        problem = view.reported.error or (view.reported.state if ended_badly else None)
    return DeviceLine(view, version, live.device(view.id, now), problem)


def _version_of(view: DeviceView, versions: Sequence[VersionView]) -> str:
    """What a device says that it runs; else the version whose artefact is in its slots."""
    if view.reported is not None and view.reported.version:
        return view.reported.version
    slots = view.slots
    for version in versions:
        if (slots.head and slots.head == version.head) or (
            not slots.head and slots.whole and slots.whole == version.whole
        ):
            return version.name
    found = slots.head or slots.whole
    return f"unmanaged ({found[:8]})" if found else "nothing"


def _models(
    named: Mapping[str, str], live: Live, qualities: Mapping[str, Quality | None], now: float
) -> list[ModelLine]:
    devices: dict[str, list[str]] = {}
    for device, model in named.items():
        devices.setdefault(model, []).append(device)
    return [
        ModelLine(
            model, len(owners), live.together(owners, now), live.models.get(model, ModelLive()), qualities.get(model)
        )
        for model, owners in sorted(devices.items())
        if model != "nothing"
    ]


def _quality(session: Session, version: VersionView) -> Quality | None:
    """What the manifest says of the accuracy: that of the tail, else of the whole model."""
    for artefact in (version.tail, version.whole, version.head):
        row = get_artefact(session, artefact) if artefact else None
        found = _read_quality(row.path) if row is not None else None
        if found is not None:
            return found
    return None


@lru_cache(maxsize=256)
def _read_quality(path: str) -> Quality | None:
    try:
        return open_artefact(Path(path)).manifest.quality
    except (EdgeError, OSError):  # gone or damaged: whoever serves it will say so
        return None


def _alerts(
    views: Sequence[DeviceView],
    models: Sequence[ModelLine],
    tails: Mapping[str, Tail],
    rollouts: Sequence[RolloutView],
    *,
    connected: bool,
) -> list[Alert]:
    found = [] if connected else [Alert("bad", "No connection to the broker: live figures stand still.")]
    for status, level in (("offline", "bad"), ("stale", "warn")):
        names = [view.id for view in views if view.status == status]
        if names:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            found.append(Alert(level, f"{len(names)} {status}: {shown}", f"/devices/{names[0]}"))
    found += [
        Alert("bad", f"{view.id}: {view.birth.problem}", f"/devices/{view.id}")
        for view in views
        if view.birth is not None and view.birth.problem and view.status == "online"
    ]
    for one in rollouts:
        if one.rollout.phase == "rolling_back":
            found.append(
                Alert(
                    "bad", f"Rollout {one.rollout.id} rolls back: {one.rollout.reason}", f"/rollouts/{one.rollout.id}"
                )
            )
        elif one.rollout.phase == "awaiting_approval":
            found.append(Alert("warn", f"Rollout {one.rollout.id} waits for approval.", f"/rollouts/{one.rollout.id}"))
    for model in models:
        index = model.live.confidence.index
        if index is not None and model.drift in ("alert", "watch"):
            level = "bad" if model.drift == "alert" else "warn"
            found.append(Alert(level, f"{model.name}: confidence has drifted (stability index {index:.2f})"))
    for name, tail in tails.items():
        if (tail.rate(lambda beat: beat.busy) or 0) > 0:
            found.append(Alert("warn", f"{name} turns requests away: it is busy."))
    return found[:20]
