"""`headtail fleet doctor`: look for what usually goes wrong."""

import contextlib
import logging
import os
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from device_profiles.errors import EdgeError
from device_profiles.version import __version__
from edge_runtime.broker_url import TlsFiles, is_loopback_host, parse_url, tls_url
from edge_runtime.messages import PREFIX
from edge_runtime.mqtt import LinkOptions, MqttError, MqttLink, NotConnectedError, Packet
from orchestrator.commands.broker import measure_echo
from orchestrator.commands.output import print_json, print_table
from orchestrator.fleet.doctor import BrokerFacts, Finding, diagnose_broker, diagnose_devices
from orchestrator.fleet.fleet_file import find_broker, read_fleet_file
from orchestrator.fleet.queries import list_devices
from orchestrator.fleet.store import Store, now_ms

_WAIT_S = 2.0


def doctor(
    *,
    broker: str | None = None,
    store: str | None = None,
    folder: Path | None = None,
    as_device: str | None = None,
    json: bool = False,
) -> int:
    """Look for what usually goes wrong: a slow broker (Nagle), open access, clocks, versions, devices out of step.

    Args:
        broker: URL of the broker, as the host uses it; that of the fleet when not given.
        store: URL of the database; that of the fleet when not given.
        folder: Folder of `headtail fleet up`.
        as_device: URL with the credentials of a device that does not run now: tries what they must not allow.
        json: Print JSON.
    """
    findings = diagnose_broker(look_at_broker(broker or find_broker(folder), as_device))
    fleet = read_fleet_file(folder)
    url = store or (fleet.store if fleet is not None else None)
    if url is not None:
        opened = Store(url)
        try:
            with opened.read() as session:
                views = list_devices(session, now_ms=now_ms())
        finally:
            opened.close()
        findings += diagnose_devices(views, now_ms=now_ms(), host_version=__version__)
    else:
        findings.append(
            Finding(
                level="warn",
                what="database",
                found="no fleet runs here",
                next="Start it (headtail fleet up), or give --store or --folder.",
            )
        )
    if json:
        print_json(findings)
    else:
        print_table("Fleet", ("", "what", "found", "next"), [(f.level, f.what, f.found, f.next) for f in findings])
    return 1 if any(finding.level == "bad" for finding in findings) else 0


def look_at_broker(broker: str, as_device: str | None = None) -> BrokerFacts:
    """Measure the echo, and try what should not be possible."""
    try:
        max_packet_bytes, _ = measure_echo(broker, count=1)
        echo_ms = measure_round_trip(broker)
    except MqttError as error:
        return BrokerFacts(error=str(error))
    parts = parse_url(broker)
    bare = (
        f"mqtt://{parts.host}:{parts.port}"
        if parts.tls is None
        else tls_url(parts.host, parts.port, TlsFiles(parts.tls.ca))
    )
    return BrokerFacts(
        echo_ms=echo_ms,
        max_packet_bytes=max_packet_bytes,
        loopback=is_loopback_host(parts.host),
        anonymous=_can_connect(bare),
        crosses=tuple(_crosses(broker, as_device)) if as_device is not None else (),
        checked_as_device=as_device is not None,
    )


def measure_round_trip(broker: str, *, count: int = 25, timeout_s: float = 5.0) -> float:
    """Lower quartile in ms of 1 KB at QoS 1 to a second client and back: a busy machine only makes some slower.

    An echo to oneself would not show Nagle's algorithm in the broker: what it holds back is the reply behind the
    acknowledgement of the request.

    Raises:
        MqttError: No broker, or one that loses messages.
    """
    mark = os.urandom(8).hex()
    ask, answer = (f"{PREFIX}/check/{mark}/off/{word}/0" for word in ("req", "rep"))
    ended, times = threading.Lock(), []
    ended.acquire()

    def reply(_topic: str, payload: bytes, qos: int) -> None:
        far.publish_pieces(answer, (payload,), qos)

    far = MqttLink(broker, LinkOptions(subscriptions=((ask, 1),)), reply)
    near = MqttLink(broker, LinkOptions(subscriptions=((answer, 1),)), lambda *_: ended.release())
    with far, near:
        far.wait_connected(timeout_s)
        near.wait_connected(timeout_s)
        for _ in range(count):
            begun = time.perf_counter()
            near.publish_pieces(ask, (bytes(1000),), 1)
            if not near.wait_for(ended, timeout_s):
                raise NotConnectedError(f"Wanted an answer through the broker within {timeout_s:g} s, found none.")
            times.append(1000 * (time.perf_counter() - begun))
    return statistics.quantiles(times, n=4)[0]


def _can_connect(url: str) -> bool:
    try:
        with _refusals_wanted(), MqttLink(url, LinkOptions(), _ignore) as link:
            link.wait_connected(_WAIT_S)
            return True
    except EdgeError:
        return False


@contextlib.contextmanager
def _refusals_wanted() -> Iterator[None]:
    """Connections that ought to be refused; nobody needs to read each time that they were."""
    log = logging.getLogger(MqttLink.__module__)
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _crosses(host: str, device: str) -> list[str]:
    """Publish to a device that does not exist with a device's credentials, and read along with everybody."""
    found = []
    mark = os.urandom(8).hex()
    foreign, other = f"{PREFIX}/default/nobody-{mark}/up/hb", f"{PREFIX}/default/other-{mark}/down/job"
    reached, overheard = threading.Event(), threading.Event()

    def hear(topic: str, _payload: bytes, _qos: int) -> None:
        for wanted, event in ((foreign, reached), (other, overheard)):  # a device may hear what is sent to itself
            if topic == wanted:
                event.set()

    with (
        MqttLink(host, LinkOptions(subscriptions=((foreign, 1),)), hear) as listener,
        MqttLink(device, LinkOptions(subscriptions=((f"{PREFIX}/#", 1),)), hear) as pretender,
    ):
        listener.wait_connected(_WAIT_S)
        try:
            pretender.wait_connected(_WAIT_S)
        except MqttError:  # a refused subscription is what should happen
            if not pretender.connected:
                raise
        reached.clear()
        pretender.publish(Packet(foreign, b"doctor", 1))
        if reached.wait(_WAIT_S / 4):
            found.append("publish as another device")
        listener.publish(Packet(other, b"doctor", 1))
        if overheard.wait(_WAIT_S / 4):
            found.append("read what is sent to another device")
    return found


def _ignore(*_: object) -> None:
    """Nothing is subscribed."""
