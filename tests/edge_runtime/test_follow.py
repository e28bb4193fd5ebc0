import threading
from queue import Empty, SimpleQueue

import msgspec
import pytest

from edge_runtime.agent import Agent, AgentOptions
from edge_runtime.artefact import pack_artefact, write_artefact
from edge_runtime.gate import install_trust
from edge_runtime.messages import (
    ArtefactRef,
    Desired,
    JobOrder,
    JobStatus,
    Models,
    Reported,
    Slots,
    Topics,
    decode_control,
    encode_control,
)
from edge_runtime.mqtt import LinkOptions, MqttLink, Packet
from edge_runtime.slots import SlotStore
from orchestrator.artefact_server import ArtefactServer
from orchestrator.signing import first_trust, make_key, read_key, sign_artefact

HOST = "0" * 16


class Host:
    """A device under a host that retains desired states."""

    def __init__(self, url, name, state):
        self.topics = Topics("default", name)
        self.said = SimpleQueue()
        kinds = {self.topics.up("reported"): Reported, self.topics.up("job"): JobStatus}
        options = LinkOptions(subscriptions=tuple((topic, 1) for topic in kinds))
        self.link = MqttLink(url, options, lambda topic, data, _: self.said.put(decode_control(data, kinds[topic])))
        self.agent = Agent(AgentOptions(broker=url, device=name, state=state, heartbeat_s=60))
        self._thread = threading.Thread(target=self.agent.run, daemon=True)

    def __enter__(self):
        self.link.start().wait_connected(20)
        self._thread.start()
        self.agent._link.wait_connected(20)
        return self

    def __exit__(self, *_):
        self.agent.stop()
        self._thread.join(10)
        self.link.close()

    def want(self, rev, **more):
        desired = Desired(boot=HOST, rev=rev, job=f"job{rev}", **{"probation_s": 0.0, **more})
        self.link.publish(Packet(self.topics.desired, encode_control(desired), 1, retain=True))

    def wait_for(self, rev, *states):
        found = []
        while not found or found[-1] not in states:
            try:
                message = self.said.get(timeout=20)
            except Empty:
                pytest.fail(f"rev {rev}: {found}")
            if isinstance(message, Reported) and message.rev == rev:
                found.append(message.state)
                last = message
        return last, found


@pytest.fixture
def served(network, tmp_path):
    """Signed versions of head and whole, and what the host says of them; another key's too."""
    keys = {name: make_key(tmp_path / f"{name}.pem", name=name) for name in ("ours", "stranger")}
    install_trust(tmp_path / "state" / "trust.json", first_trust([keys["ours"]], 1))
    with ArtefactServer(tmp_path / "served") as server:

        def make(artefact, counter, key="ours"):
            manifest = msgspec.structs.replace(artefact.manifest, files=())
            files = {path: artefact.path(path).read_bytes() for path in artefact.manifest.files_by_path}
            made = write_artefact(tmp_path / f"{counter}{key}", manifest, {**files, "n": str(counter).encode()})
            sign_artefact(made, [read_key(tmp_path / f"{key}.pem")], counter=counter, line=artefact.manifest.role)
            offer = server.offer(pack_artefact(made, tmp_path / "packed.zip"))
            return ArtefactRef(artefact=made.id, zip_sha256=offer.zip_sha256, size=offer.size, url=offer.url)

        yield make


def test_head_and_whole_move_together_and_a_decided_revision_is_not_tried_again(broker, network, served, tmp_path):
    head, whole = served(network.head, 1), served(network.whole, 1)
    with Host(broker, "fol1", tmp_path / "state") as host:
        host.want(1, models=Models(version="net@1", head=head, whole=whole))
        last, states = host.wait_for(1, "active", "failed")
        assert states[-1] == "active", last.error
        assert {"downloading", "verifying"} <= set(states)
        assert last.slots == Slots(head=head.artefact, whole=whole.artefact)
        assert (last.version, last.job) == ("net@1", "job1")
        strange = served(network.whole, 2, key="stranger")
        host.want(2, models=Models(version="net@2", head=head, whole=strange))
        last, _ = host.wait_for(2, "active", "failed")
        assert last.state == "failed"
        assert last.error.startswith("WrongKeyError")
        assert last.slots.whole == whole.artefact
    store = SlotStore(tmp_path / "state")
    assert store.floors == {"head": 1, "whole": 1}
    assert store.open(head.artefact) is not None
    with Host(broker, "fol1", tmp_path / "state") as host:  # the retained message comes again
        last, states = host.wait_for(2, "failed")
        assert set(states) == {"failed"}
        host.want(1)
        host.want(4, agent=whole)
        assert "cannot replace itself" in host.wait_for(4, "failed")[0].error
        host.want(5, models=Models(version="net@1", head=head, whole=whole))
        assert host.wait_for(5, "active")[0].version == "net@1"


def test_a_job_is_done_once_and_unknown_kinds_are_rejected(broker, tmp_path):
    with Host(broker, "fol2", tmp_path / "state") as host:

        def ask(kind, job, attempt=1):
            order = JobOrder(boot=HOST, job=job, attempt=attempt, kind=kind, arguments={"a": 1}, budget_ms=1000)
            host.link.publish(Packet(host.topics.job, encode_control(order), 1))
            while not isinstance(message := host.said.get(timeout=20), JobStatus):
                pass
            return message

        assert ask("echo", "j1").result == {"a": 1}
        again = ask("format", "j1", attempt=2)
        assert (again.state, again.attempt) == ("succeeded", 2)
        assert ask("format", "j2").state == "rejected"
