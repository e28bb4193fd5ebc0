"""One trace across device and host: exported spans are read back from both ends; logs are JSON where that is asked for."""

import itertools
import json
import logging
import os
import subprocess
import sys

import numpy as np
import pytest

from device_profiles.errors import EdgeError
from edge_runtime.answer import Breakdown
from edge_runtime.json_log import JsonFormatter
from edge_runtime.offloader import OffloadOptions
from edge_runtime.pipeline import Pipeline
from edge_runtime.sources import Frame
from edge_runtime.trace_target import TraceTargetError, open_tracer, parse_target
from edge_runtime.tracing import lay_out
from orchestrator.serving.service import TailService
from orchestrator.serving.worker import WorkerOrder


def spans_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def run_frames(url, network, tracer, count):
    options = OffloadOptions(deadline_ms=5000, tracer=tracer)
    pipeline = Pipeline(url, "traced", head=network.head, whole=network.whole, options=options)
    try:
        pipeline._offloader.wait_connected()
        return [pipeline.run(Frame(number, str(number), network.x)).answer for number in range(count)]
    finally:
        pipeline.close()


def test_spans_of_a_request_on_device_and_host_are_one_trace(broker, network, tmp_path):
    here, there = tmp_path / "device.jsonl", tmp_path / "host.jsonl"
    order = WorkerOrder(name="t", broker=broker, artefacts=(str(network.tail.folder),), traces=f"file:{there}")
    with TailService(order, 1):
        quiet = open_tracer(f"file:{here}", "edge-agent", share=0.0)
        assert [answer.trace_id for answer in run_frames(broker, network, quiet, 2)] == [None, None]
        quiet.close()
        tracer = open_tracer(f"file:{here}", "edge-agent", attributes={"service.instance.id": "default/traced"})
        answers = run_frames(broker, network, tracer, 3)
        tracer.close()
    assert [answer.source for answer in answers] == ["remote"] * 3
    on_device, on_host = spans_of(here), spans_of(there)
    assert {span["resource"]["attributes"]["service.name"] for span in on_device} == {"edge-agent"}
    assert {span["resource"]["attributes"]["service.name"] for span in on_host} == {"headtail-tail"}
    for answer in answers:
        trace = "0x" + answer.trace_id.hex()
        device = {span["name"]: span for span in on_device if span["context"]["trace_id"] == trace}
        host = {span["name"]: span for span in on_host if span["context"]["trace_id"] == trace}
        root = device.pop("request")
        serve = host.pop("serve")
        assert root["parent_id"] is None
        assert root["attributes"]["headtail.source"] == "remote"
        assert serve["parent_id"] == root["context"]["span_id"]
        assert set(host) == {"queue", "decode", "tail"}
        assert {"preprocess", "head", "serialise", "uplink", "downlink", "postprocess"} <= set(device)
        assert all(span["parent_id"] == root["context"]["span_id"] for span in device.values())
        assert all(span["parent_id"] == serve["context"]["span_id"] for span in host.values())
    assert len({span["context"]["trace_id"] for span in on_host}) == 3, "the quiet tracer's requests left nothing"


def test_a_request_without_an_answer_is_a_failed_span(broker, network, tmp_path):
    path = tmp_path / "spans.jsonl"
    tracer = open_tracer(f"file:{path}", "edge-agent")
    pipeline = Pipeline(
        broker, "x", head=network.head, whole=None, options=OffloadOptions(deadline_ms=50, tracer=tracer)
    )
    with pytest.raises(EdgeError):
        pipeline.run(Frame(0, "0", network.x))
    pipeline.close()
    tracer.close()
    (span,) = spans_of(path)
    assert span["status"]["status_code"] == "ERROR"


def test_stages_follow_one_another_and_fill_the_accounted_time():
    breakdown = Breakdown(head_ms=1.0, uplink_ms=2.0, tail_ms=4.0, postprocess_ms=0.5, total_ms=8.0)
    stages = lay_out(breakdown)
    assert [stage.name for stage in stages] == ["head", "uplink", "tail", "postprocess"]
    assert all(one.end_ns == two.start_ns for one, two in itertools.pairwise(stages))
    assert stages[-1].end_ns == 7_500_000


@pytest.mark.parametrize("text", ["", "file:", "jaeger:x", "otlp:ftp://x"])
def test_a_target_that_is_none_is_named(text):
    with pytest.raises(TraceTargetError, match="otlp:http"):
        parse_target(text)


def test_tracing_loads_nothing_when_it_is_off():
    code = "import edge_runtime.agent, orchestrator.serving.worker, sys; assert not any(m.startswith('opentelemetry') for m in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_json_logs_are_one_object_a_line_with_the_traceback(caplog):
    try:
        np.zeros(1).reshape(2)
    except ValueError:
        logging.getLogger("some.where").exception("it %s\nbroke", "really")
    record = caplog.records[-1]
    line = JsonFormatter("tail").format(record)
    assert "\n" not in line
    entry = json.loads(line)
    assert (entry["level"], entry["service"], entry["message"]) == ("error", "tail", "it really\nbroke")
    assert entry["logger"] == "some.where"
    assert "ValueError" in entry["traceback"]


def test_an_agent_logs_json_where_the_environment_says_so(tmp_path):
    command = [sys.executable, "-m", "edge_runtime.cli", "--log-level", "info", "run", "--broker", "mqtt://127.0.0.1:1"]
    command += ["--device", "d", "--state", str(tmp_path)]
    environment = {**os.environ, "HEADTAIL_LOG": "json"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as agent:
        try:
            line = next(line for line in agent.stderr if "no broker at" in line)
        finally:
            agent.terminate()
    entry = json.loads(line)
    assert (entry["service"], entry["level"], entry["logger"]) == ("edge-agent", "info", "edge_runtime.mqtt_loop")
