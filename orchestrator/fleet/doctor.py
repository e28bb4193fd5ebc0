"""What is wrong with a fleet: facts in, findings out. No clock, no socket."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from orchestrator.fleet.queries import DeviceView

NAGLE_MS = 40.0  # what one side without TCP_NODELAY costs: the peer's delayed acknowledgement
_SLACK_MS = 8.0
SIMULATED = "simulated"  # what simulated devices say in place of their version
_SKEW_MS = 2000
_SMALL_PACKET_BYTES = 300_000  # a request of 256 KB and its header


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at."""

    level: Literal["ok", "warn", "bad"]
    what: str
    found: str
    next: str = ""


@dataclass(frozen=True)
class BrokerFacts:
    """What was measured at the broker; null: not measured."""

    error: str | None = None
    echo_ms: float | None = None
    max_packet_bytes: int | None = None
    loopback: bool = True
    anonymous: bool | None = None  # whether it lets in somebody without a name
    crosses: tuple[str, ...] = ()  # what a device's credentials can do that they should not
    checked_as_device: bool = False


def diagnose_broker(facts: BrokerFacts) -> list[Finding]:
    """Reachable, quick, large enough, closed."""
    if facts.error is not None:
        return [Finding(level="bad", what="broker", found=facts.error, next="`headtail broker` starts one.")]
    found = [_echo(facts.echo_ms)] if facts.echo_ms is not None else []
    size = facts.max_packet_bytes
    if size is not None:
        small = size < _SMALL_PACKET_BYTES
        found.append(
            Finding(
                level="warn" if small else "ok",
                what="largest packet",
                found=f"{size} B",
                next="Raise max_packet_size: requests above it go to the fallback." if small else "",
            )
        )
    if facts.anonymous is not None:
        level: Literal["ok", "warn", "bad"] = "ok" if not facts.anonymous else "warn" if facts.loopback else "bad"
        found.append(
            Finding(
                level=level,
                what="access",
                found="anybody may connect" if facts.anonymous else "nobody connects without credentials",
                next="`headtail pki init` makes a closed broker." if facts.anonymous else "",
            )
        )
    if facts.checked_as_device:
        crossed = "; ".join(facts.crosses)
        found.append(
            Finding(
                level="bad" if crossed else "ok",
                what="access rules",
                found=f"a device can {crossed}" if crossed else "a device reaches its own topics alone",
                next="Compare the broker's ACL file with docs/security.md." if crossed else "",
            )
        )
    return found


def _troubles(views: Sequence[DeviceView]) -> list[Finding]:
    """What devices say of themselves: why their model does not run, and what is wrong where it does."""
    models = [f"{view.id}: {view.birth.problem}" for view in views if view.birth is not None and view.birth.problem]
    devices = [
        f"{view.id}: {view.reported.error}"
        for view in views
        if view.reported is not None and view.reported.state == "active" and view.reported.error
    ]
    return [
        *(Finding(level="bad", what="model", found=text) for text in models[:10]),
        *(Finding(level="bad", what="device", found=text) for text in devices[:10]),
    ]


def diagnose_devices(views: Sequence[DeviceView], *, now_ms: int, host_version: str) -> list[Finding]:
    """There, in step, of one version, with clocks that agree."""
    counts = Counter(view.status for view in views)
    away = [view.id for view in views if view.status in ("offline", "stale")]
    found = [
        Finding(
            level="warn" if away else "ok",
            what="devices",
            found=", ".join(f"{count} {status}" for status, count in sorted(counts.items())) or "none",
            next=f"Look at {_some(away)}." if away else "",
        )
    ]
    real = [view for view in views if view.agent and view.agent != SIMULATED]
    versions = Counter(view.agent for view in real)
    others = [view.id for view in real if view.agent != host_version]
    found.append(
        Finding(
            level="warn" if others else "ok",
            what="versions",
            found=f"host {host_version}, devices {', '.join(f'{count} on {name}' for name, count in versions.items()) or 'none'}",
            next=f"Update {_some(others)}: headtail agent-bundle." if others else "",
        )
    )
    ahead = [view.seen_ms - now_ms for view in views if view.seen_ms is not None and view.seen_ms - now_ms > _SKEW_MS]
    found.append(
        Finding(
            level="bad" if ahead else "ok",
            what="clocks",
            found=f"entries up to {max(ahead) / 1000:.1f} s in the future" if ahead else "the hosts' clocks agree",
            next="Run NTP on every host: leases and deadlines of jobs need one time. Devices need none."
            if ahead
            else "",
        )
    )
    found += _troubles(views)
    behind = [view.id for view in views if view.status == "online" and not view.in_step]
    if behind:
        text = f"of the online devices, {len(behind)} not running what they should: {_some(behind)}"
        found.append(Finding(level="warn", what="desired state", found=text, next="`headtail fleet status` says why."))
    return found


def _echo(echo_ms: float) -> Finding:
    """One or two times 40 ms are the mark of Nagle's algorithm; other slow echoes are a slow link."""
    for sides in (1, 2):
        if abs(echo_ms - sides * NAGLE_MS) <= sides * _SLACK_MS:
            return Finding(
                level="bad",
                what="echo",
                found=f"{echo_ms:.1f} ms there and back, 1 KB, QoS 1: Nagle's algorithm on {sides} side{'s' if sides > 1 else ''}",
                next="`set_tcp_nodelay true` in mosquitto.conf, or use QoS 0 for offload.",
            )
    slow = echo_ms > NAGLE_MS / 2
    return Finding(
        level="warn" if slow else "ok",
        what="echo",
        found=f"{echo_ms:.2f} ms there and back, 1 KB, QoS 1",
        next="The link or the broker is slow; deadlines have to allow for it." if slow else "",
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
