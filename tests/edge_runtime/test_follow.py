from edge_runtime.messages import JobOrder, JobStatus, Models, Slots, encode_control
from edge_runtime.mqtt import Packet
from edge_runtime.slots import Probation, SlotStore
from tests.edge_runtime.conftest import HOST, Host


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


def test_a_revision_that_comes_while_its_models_are_on_probation_says_nothing_of_what_runs(
    broker, network, served, tmp_path
):
    old, new = served(network.whole, 1), served(network.whole, 2)
    with Host(broker, "fol3", tmp_path / "state") as host:
        host.want(1, models=Models(version="net@1", whole=old))
        host.wait_for(1, "active")
        host.want(2, models=Models(version="net@2", whole=new), probation_s=600.0)
        host.wait_for(2, "probation")
        host.want(3, models=Models(version="net@2", whole=new), probation_s=600.0, config={"deadline_ms": 700})
        assert host.wait_for(3, "probation")[0].version == "net@1"
        host.agent._told = Probation(new.artefact, new.artefact[:16])  # as the host says it
        last, _ = host.wait_for(3, "rolled_back")
        assert (last.version, last.slots.whole) == ("net@1", old.artefact)
        host.want(4, models=Models(version="net@2", whole=new))
        assert host.wait_for(4, "active")[0].version == "net@2"


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
