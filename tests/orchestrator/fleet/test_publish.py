import json
import threading
import urllib.request

import pytest

from edge_runtime.artefact import file_sha256
from edge_runtime.mqtt import LinkOptions, MqttLink, Packet
from orchestrator.artefact_server import ArtefactServer
from orchestrator.fleet import queries
from orchestrator.fleet.errors import ConflictError
from orchestrator.fleet.fast_link import FastLink
from orchestrator.fleet.files import FOLDER, announce
from orchestrator.fleet.publish import publish_version
from orchestrator.fleet.rollouts import models_for


def test_a_published_version_can_be_fetched_where_its_desired_state_says(lite, network, tmp_path):
    publish_version(lite, tmp_path, "tiny@1", [network.head, network.tail, network.whole], actor="test")
    publish_version(lite, tmp_path, "tiny@1", [network.head, network.tail, network.whole], actor="test")
    with ArtefactServer(tmp_path / FOLDER) as server:
        announce(lite, server.url)
        with lite.read() as session:
            models = models_for(session, "tiny@1")
            assert [version.tail for version in queries.list_versions(session)] == [network.tail.id]
        assert (models.head.artefact, models.whole.artefact) == (network.head.id, network.whole.id)
        with urllib.request.urlopen(models.head.url) as answer:
            (tmp_path / "fetched").write_bytes(answer.read())
    assert file_sha256(tmp_path / "fetched") == models.head.zip_sha256


def test_two_artefacts_of_one_role_are_no_version(lite, network, tmp_path):
    with pytest.raises(ConflictError, match="one artefact of each role"):
        publish_version(lite, tmp_path, "tiny@1", [network.head, network.head], actor="test")


def test_the_fast_link_receives_what_was_published_also_after_the_broker_came_back(own_broker):
    found, enough = [], threading.Event()

    def take(messages):
        found.extend(messages)
        if len(found) >= 3:
            enough.set()

    with FastLink(own_broker.url, (("ht/v1/t/d/up/hb", 1),), take) as link, MqttLink(own_broker.url, LinkOptions(), lambda *_: None) as sender:  # fmt: skip
        pause = threading.Event()
        for round_number in range(3):
            while link.connects <= min(round_number, 1) - 1 or not sender.connected:
                pause.wait(0.05)
            if round_number == 1:
                own_broker.stop(kill=True)
                own_broker.start()
                while link.connects < 2 or not sender.connected:
                    pause.wait(0.05)
            for _ in range(100):
                before = len(found)
                sender.publish(Packet("ht/v1/t/d/up/hb", json.dumps(round_number).encode(), round_number % 2))
                pause.wait(0.05)
                if len(found) > before:
                    break
        assert enough.wait(10)
    assert {payload for _, payload in found} == {b"0", b"1", b"2"}
