"""The direct data plane: negotiated over MQTT, closed to strangers, given up when the tail is gone."""

import time

import numpy as np
import pytest
import zmq

from edge_runtime.offloader import Offloader, OffloadOptions
from edge_runtime.tail_messages import DirectOffer
from edge_runtime.wire import Limits, decode_tensors
from orchestrator.serving.direct import DirectPlane
from orchestrator.serving.served import Served
from orchestrator.tail_server import TailServer

KEY = "ab" * 8
ROOMY = Limits(8 << 20, 8 << 20)
X = np.random.default_rng(0).integers(0, 255, (1, 100, 4000), dtype=np.uint8)


@pytest.fixture
def direct(broker):
    """A tail server that adds one, with a direct plane."""
    model = Served("add", (KEY,), ROOMY, decode_tensors, lambda arrays: [arrays[0] + 1])
    with TailServer(broker, [model]) as server:
        server.data_plane = plane = DirectPlane("127.0.0.1", server.accept)
        yield server, plane
        plane.close()


def until_direct(device, x=X):
    end = time.monotonic() + 20
    while not device._route.direct_ready:
        np.testing.assert_array_equal(device.infer(x, deadline_ms=5000).outputs[0], x + 1)
        assert time.monotonic() < end, "the direct plane is never used"


def test_large_tensors_go_direct_and_small_ones_over_mqtt(broker, direct):
    _server, plane = direct
    peers = []
    accept = plane._accept
    plane._accept = lambda *request: (peers.append(request[0]), accept(*request))
    with Offloader(broker, "dev", key=KEY) as device:
        device.wait_connected()
        device.infer(X[:, :1], deadline_ms=5000)
        assert device._route._direct is None, "small requests ask for nothing"
        until_direct(device)
        before = len(peers)
        for _ in range(5):
            answer = device.infer(X, deadline_ms=5000)
            np.testing.assert_array_equal(answer.outputs[0], X + 1)
            assert answer.breakdown.total_ms > 0
        assert len(peers) - before == 5
        assert peers[-1].startswith("ht/v1/default/dev/off/req/"), "the device is the one that MQTT knows"
        device.infer(X[:, :1], deadline_ms=5000)
        assert len(peers) - before == 5


def test_a_stranger_is_not_let_in(direct):
    server, plane = direct
    import msgspec

    offer = msgspec.json.decode(plane._offer, type=DirectOffer)
    context = zmq.Context()
    public, secret = zmq.curve_keypair()
    socket = context.socket(zmq.DEALER)
    socket.curve_publickey, socket.curve_secretkey, socket.curve_serverkey = public, secret, offer.server_key.encode()
    socket.connect(offer.endpoint)
    socket.send_multipart([bytes.fromhex(KEY), bytes(100)])
    assert not socket.poll(300)
    context.destroy(linger=0)
    assert server.counters.received == 0


def test_when_the_plane_is_gone_requests_go_over_mqtt_again(broker, direct):
    server, plane = direct
    with Offloader(broker, "dev", key=KEY, options=OffloadOptions(breaker_failures=99)) as device:
        device.wait_connected()
        until_direct(device)
        server.data_plane = None
        plane.close()
        with pytest.raises(Exception, match="answer"):
            device.infer(X, deadline_ms=200)
        assert not device._route.direct_ready
        np.testing.assert_array_equal(device.infer(X, deadline_ms=5000).outputs[0], X + 1)


def test_a_slow_worker_is_hedged_by_another_and_the_first_answer_counts(broker):
    slow_runs = []

    def slow(arrays):
        slow_runs.append(1)
        time.sleep(0.5)
        return [arrays[0] + 1]

    def model(run):
        return Served("m", (KEY,), ROOMY, decode_tensors, run)

    with (
        TailServer(broker, [model(slow)]),
        TailServer(broker, [model(lambda a: [a[0] + 1])]),
        Offloader(broker, "dev", key=KEY, options=OffloadOptions(hedge_ms=30)) as device,
    ):
        device.wait_connected()
        times = []
        for _ in range(4):
            answer = device.infer(X[:, :1], deadline_ms=5000)
            np.testing.assert_array_equal(answer.outputs[0], X[:, :1] + 1)
            times.append(answer.breakdown.total_ms)
        assert slow_runs, "the slow worker was asked"
        assert max(times) < 450, "nobody waited for it"
        assert device.counters.remote == 4
