"""`headtail broker`: start a broker, or check one that runs."""

import statistics
import sys
import threading
import time
from pathlib import Path

from edge_runtime.broker_url import hide_password
from edge_runtime.mqtt import LinkOptions, MqttLink, NotConnectedError, Packet
from orchestrator.broker import BrokerOptions, start_broker
from orchestrator.broker_access import AccessOptions
from orchestrator.commands.output import print_json
from orchestrator.commands.serving import until_stopped

_SLOW_ECHO_MS = 35.0  # Nagle's algorithm on one side costs 40 ms and more


def broker(
    *,
    port: int = 1883,
    host: str = "127.0.0.1",
    url: str | None = None,
    embedded: bool = False,
    pki: Path | None = None,
    tenant: str = "default",
    device_port: int = 8883,
    service_port: int = 8884,
    insecure: bool = False,
    json: bool = False,
) -> None:
    """Start an MQTT broker for devices and tails, and run it until Ctrl-C.

    Args:
        port: TCP port; 0 takes a free one.
        host: Address to listen on; other than loopback only with --pki.
        url: Start none; check the broker at this URL and exit.
        embedded: Use the broker out of the Python package iotcore even where mosquitto is installed.
        pki: Folder of `headtail pki init`: certificates are required, and devices reach their own topics alone.
        tenant: Of the devices, with --pki.
        device_port: Where devices connect, with --pki.
        service_port: Where services connect and devices offload, with --pki.
        insecure: Listen on other addresses without any access control; for networks that nobody else is on.
        json: Print JSON.
    """
    if url is not None:
        _check(url, json=json)
        return
    access = None if pki is None else AccessOptions(pki.resolve(), host, device_port, service_port, tenant)
    options = BrokerOptions(host=host, port=port, access=access, insecure=insecure)
    if access is None:
        sys.stderr.write("no certificates: whoever reaches this broker may read and write everything\n")
    with until_stopped(), start_broker(options, embedded=embedded) as running:
        kind = type(running).__name__
        if json:
            print_json({"url": running.url, "kind": kind})
        else:
            sys.stdout.write(f"{kind} at {running.url}; Ctrl-C stops it\n")
        sys.stdout.flush()
        running.wait()


def _check(url: str, *, json: bool) -> None:
    """Connect, and measure an echo of 1 KB at QoS 1."""
    max_packet_bytes, echo_ms = measure_echo(url)
    if json:
        print_json({"url": hide_password(url), "max_packet_bytes": max_packet_bytes, "echo_ms": echo_ms})
        return
    sys.stdout.write(
        f"broker at {hide_password(url)}: packets up to {max_packet_bytes} B, echo of 1 KB at QoS 1 in {echo_ms:.2f} ms\n"
    )
    if echo_ms > _SLOW_ECHO_MS:
        sys.stdout.write("That is slow: set set_tcp_nodelay true in mosquitto.conf, or use QoS 0 for offload.\n")


def measure_echo(url: str, *, count: int = 11, timeout_s: float = 5.0) -> tuple[int, float]:
    """The broker's largest packet in bytes, and the median echo in ms of 1 KB at QoS 1.

    Raises:
        NotConnectedError: No broker, or one that loses messages.
    """
    arrived = threading.Lock()
    arrived.acquire()
    topic = f"ht/v1/check/{time.time_ns()}/up/echo"
    options = LinkOptions(subscriptions=((topic, 1),))
    with MqttLink(url, options, lambda *_: arrived.release()) as link:
        link.wait_connected(timeout_s)
        times = []
        for _ in range(count):
            begun = time.perf_counter()
            link.publish(Packet(topic, bytes(1000), qos=1))
            if not link.wait_for(arrived, timeout_s):
                raise NotConnectedError(f"Wanted an echo from {hide_password(url)} within {timeout_s:g} s, found none.")
            times.append(1000 * (time.perf_counter() - begun))
        return link.max_packet_bytes, statistics.median(times)
