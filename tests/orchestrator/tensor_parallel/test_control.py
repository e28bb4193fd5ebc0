"""Nodes that find each other over a broker: announcements, wills, the plan; tensors take another way."""

import json
import re
import urllib.request

import msgspec
import pytest

from edge_runtime.llm_messages import LlmPlan
from edge_runtime.messages import decode_control
from edge_runtime.mqtt import LinkOptions, MqttLink
from orchestrator.broker import start_broker
from orchestrator.cli import run
from orchestrator.demo.processes import Children, edge_agent, headtail
from orchestrator.tensor_parallel.checkpoint import open_checkpoint
from orchestrator.tensor_parallel.control import Directory, with_addresses
from orchestrator.tensor_parallel.errors import PartitionError
from orchestrator.tensor_parallel.nodes import Node, NodesFile
from orchestrator.tensor_parallel.sharding import shard_checkpoint
from tests.orchestrator.tensor_parallel.conftest import wait_until
from tests.orchestrator.tensor_parallel.test_failures import ask


@pytest.fixture
def broker():
    with start_broker() as running:
        yield running.url


def test_workers_are_found_lost_and_found_elsewhere_and_no_tensor_goes_over_the_broker(
    broker, tiny, key_file, tmp_path, capsys
):
    shard_checkpoint(
        open_checkpoint(tiny.folder),
        [Node(name="host"), Node(name="w0"), Node(name="w1")],
        tmp_path / "shards",
        spares=1,
    )
    heard = []
    with (
        Children(tmp_path / "logs") as children,
        MqttLink(broker, LinkOptions(subscriptions=(("#", 1),)), lambda *message: heard.append(message)) as listener,
    ):
        listener.wait_connected(10)

        def start_worker(name):
            children.start(
                name,
                edge_agent(
                    "llm-worker", "--listen", "127.0.0.1:0", "--key", str(key_file), "--store", str(tmp_path / "shards"),
                    "--threads", "1", "--broker", broker, "--name", name,
                ),
                ready="listens on",
            )  # fmt: skip

        for name in ("w0", "w1"):
            start_worker(name)
        command = headtail(
            "llm", "serve", str(tmp_path / "shards"), "--broker", broker, "--key", str(key_file), "--port", "0",
            "--threads", "1", "--deadline-s", "3",
        )  # fmt: skip
        url = re.search(r"http://\S+", children.start("server", command, ready="serving ")).group()

        def announced():
            nodes = json.loads(urllib.request.urlopen(url.removesuffix("/v1") + "/health").read())["nodes"]
            return [node.get("announced") for node in nodes]

        wanted = ask(url)
        wait_until(lambda: announced() == [None, "computing", "computing"])
        assert ask(url, 5, lambda: children.stop("w0", kill=True)) == wanted
        wait_until(lambda: announced()[1] == "gone")
        start_worker("w0")  # on another port
        wait_until(lambda: announced()[1] == "waiting")
        assert ask(url) == wanted
        wait_until(lambda: announced() == [None, "computing", "computing"])
        plans = [decode_control(payload, LlmPlan) for topic, payload, _ in heard if topic.endswith("/up/llm-plan")]
        assert [[member.name for member in plan.members] for plan in plans] == [
            ["host", "w0", "w1"],
            ["host", "w1"],
            ["host", "w0", "w1"],
        ]
        assert max(len(payload) for _, payload, _ in heard) < 1000  # control alone
        assert run(["llm", "nodes", "--broker", broker, "--seconds", "0.5"]) == 0
        printed = capsys.readouterr().out
        listed = msgspec.toml.decode(printed[printed.index("[[node]]") :], type=NodesFile).node
        assert [node.name for node in listed] == ["master", "w0", "w1"]
        assert all(node.capability > 0 and node.read_mb_per_s > 100 for node in listed)
        assert re.fullmatch(r"127\.0\.0\.1:\d+", listed[1].address)


def test_who_does_not_announce_itself_is_named(broker):
    directory = Directory(broker, "default")
    with pytest.raises(PartitionError, match=r"w7 to announce themselves within 0\.2 s, found nobody"):
        with_addresses((Node(name="host"), Node(name="w7")), directory, timeout_s=0.2)
    directory.close()
