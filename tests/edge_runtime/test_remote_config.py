"""Remote configuration: known keys change the agent's options, the others are named and change nothing."""

import logging
import threading

import pytest

from edge_runtime.agent import Agent
from edge_runtime.agent_options import AgentOptions
from edge_runtime.messages import Desired, Heartbeat, Reported, Topics, decode_control, encode_control, parse_topic
from edge_runtime.mqtt import LinkOptions, MqttLink, Packet
from edge_runtime.remote_config import RemoteConfig, read_config, with_config
from edge_runtime.samples import SampleOptions


def test_good_keys_hold_and_bad_ones_are_named():
    config, problem = read_config(
        {"heartbeat_s": 2, "deadline_ms": -1, "no_such": True, "samples": False, "layers": -1}
    )
    assert config == RemoteConfig(heartbeat_s=2.0, samples=False)
    assert "deadline_ms=-1" in problem
    assert "no_such" in problem
    assert "layers=-1" in problem
    assert read_config({}) == (RemoteConfig(), None)


def test_what_is_not_configured_stays_as_the_agent_was_started(tmp_path):
    options = AgentOptions(broker="mqtt://x", device="d", state=tmp_path, heartbeat_s=7.0)
    assert with_config(options, RemoteConfig()) == options
    changed = with_config(options, RemoteConfig(deadline_ms=50.0, publish_results=False, layers=2))
    assert (changed.heartbeat_s, changed.offload.deadline_ms, changed.publish_results) == (7.0, 50.0, False)
    assert changed.offload.layers == 2
    assert with_config(changed, RemoteConfig(layers=0)).offload.layers == 0


class Host:
    """Publishes desired states, and keeps the newest of what a device says."""

    def __init__(self, broker, device):
        self._topics, self._heard, self.said = Topics("default", device), threading.Condition(), {}
        filters = tuple((self._topics.up(kind), 1) for kind in ("hb", "reported"))
        self.link = MqttLink(broker, LinkOptions(subscriptions=filters), self._take)

    def _take(self, topic, payload, _qos):
        kind = parse_topic(topic).rest[1]
        with self._heard:
            self.said[kind] = decode_control(payload, {"hb": Heartbeat, "reported": Reported}[kind])
            self._heard.notify_all()

    def want(self, rev, config):
        desired = Desired(boot="0" * 16, rev=rev, config=config, config_rev=rev)
        self.link.publish(Packet(self._topics.desired, encode_control(desired), 1, retain=True))

    def wait(self, condition):
        with self._heard:
            assert self._heard.wait_for(lambda: condition(self.said), 20), self.said


@pytest.fixture
def level():
    before = logging.getLogger().level
    yield before
    logging.getLogger().setLevel(before)


def test_keys_arrive_are_applied_reported_and_kept_over_a_restart(broker, tmp_path, level):
    options = AgentOptions(
        broker=broker, device="config", state=tmp_path, heartbeat_s=0.2, samples=SampleOptions(below=0.5)
    )
    with Host(broker, "config").link as link:
        host = link._on_message.__self__
        link.wait_connected(10)
        agent = Agent(options)
        thread = threading.Thread(target=agent.run, daemon=True)
        thread.start()
        host.wait(lambda said: "hb" in said)
        host.want(1, {"deadline_ms": 250, "samples": False, "log_level": "error", "colour": "red"})
        host.wait(lambda said: said["hb"].config_rev == 1 and said["reported"].config_rev == 1)
        assert "colour" in host.said["reported"].config_problem
        assert agent._options.offload.deadline_ms == 250
        assert not agent._sampler.enabled
        assert logging.getLogger().level == logging.ERROR
        agent.stop()
        thread.join(10)
        again = Agent(options)
        assert again._follower.config_rev == 1
        thread = threading.Thread(target=again.run, daemon=True)
        thread.start()
        host.wait(lambda said: said["hb"].boot == again.boot)
        assert again._options.offload.deadline_ms == 250
        host.want(2, {})
        host.wait(lambda said: said["reported"].config_rev == 2)
        assert again._options == options, "nothing configured: as it was started"
        assert host.said["reported"].config_problem is None
        again.stop()
        thread.join(10)
