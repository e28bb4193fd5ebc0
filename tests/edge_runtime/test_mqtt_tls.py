"""The link over TLS, where one buffer is encrypted at a time and a record that the socket did not take must go next."""

import contextlib
import os
import queue
import signal
import threading

import pytest

from edge_runtime.broker_url import tls_url
from edge_runtime.messages import PREFIX
from edge_runtime.mqtt import LinkBusyError, LinkOptions, MqttLink, NotConnectedError
from orchestrator.broker import BrokerOptions, MosquittoBroker, free_port
from orchestrator.broker_access import AccessOptions
from orchestrator.pki import Authority, readable_by_broker

HOST, TOPIC = "127.0.0.1", f"{PREFIX}/check/tls"


@pytest.fixture(scope="module")
def secured(tmp_path_factory):
    """A mosquitto with certificates, and the URL of a service that may hear itself."""
    folder = tmp_path_factory.mktemp("tls")
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)  # mosquitto gives up root
    authority = Authority.make(folder / "pki", [HOST])
    readable_by_broker(authority)
    access = AccessOptions(authority.folder, HOST, free_port(), free_port())
    with MosquittoBroker(BrokerOptions(access=access)) as running:
        yield running, tls_url(HOST, access.service_port, authority.files("orchestrator"))


def connected(url, inbox, qos):
    link = MqttLink(
        url, LinkOptions(subscriptions=((TOPIC, qos),)), lambda _topic, payload, _qos: inbox.put(bytes(payload))
    ).start()
    link.wait_connected(10)
    return link


@pytest.mark.parametrize("qos", [0, 1])
def test_pieces_of_all_sizes_keep_their_order_over_tls(secured, qos):
    inbox, wanted = queue.Queue(), []
    with connected(secured[1], inbox, qos) as link:
        for index, size in enumerate([0, 1, 121, 16_300, 16_384, 16_400, 600_000, 5, 2_000_000, 7] * 2):
            parts = [bytes([index]) * (size // 2), memoryview(bytes([100 + index]) * (size - size // 2))]
            wanted.append(b"".join(parts))
            link.publish_pieces(TOPIC, parts, qos)
        assert [inbox.get(timeout=10) for _ in wanted] == wanted


def test_a_broker_that_stalls_in_the_middle_of_a_record_gets_every_packet_whole(secured):
    inbox, sent = queue.Queue(), []

    def fill(link):
        for index in range(200):
            link.publish_pieces(TOPIC, [bytes([index]) * 200_001], 0)
            sent.append(index)

    with connected(secured[1], inbox, 0) as link:
        os.kill(secured[0].pid, signal.SIGSTOP)
        try:
            with pytest.raises(LinkBusyError, match="waiting"):
                fill(link)
        finally:
            os.kill(secured[0].pid, signal.SIGCONT)
        for index in sent:
            assert inbox.get(timeout=10) == bytes([index]) * 200_001


def test_a_waiting_caller_reads_its_answer_while_others_write(secured):
    arrived, window, stop = threading.Lock(), threading.Semaphore(4), threading.Event()
    arrived.acquire()

    def take(_topic, payload, _qos):
        (arrived if payload[:1] == b"!" else window).release()

    def write(link):
        while window.acquire(timeout=10) and not stop.is_set():
            link.publish_pieces(TOPIC, [bytes(30_000)], 1)

    with MqttLink(secured[1], LinkOptions(subscriptions=((TOPIC, 1),)), take) as link:
        link.wait_connected(10)
        writer = threading.Thread(target=write, args=(link,))
        writer.start()
        try:
            for _ in range(50):
                link.publish_pieces(TOPIC, [b"!", bytes(50_000)], 1)
                assert link.wait_for(arrived, 10)
        finally:
            stop.set()
            window.release()
            writer.join(10)
        assert link.connects == 1


def test_closing_while_another_thread_writes_is_a_named_error_there(secured):
    ended = queue.Queue()
    link = connected(secured[1], queue.Queue(), 0)

    def write():
        try:
            while True:
                with contextlib.suppress(LinkBusyError):
                    link.publish_pieces(TOPIC, [bytes(100_000)], 0)
        except NotConnectedError as error:
            ended.put(error)

    writer = threading.Thread(target=write)
    writer.start()
    link.close()
    assert isinstance(ended.get(timeout=10), NotConnectedError)
    writer.join(10)
