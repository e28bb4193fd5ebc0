import json
import os
import signal
import subprocess
import sys

import pytest

from edge_runtime.mqtt import LinkOptions, MqttLink, NotConnectedError
from orchestrator.broker import (
    BrokerError,
    BrokerOptions,
    EmbeddedBroker,
    MosquittoBroker,
    embedded_configuration,
    mosquitto_configuration,
)
from orchestrator.commands.broker import measure_echo

HEADTAIL = [sys.executable, "-c", "from orchestrator.cli import main; main()"]


def read_json(process):
    """The next JSON document that a command prints."""
    text = ""
    while line := process.stdout.readline():
        text += line
        if line == "}\n":
            return json.loads(text)
    raise AssertionError(text)


def test_the_configuration_sets_what_offload_needs(tmp_path):
    text = mosquitto_configuration(BrokerOptions(), 1234)
    for line in ("listener 1234 127.0.0.1", "set_tcp_nodelay true", "max_packet_size 4194304", "persistence false"):
        assert line in text.splitlines()
    assert "autosave_interval 1" in mosquitto_configuration(BrokerOptions(persistence=tmp_path), 1)
    assert 'listen = "127.0.0.1:7"' in embedded_configuration(BrokerOptions(), 7)


def test_the_broker_says_what_it_takes_and_how_quick_it_is(broker):
    max_packet_bytes, echo_ms = measure_echo(broker)
    assert max_packet_bytes == 4 << 20
    assert echo_ms < 35


def test_the_embedded_broker_is_reached_where_it_listens():
    with EmbeddedBroker(BrokerOptions(host="127.0.0.2", port=0)) as running:
        assert running.url == f"mqtt://127.0.0.2:{running.port}"
        assert measure_echo(running.url, count=1)[0] > 0


def test_a_taken_port_is_named(own_broker):
    with pytest.raises(BrokerError, match="--port 0"):
        MosquittoBroker(BrokerOptions(port=own_broker.port))


def test_nothing_is_left_when_the_broker_ends():
    running = MosquittoBroker(BrokerOptions(port=0))
    folder, pid = running._folder, running.pid
    running.close()
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_runs_a_broker_until_it_is_stopped(number):
    process = subprocess.Popen([*HEADTAIL, "broker", "--port", "0", "--json"], stdout=subprocess.PIPE, text=True)
    try:
        url = read_json(process)["url"]
        with MqttLink(url, LinkOptions(), lambda *_: None) as link:
            link.wait_connected(10)
            check = subprocess.run(
                [*HEADTAIL, "broker", "--url", url, "--json"], capture_output=True, text=True, timeout=60
            )
            assert json.loads(check.stdout)["max_packet_bytes"] == 4 << 20
            process.send_signal(number)
            assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
    with pytest.raises(NotConnectedError):
        measure_echo(url, timeout_s=0.2)


@pytest.mark.parametrize(
    "options", [{"port": 99_999}, {"port": -5}, {"host": "203.0.113.1", "port": 0, "insecure": True}]
)
def test_an_address_that_cannot_be_listened_on_is_named(options):
    with pytest.raises(BrokerError, match="listen on"):
        MosquittoBroker(BrokerOptions(**options))


def test_serving_nothing_is_named():
    done = subprocess.run([*HEADTAIL, "tail", "serve"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("ServeError: Wanted at least one tail")


def test_serving_says_what_it_serves_and_what_it_did(broker, network):
    command = [
        *HEADTAIL,
        "tail",
        "serve",
        str(network.tail.folder),
        str(network.whole.folder),
        "--broker",
        broker,
        "--json",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            served = [one["keys"] for one in read_json(process)["serving"]]
            assert served == [[network.head.key], [network.whole.key]]
            process.send_signal(signal.SIGTERM)
            assert read_json(process)["received"] == 0
            assert process.wait(10) == 0
        finally:
            process.kill()
