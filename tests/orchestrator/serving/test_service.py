"""Tail workers as processes on a real broker: shared requests, batches, restarts, updates without a lost request."""

import os
import signal
import threading
import time

import numpy as np
import pytest

from edge_runtime.messages import decode_control, parse_topic
from edge_runtime.mqtt import LinkOptions, MqttLink
from edge_runtime.offload import TailError
from edge_runtime.offloader import Offloader, OffloadOptions
from edge_runtime.tail_messages import HOST_TENANT, TailBeat
from edge_runtime.wire import Limits, decode_tensors
from orchestrator.serving.batch_model import open_batched
from orchestrator.serving.served import Served, ServeError, serve_artefact
from orchestrator.serving.service import TailService
from orchestrator.serving.worker import WorkerOrder
from orchestrator.tail_server import ServerOptions, TailServer

ROOMY = Limits(1 << 20, 1 << 20)


def order(url, *artefacts, **more):
    return WorkerOrder(name="t", broker=url, artefacts=tuple(str(one.folder) for one in artefacts), **more)


def offloader(url, network, name="dev", *, fallback=False, **options):
    result = Offloader(
        url, name, head=network.head, fallback=network.whole if fallback else None, options=OffloadOptions(**options)
    )
    result.wait_connected()
    return result


def collect_beats(url, beats):
    topic = f"ht/v1/{HOST_TENANT}/+/up/tail"

    def take(topic, payload, _qos):
        beats[parse_topic(topic).topics.device] = decode_control(payload, TailBeat)

    return MqttLink(url, LinkOptions(subscriptions=((topic, 0),)), take)


def until(condition, what, timeout_s=20.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def test_worker_processes_share_requests_report_and_come_back_after_kill_9(broker, network):
    beats = {}
    with (
        TailService(order(broker, network.tail, beat_s=0.1), 2) as service,
        collect_beats(broker, beats) as link,
        offloader(broker, network, fallback=True) as device,
    ):
        link.wait_connected(10)
        assert service.serving == (("tiny", (network.head.key,)),)
        for _ in range(20):
            assert device.infer(network.x, deadline_ms=5000).source == "remote"
        until(lambda: sum(beat.answered for beat in beats.values()) == 20, "the workers say what they answered")
        assert len(beats) == 2
        assert all(beat.answered for beat in beats.values()), "both take part"
        assert all(sum(model.counts) == model.answered for beat in beats.values() for model in beat.models)
        victim = service.pids[0]
        os.kill(victim, signal.SIGKILL)
        sources = [device.infer(network.x, deadline_ms=300).source for _ in range(10)]
        assert sources.count("remote") + sources.count("local") == 10
        until(lambda: service.restarts == 1 and victim not in service.pids, "the worker is started again")
        until(lambda: device.infer(network.x, deadline_ms=1000).source == "remote", "requests are answered again")


def test_an_update_keeps_both_revisions_alive_and_loses_no_request(broker, network, tmp_path):
    failed, done = [], threading.Event()

    def ask(device):
        while not done.is_set():
            try:
                np.testing.assert_array_equal(device.infer(network.x, deadline_ms=20_000).outputs[0], network.y)
            except Exception as error:
                failed.append(error)

    with TailService(order(broker, network.tail), 1) as service, offloader(broker, network) as device:
        asking = threading.Thread(target=ask, args=(device,))
        asking.start()
        before = service.pids
        service.replace([network.tail.folder, network.whole.folder])
        after = service.pids
        with pytest.raises(ServeError, match="head"):
            service.replace([network.head.folder])
        assert service.pids == after, "what cannot be served replaces nothing"
        done.set()
        asking.join(30)
        assert before != after
        assert {key for _, keys in service.serving for key in keys} == {network.head.key, network.whole.key}
    assert not failed


def test_a_worker_that_cannot_serve_says_why(broker, network):
    with pytest.raises(ServeError, match="found the head"), TailService(order(broker, network.head), 1):
        pass
    with pytest.raises(ServeError, match="at least one"):
        TailService(order(broker, network.tail), 0)


def test_workers_end_when_their_service_is_gone(broker, network):
    service = TailService(order(broker, network.tail), 1).start()
    child = service._children[0].process
    service._stop.set()
    child.stdin.close()  # as the kernel does when the service dies
    assert child.wait(20) == 0
    service.close()


def test_a_batch_gives_the_answers_of_single_requests(broker, network):
    model = serve_artefact(network.tail, batch=4)
    assert model.batch_limit == 4
    inputs = [[np.full((1, 8), i, np.float32)] for i in range(4)]
    for one, found in zip(inputs, model.run_batch(inputs), strict=True):
        np.testing.assert_array_equal(found[0], model.run(one)[0])


def test_a_model_whose_batches_differ_is_served_one_by_one(network, caplog):
    class Wrong:
        def run(self, arrays):
            return [arrays[0] + 1.5]

    assert open_batched(network.tail, Wrong(), limit=4) is None
    assert "one request at a time" in caplog.text


def test_requests_that_wait_run_as_one_batch(broker, network):
    sizes, running, go = [], threading.Event(), threading.Event()

    def run(arrays):
        running.set()
        go.wait(10)
        sizes.append(1)
        return [arrays[0] + 1]

    def run_batch(requests):
        sizes.append(len(requests))
        return [[request[0] + 1] for request in requests]

    model = Served("m", (network.head.key,), ROOMY, decode_tensors, run, run_batch, 8)
    wrong = []

    def call(device, number):
        x = np.full((1, 8), number, np.float32)
        if not (device.infer(x, deadline_ms=20_000).outputs[0] == 2 * x + 1).all():
            wrong.append(number)

    with TailServer(broker, [model]) as server, offloader(broker, network) as device:
        threads = [threading.Thread(target=call, args=(device, number)) for number in range(6)]
        threads[0].start()
        assert running.wait(10)
        for thread in threads[1:]:
            thread.start()
        until(lambda: server.waiting == 5, "five requests wait for the first")
        go.set()
        for thread in threads:
            thread.join(20)
    assert sizes == [1, 5]
    assert not wrong


def test_a_batch_waits_for_more_requests_but_not_for_ever(broker, network):
    sizes = []

    def run_batch(requests):
        sizes.append(len(requests))
        return [[request[0] + 1] for request in requests]

    model = Served("m", (network.head.key,), ROOMY, decode_tensors, lambda a: run_batch([a])[0], run_batch, 3)
    options = ServerOptions(batch_wait_ms=5000)
    with TailServer(broker, [model], options), offloader(broker, network) as device:
        threads = [
            threading.Thread(target=device.infer, args=(network.x,), kwargs={"deadline_ms": 30_000}) for _ in range(3)
        ]
        begun = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert sizes == [3]
        assert time.monotonic() - begun < 5, "a full batch does not wait"
        device.infer(network.x, deadline_ms=300)
        assert sizes == [3, 1], "an urgent request goes alone"


def test_a_device_above_its_rate_is_busy_and_another_one_is_served(broker, network):
    options = ServerOptions(device_rate=0.001, device_burst=2)
    with (
        TailServer(broker, [serve_artefact(network.tail)], options) as server,
        offloader(broker, network, "greedy") as greedy,
        offloader(broker, network, "modest") as modest,
    ):
        for _ in range(2):
            greedy.infer(network.x, deadline_ms=5000)
        with pytest.raises(TailError, match="requests a second"):
            greedy.infer(network.x, deadline_ms=5000)
        modest.infer(network.x, deadline_ms=5000)
        assert server.counters.busy == 1


def test_a_request_that_the_model_cannot_end_in_time_is_shed_before_it_runs(broker, network):
    runs = []

    def run(arrays):
        runs.append(1)
        time.sleep(0.1)
        return [arrays[0] + 1]

    model = Served("slow", (network.head.key,), ROOMY, decode_tensors, run)
    with TailServer(broker, [model]) as server, offloader(broker, network, breaker_failures=99) as device:
        device.infer(network.x, deadline_ms=5000)
        with pytest.raises(TailError, match="before the model could"):
            device.infer(network.x, deadline_ms=60)
        assert len(runs) == 1
        assert server.counters.expired == 1
        device.infer(network.x, deadline_ms=5000)
