import contextlib
import os
import queue
import resource
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from edge_runtime.broker_url import BrokerUrl, UrlError, hide_password, parse_url
from edge_runtime.mqtt import (
    LinkBusyError,
    LinkOptions,
    MqttLink,
    NotConnectedError,
    Packet,
    PacketTooLargeError,
    SubscriptionError,
)
from edge_runtime.offloader import Offloader
from orchestrator.tail_server import TailServer, serve_artefact

# PUBLISH with properties that end too early, with an unknown property, with a topic that is not UTF-8; a packet of no kind
MALFORMED = [b"\x30\x05\0\1t\x7f\x23", b"\x30\x06\0\1t\2\xff\0", b"\x30\x04\0\1\xff\0", b"\xf0\x02\0\0", b"\x90\x01\0"]


class Inbox:
    """What a link received, in order."""

    def __init__(self):
        self._queue = queue.Queue()

    def __call__(self, topic, payload, qos):
        self._queue.put((topic, bytes(payload), qos))

    def next(self, timeout=10):
        return self._queue.get(timeout=timeout)


def connected(url, inbox=None, **options):
    link = MqttLink(url, LinkOptions(**options), inbox or Inbox()).start()
    link.wait_connected(10)
    return link


def publish_many(link, count):
    for _ in range(count):
        link.publish(Packet("t", bytes(200_000), qos=0))


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("fixture", ["broker", "embedded_broker"])
def test_messages_arrive_in_order_with_both_brokers(request, fixture, qos):
    url, inbox = request.getfixturevalue(fixture), Inbox()
    topic = f"ht/v1/order/{fixture}/up/{qos}"
    with connected(url, inbox, subscriptions=((topic, 1),)) as link:
        for index in range(20):
            link.publish(Packet(topic, bytes([index]) * (1 + 1000 * index), qos))
        for index in range(20):
            assert inbox.next()[:2] == (topic, bytes([index]) * (1 + 1000 * index))


def test_a_packet_that_the_broker_would_refuse_is_named_and_the_connection_lives(own_broker):
    inbox = Inbox()
    with connected(own_broker.url, inbox, subscriptions=(("big", 1),)) as link:
        with pytest.raises(PacketTooLargeError, match="at most 300000 B"):
            link.publish(Packet("big", bytes(400_000), qos=1))
        link.publish(Packet("big", bytes(299_900), qos=1))
        assert len(inbox.next()[1]) == 299_900
        assert link.connects == 1


def test_after_a_loss_the_link_comes_back_greets_and_subscribes_again(own_broker):
    inbox, lost = Inbox(), queue.Queue()
    greeting = Packet("birth", b"hello", qos=1, retain=True)
    options = {"subscriptions": (("news", 1),), "greeting": lambda: [greeting], "on_lost": lambda: lost.put(True)}
    with connected(own_broker.url, inbox, **options) as link:
        own_broker.stop(kill=True)
        lost.get(timeout=10)
        with pytest.raises(NotConnectedError):
            link.publish(Packet("news", b"x"))
        own_broker.start()
        link.wait_connected(10)
        link.publish(Packet("news", b"again", qos=1))
        assert inbox.next()[1] == b"again"
        other = Inbox()
        with connected(own_broker.url, other, subscriptions=(("birth", 1),)):
            assert other.next() == ("birth", b"hello", 1)


def test_a_killed_client_leaves_its_will(broker):
    code = (
        "import sys\n"
        "from edge_runtime.mqtt import *\n"
        "will = Packet('ht/v1/t/gone/up/death', b'dead', 1)\n"
        f"link = MqttLink({broker!r}, LinkOptions(will=will), lambda *_: None).start()\n"
        "link.wait_connected(10); print('up', flush=True); sys.stdin.read()\n"
    )
    inbox = Inbox()
    with connected(broker, inbox, subscriptions=(("ht/v1/t/gone/up/death", 1),)):
        process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"up\n"
        process.kill()
        process.wait()
        assert inbox.next()[1] == b"dead"


def test_a_stalled_broker_makes_publish_refuse_instead_of_filling_memory(own_broker):
    with connected(own_broker.url) as link:
        os.kill(own_broker.pid, signal.SIGSTOP)
        try:
            with pytest.raises(LinkBusyError):
                publish_many(link, 200)
        finally:
            os.kill(own_broker.pid, signal.SIGCONT)


@pytest.mark.parametrize("qos", [0, 1])
def test_pieces_and_whole_packets_of_all_sizes_keep_their_order(broker, qos):
    inbox, topic = Inbox(), f"ht/v1/pieces/{qos}/up/x"
    with connected(broker, inbox, subscriptions=((topic, 1),)) as link:
        wanted = []
        for index, size in enumerate([0, 1, 120, 121, 122, 127, 128, 16_380, 16_384, 600_000, 5, 2_000_000, 7]):
            parts = [bytes([index]) * (size // 2), memoryview(bytes([100 + index]) * (size - size // 2))]
            wanted.append(b"".join(parts))
            if index % 3 == 2:
                link.publish(Packet(topic, wanted[-1], qos))
            else:
                assert link.publish_pieces(topic, parts, qos) == size
        assert [inbox.next()[1] for _ in wanted] == wanted


def test_pieces_to_a_stalled_broker_are_kept_whole_up_to_a_limit(own_broker):
    inbox, sent = Inbox(), []

    def fill(link):
        for index in range(200):
            link.publish_pieces("t", [bytes([index]) * 200_000], 0)
            sent.append(index)

    with connected(own_broker.url, inbox, subscriptions=(("t", 0),)) as link:
        os.kill(own_broker.pid, signal.SIGSTOP)
        try:
            with pytest.raises(LinkBusyError, match="waiting"):
                fill(link)
        finally:
            os.kill(own_broker.pid, signal.SIGCONT)
        for index in sent:
            assert inbox.next()[1] == bytes([index]) * 200_000
        with pytest.raises(PacketTooLargeError):
            link.publish_pieces("t", [bytes(300_000)], 0)


def test_a_process_with_very_many_open_files_still_connects(broker):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(2048, limits[1]), limits[1]))
    files = []
    try:
        files += [os.open(os.devnull, os.O_RDONLY) for _ in range(1024)]  # select() takes no number above 1023
        inbox = Inbox()
        with connected(broker, inbox, subscriptions=(("ht/v1/many/files/up/x", 1),)) as link:
            link.publish(Packet("ht/v1/many/files/up/x", b"seen", 1))
            assert inbox.next()[1] == b"seen"
    finally:
        for descriptor in files:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_closed_link_touches_no_descriptor_any_more(broker):
    link = connected(broker)
    link.close()
    read, write = os.pipe()  # takes the numbers that the link had
    try:
        os.set_blocking(read, False)
        link._loop.wake()
        with pytest.raises(BlockingIOError):
            os.read(read, 1)
    finally:
        os.close(read)
        os.close(write)


@pytest.mark.parametrize("packet", MALFORMED)
def test_a_packet_that_is_no_mqtt_costs_the_connection_and_nothing_else(packet):
    with socket.create_server(("127.0.0.1", 0)) as server:
        ended = threading.Lock()
        ended.acquire()
        with MqttLink(f"mqtt://127.0.0.1:{server.getsockname()[1]}", LinkOptions(), Inbox()).start() as link:
            for _ in range(2):  # it comes back after the first
                peer, _ = server.accept()
                with peer:
                    peer.recv(4096)
                    peer.sendall(bytes([0x20, 3, 0, 0, 0]))  # CONNACK, accepted
                    link.wait_connected(10)
                    peer.sendall(packet)
                    assert not link.wait_for(ended, 0.3)


def test_messages_keep_a_connection_alive_whose_pings_wait_for_an_answer():
    with socket.create_server(("127.0.0.1", 0)) as server:
        inbox, url = Inbox(), f"mqtt://127.0.0.1:{server.getsockname()[1]}"
        with MqttLink(url, LinkOptions(keepalive_s=1), inbox).start():
            peer, _ = server.accept()
            with peer:
                peer.settimeout(0.1)
                peer.recv(4096)
                peer.sendall(bytes([0x20, 3, 0, 0, 0]))
                pings, begun = b"", time.monotonic()
                while time.monotonic() - begun < 3.5:
                    with contextlib.suppress(TimeoutError):
                        pings += (more := peer.recv(4096))
                        assert more, "it gave the connection up"
                    peer.sendall(b"\x30\x04\0\1t\0")
                    assert inbox.next()[0] == "t"
                assert pings.startswith(b"\xc0\0")


def test_a_broker_that_refuses_is_told_from_one_that_is_not_there():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        MqttLink(f"mqtt://127.0.0.1:{server.getsockname()[1]}", LinkOptions(), Inbox()) as link,
    ):
        peer, _ = server.accept()
        with peer:
            peer.recv(4096)
            peer.sendall(bytes([0x20, 3, 0, 0x87, 0]))  # CONNACK, not authorised
            assert peer.recv(1) == b""
        with pytest.raises(NotConnectedError, match="refuses: Not authorized"):
            link.wait_connected(0.1)


@pytest.fixture
def refusing():
    """URL of a broker that takes every connection and refuses every subscription."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    peer, _ = server.accept()
                    with peer:
                        peer.recv(4096)
                        peer.sendall(bytes([0x20, 3, 0, 0, 0]))  # CONNACK, accepted
                        asked = peer.recv(4096)
                        peer.sendall(bytes([0x90, 4, *asked[2:4], 0, 0x87]))  # SUBACK, not authorised
                        while peer.recv(4096):
                            pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"mqtt://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def test_a_refused_subscription_is_named_everywhere(refusing, network):
    with (
        MqttLink(refusing, LinkOptions(subscriptions=(("news", 1),)), Inbox()) as link,
        pytest.raises(SubscriptionError, match=r"refuses news \(Not authorized\)"),
    ):
        link.wait_connected(10)
    with pytest.raises(SubscriptionError):
        TailServer(refusing, [serve_artefact(network.tail)]).start()
    with Offloader(refusing, "dev", head=network.head, fallback=network.whole) as offloader:
        with pytest.raises(SubscriptionError):
            offloader.wait_connected(10)
        answer = offloader.infer(network.x)
        assert (answer.source, answer.outputs[0].tolist()) == ("local", network.y.tolist())
        assert "access rules" in answer.why_local


def test_no_broker_is_a_named_error():
    link = MqttLink("mqtt://127.0.0.1:1", LinkOptions(), Inbox()).start()
    with pytest.raises(NotConnectedError, match="headtail broker"):
        link.wait_connected(0.2)
    link.close()
    link.close()


def test_urls():
    assert parse_url("host") == BrokerUrl("host", 1883)
    assert parse_url("mqtt://u:p@[::1]:99") == BrokerUrl("::1", 99, "u", "p")
    assert parse_url("mqtt://u:p%40s%2Fs@h") == BrokerUrl("h", 1883, "u", "p@s/s")
    for bad in ("http://x", "mqtt://", "mqtt://h:99999", "mqtts://h", "mqtt://h/path", ""):
        with pytest.raises(UrlError):
            parse_url(bad)


@pytest.mark.parametrize(
    "url",
    [
        "http://me:hunter2@h",
        "mqtt://me:hunter2@h:99999",
        "mqtt://me:hunter2@h/p",
        "mqtts://me:hunt@hunter2@h",
        "a:hunter2@",
    ],
)
def test_an_error_of_a_url_does_not_print_its_password(url):
    with pytest.raises(UrlError) as found:
        parse_url(url)
    assert "hunter2" not in str(found.value)
    assert "hunter2" not in hide_password(url)
