import io
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from edge_runtime.manifest import Preprocessing, TensorSpec
from edge_runtime.mqtt import LinkOptions, MqttLink, NotConnectedError, Packet
from edge_runtime.offload import DeadlineError, OffloadError, TailError, TailUnavailableError
from edge_runtime.offloader import Offloader, OffloadOptions
from edge_runtime.wire import Envelope, FormatError, Limits, Status, decode_tensors, pack_envelope, unpack_reply
from orchestrator.tail_server import Served, ServeError, ServerOptions, TailServer, serve_artefact

ROOMY = Limits(1 << 20, 1 << 20)


def served(run, key):
    return Served("test", (key,), ROOMY, lambda frame: decode_tensors(frame), run)


def offloader(url, network, *, fallback=True, **options):
    result = Offloader(
        url, "dev", head=network.head, fallback=network.whole if fallback else None, options=OffloadOptions(**options)
    )
    result.wait_connected()
    return result


def kill_9_server(url, network):
    """A tail server in a process of its own, ready."""
    command = [
        sys.executable,
        "-c",
        "from orchestrator.cli import main; main()",
        "tail",
        "serve",
        str(network.tail.folder),
        "--broker",
        url,
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert "serving" in process.stdout.readline()
    return process


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("fixture", ["broker", "embedded_broker"])
def test_head_here_and_tail_there_give_the_whole_networks_answer(request, fixture, qos, network):
    url = request.getfixturevalue(fixture)
    with TailServer(url, [serve_artefact(network.tail)]), offloader(url, network, qos=qos) as device:
        for _ in range(5):
            answer = device.infer(network.x, deadline_ms=5000)
            assert answer.source == "remote"
            np.testing.assert_array_equal(answer.outputs[0], network.y)
        ms = answer.breakdown
        assert min(ms.head_ms, ms.serialise_ms, ms.uplink_ms, ms.downlink_ms, ms.tail_ms, ms.postprocess_ms) > 0
        assert 0 <= ms.unaccounted_ms < ms.total_ms
        assert answer.bytes_sent == 24 + 28 + 4 + 8 + 32
        assert device.counters.remote == 5
        assert device.open_requests == 0


def test_without_a_tail_the_local_model_answers_within_the_deadline(broker, network):
    with offloader(broker, network) as device:
        answer = device.infer(network.x, deadline_ms=200)
        assert answer.source == "local"
        assert answer.breakdown.waited_ms < 200  # and what comes after it is the local model's time on this machine
        assert "tail serve" in answer.why_local
        np.testing.assert_array_equal(answer.outputs[0], network.y)


def test_without_tail_and_fallback_the_deadline_has_a_name_and_the_breaker_opens(broker, network):
    with offloader(broker, network, fallback=False, breaker_failures=2) as device:
        for _ in range(2):
            begun = time.perf_counter()
            with pytest.raises(DeadlineError):
                device.infer(network.x, deadline_ms=50)
            assert time.perf_counter() - begun < 1
        with pytest.raises(TailUnavailableError, match="asked again soon"):
            device.infer(network.x, deadline_ms=50)
        assert device.counters.failed == 3


def test_a_probe_lost_with_the_connection_does_not_hold_the_tail_off_for_ever(own_broker, network):
    arrived = threading.Event()
    with offloader(own_broker.url, network, fallback=False, breaker_failures=1) as device:
        with pytest.raises(DeadlineError):
            device.infer(network.x, deadline_ms=20)
        with MqttLink(own_broker.url, LinkOptions(subscriptions=(("ht/v1/#", 0),)), lambda *_: arrived.set()) as spy:
            spy.wait_connected(10)
            ended = []
            while not arrived.is_set():  # until the breaker lets a probe through
                asking = threading.Thread(target=_ask, args=(device, network.x, ended))
                asking.start()
                arrived.wait(0.1)
                if not arrived.is_set():
                    asking.join(10)
            own_broker.stop(kill=True)
            asking.join(10)
            assert isinstance(ended[-1], TailUnavailableError)
        own_broker.start()
        device.wait_connected()
        with TailServer(own_broker.url, [serve_artefact(network.tail)]):
            np.testing.assert_array_equal(device.infer(network.x, deadline_ms=5000).outputs[0], network.y)


def _ask(device, x, ended):
    try:
        ended.append(device.infer(x, deadline_ms=30_000))
    except OffloadError as error:
        ended.append(error)


@pytest.mark.parametrize("deadline_ms", [float("nan"), float("inf")])
def test_a_deadline_that_is_no_number_is_named_and_holds_no_place(broker, network, deadline_ms):
    with offloader(broker, network, in_flight=1) as device:
        for _ in range(2):
            with pytest.raises(OffloadError, match="finite"):
                device.infer(network.x, deadline_ms=deadline_ms)
        assert device.open_requests == 0


def test_a_frame_of_another_cut_than_its_topic_is_refused(broker, network):
    with (
        TailServer(broker, [serve_artefact(network.tail)]) as server,
        offloader(broker, network, fallback=False) as device,
    ):
        device._cut_id = bytes(8)
        with pytest.raises(TailError, match="as its topic says"):
            device.infer(network.x, deadline_ms=5000)
        assert server.counters.refused == 1


def test_a_server_without_a_broker_is_named_and_leaves_no_thread(network):
    before = set(threading.enumerate())
    server = TailServer("mqtt://127.0.0.1:1", [serve_artefact(network.tail)])
    with pytest.raises(NotConnectedError):
        server.start(timeout_s=0.1)
    assert not {thread for thread in set(threading.enumerate()) - before if thread.is_alive()}


def test_an_answer_after_the_deadline_is_counted_and_dropped(broker, network):
    go, done = threading.Event(), threading.Event()

    def run(arrays):
        go.wait(10)
        return [arrays[0] + 1]

    with TailServer(broker, [served(run, network.head.key)]) as server, offloader(broker, network) as device:
        answer = device.infer(network.x, deadline_ms=100)
        assert answer.source == "local"
        go.set()
        while device.counters.late == 0:
            done.wait(0.01)
        assert device.infer(network.x, deadline_ms=5000).source == "remote"
        assert server.counters.answered == 2


def test_losing_the_broker_ends_waiting_requests_at_once_and_it_comes_back(own_broker, network):
    taken = threading.Event()
    hold = threading.Event()

    def run(arrays):
        taken.set()
        hold.wait(10)
        return [arrays[0] + 1]

    url = own_broker.url
    with TailServer(url, [served(run, network.head.key)]) as server, offloader(url, network) as device:
        answers = []
        caller = threading.Thread(target=lambda: answers.append(device.infer(network.x, deadline_ms=60_000)))
        caller.start()
        assert taken.wait(10)
        own_broker.stop(kill=True)
        caller.join(10)
        assert answers[0].source == "local"
        assert "lost" in answers[0].why_local
        assert device.infer(network.x).source == "local"
        hold.set()
        own_broker.start()
        device.wait_connected()
        server._link.wait_connected(10)
        assert device.infer(network.x, deadline_ms=5000).source == "remote"


def test_closing_ends_waiting_requests_at_once(broker, network):
    taken, hold, ends = threading.Event(), threading.Event(), []

    def run(arrays):
        taken.set()
        hold.wait(10)
        return [arrays[0] + 1]

    def call(device):
        try:
            device.infer(network.x, deadline_ms=60_000)
        except TailUnavailableError as error:
            ends.append(error)

    with TailServer(broker, [served(run, network.head.key)]):
        device = offloader(broker, network, fallback=False)
        caller = threading.Thread(target=call, args=(device,))
        caller.start()
        assert taken.wait(10)
        device.close()
        caller.join(10)
        hold.set()
    assert len(ends) == 1


def test_a_tail_killed_mid_stream_leaves_no_request_without_its_one_end(broker, network):
    first = kill_9_server(broker, network)
    with offloader(broker, network, deadline_ms=150, breaker_failures=2) as device:
        sources = [device.infer(network.x).source for _ in range(50)]
        assert set(sources) == {"remote"}
        first.kill()
        first.wait()
        slowest = 0.0
        for _ in range(50):
            answer = device.infer(network.x)
            np.testing.assert_array_equal(answer.outputs[0], network.y)
            slowest = max(slowest, answer.breakdown.total_ms)
            sources.append(answer.source)
        assert slowest < 150 + 50  # a loaded machine may be late to wake
        second = kill_9_server(broker, network)
        while (source := device.infer(network.x).source) == "local":
            sources.append(source)
        sources.append(source)
        counters = device.counters
        assert (counters.remote, counters.local, counters.failed) == (
            sources.count("remote"),
            sources.count("local"),
            0,
        )
        assert device.open_requests == 0
        second.kill()
        second.wait()


def test_many_callers_at_once_each_get_their_own_answer(broker, network):
    wrong = []

    def call(device, number):
        x = np.full((1, 8), number, np.float32)
        for _ in range(20):
            answer = device.infer(x, deadline_ms=10_000)
            if answer.source != "remote" or not (answer.outputs[0] == 2 * x + 1).all():
                wrong.append((number, answer))

    with TailServer(broker, [serve_artefact(network.tail)]), offloader(broker, network) as device:
        threads = [threading.Thread(target=call, args=(device, number)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not wrong
        assert device.counters.remote == 120


def test_errors_of_the_tail_come_back_with_their_reason(broker, network):
    def run(arrays):
        raise RuntimeError("out of memory")

    with TailServer(broker, [served(run, network.head.key)]), offloader(broker, network, fallback=False) as device:
        with pytest.raises(TailError, match="failed"):
            device.infer(network.x, deadline_ms=5000)
        assert not device.open_requests


def test_requests_are_answered_in_order_of_their_deadlines_and_refused_when_full_or_late(broker):
    key, boot = "ab" * 8, "cd" * 8
    release, running = threading.Event(), threading.Event()
    order, replies, all_there = [], {}, threading.Event()

    def run(arrays):
        order.append(int(arrays[0][0, 0]))
        running.set()
        release.wait(10)
        return list(arrays)

    def collect(_topic, payload, _qos):
        reply = unpack_reply(payload)
        replies[reply.request_id[0]] = reply.status
        if len(replies) == 5:
            all_there.set()

    from edge_runtime.wire import encode_tensors

    def request(number, budget_ms):
        frame = encode_tensors([np.array([[number]], np.uint8)], cut_id=bytes.fromhex(key))
        payload = b"".join((pack_envelope(Envelope(bytes([number]) * 16, budget_ms)), *frame))
        return Packet(f"ht/v1/t/d/off/req/{key}/{boot}", payload, 1)

    options = LinkOptions(subscriptions=((f"ht/v1/t/d/off/rep/{boot}", 1),))
    with (
        TailServer(broker, [served(run, key)], ServerOptions(queue_limit=3)) as server,
        MqttLink(broker, options, collect) as link,
    ):
        link.wait_connected(10)
        link.publish(request(0, 60_000))
        assert running.wait(10)
        for number, budget_ms in ((1, 50_000), (2, 1), (3, 20_000), (4, 10_000)):
            link.publish(request(number, budget_ms))
        while server.counters.received < 5:
            running.wait(0.01)
        running.clear()
        running.wait(0.02)  # the budget of request 2 ends
        release.set()
        assert all_there.wait(10)
    assert order == [0, 4, 3]
    assert replies == {0: Status.OK, 1: Status.BUSY, 2: Status.EXPIRED, 3: Status.OK, 4: Status.OK}


def test_a_whole_model_takes_pictures_and_answers_bad_ones_by_name(broker, network, tmp_path):
    mean = Served("mean", ("ee" * 8,), ROOMY, lambda frame: [np.zeros((1, 1), np.uint8)], list)
    manifest = network.whole.manifest
    image_input = TensorSpec(
        name="x", engine_name="x", dtype="float32", shape=(1, 2, 2, 3), layout="nhwc", semantic="image"
    )
    preprocessing = Preprocessing(crop=(2, 2), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    import msgspec

    from orchestrator.tail_server import read_inputs

    manifest = msgspec.structs.replace(manifest, inputs=(image_input,), preprocessing=preprocessing)
    mean = Served("mean", ("ee" * 8,), ROOMY, lambda f: read_inputs(f, manifest), lambda a: [a[0].mean(axis=(1, 2))])
    picture = io.BytesIO()
    Image.new("RGB", (2, 2), (10, 20, 30)).save(picture, "PNG")
    with TailServer(broker, [mean]), Offloader(broker, "cam", key="ee" * 8) as device:
        device.wait_connected()
        answer = device.infer_image(picture.getvalue(), deadline_ms=5000)
        np.testing.assert_array_equal(answer.outputs[0], [[10, 20, 30]])
        with pytest.raises(TailError, match="JPEG, PNG or WebP"):
            device.infer_image(b"no picture", deadline_ms=5000)


def test_the_answer_goes_to_the_sender_whatever_the_payload_says(broker, network):
    from orchestrator.tail_server import derive_route

    route = derive_route(f"ht/v1/t/dev1/off/req/{'a' * 16}/{'b' * 16}")
    assert route == ("a" * 16, f"ht/v1/t/dev1/off/rep/{'b' * 16}", "t/dev1")
    with pytest.raises(ServeError, match="head"):
        serve_artefact(network.head)
    with pytest.raises(ServeError, match="once"):
        TailServer(broker, [serve_artefact(network.tail)] * 2)


def test_an_offloader_wants_a_head_or_a_key(broker, network):
    with pytest.raises(OffloadError, match="neither"):
        Offloader(broker, "d")
    with pytest.raises(OffloadError, match="tail"):
        Offloader(broker, "d", head=network.tail)
    for key in ("zz", "ab", "AB" * 8, "ab" * 8 + "\n"):
        with pytest.raises(OffloadError, match="16 hex digits"):
            Offloader(broker, "d", key=key)


def test_memory_does_not_grow_with_the_number_of_requests(broker, network):
    def resident_kib():
        with open(f"/proc/{os.getpid()}/statm") as stream:
            return int(stream.read().split()[1]) * 4

    with TailServer(broker, [serve_artefact(network.tail)]), offloader(broker, network) as device:
        for _ in range(200):
            device.infer(network.x, deadline_ms=5000)
        before = resident_kib()
        for _ in range(1000):
            device.infer(network.x, deadline_ms=5000)
        assert resident_kib() - before < 2048


def test_an_answer_of_another_form_or_cut_is_not_taken(broker, network):
    server = TailServer(broker, [served(lambda arrays: [arrays[0][:, :4]], network.head.key)])
    with server, offloader(broker, network) as device:
        answer = device.infer(network.x, deadline_ms=5000)
        assert (answer.source, answer.outputs[0].tolist()) == ("local", network.y.tolist())
        assert "(1, 4)" in answer.why_local
        with pytest.raises(FormatError, match="cut"):
            device._check_answer(bytes(8), [network.y])
