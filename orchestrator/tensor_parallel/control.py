"""Control over MQTT: workers announce where they are, a master finds them and says how it divides the model. No tensors.

What is announced is believed as far as an address goes: whoever answers there must still hold the cluster's key.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterable, Sequence

import msgspec

from edge_runtime.broker_url import MqttError, parse_url
from edge_runtime.llm_messages import LlmMember, LlmNode, LlmPlan
from edge_runtime.messages import (
    PREFIX,
    MessageError,
    Topics,
    check_segment,
    decode_control,
    encode_control,
    parse_topic,
)
from edge_runtime.mqtt import LinkOptions, MqttLink, Packet
from orchestrator.tensor_parallel.errors import PartitionError
from orchestrator.tensor_parallel.nodes import Node
from orchestrator.tensor_parallel.protocol import Member

CONNECT_S = 5.0


def own_address(broker: str, port: int) -> str:
    """host:port of this machine on its way to the broker: where others who use that broker will reach it."""
    parsed = parse_url(broker)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # nothing is sent
        probe.connect((parsed.host, parsed.port))
        return f"{probe.getsockname()[0]}:{port}"


class Announcer:
    """A worker's retained presence; the broker says that it is gone when its connection ends.

    Args:
        broker: URL.
        topics: The worker's.
        address: Where it listens.
        memory_limit: Of the worker.
        read_mb_per_s: How fast it reads weights; 0 where that was not measured.
    """

    def __init__(
        self, broker: str, topics: Topics, address: str, memory_limit: int | None, *, read_mb_per_s: int = 0
    ) -> None:
        self._topic = topics.up("llm")
        self._node = LlmNode(
            boot=_boot(), address=address, state="waiting", memory_limit=memory_limit, read_mb_per_s=read_mb_per_s
        )
        will = Packet(self._topic, encode_control(msgspec.structs.replace(self._node, state="gone")), 1, retain=True)
        self._link = MqttLink(broker, LinkOptions(will=will, greeting=lambda: (self._packet(),)), lambda *_: None)
        self._link.start()

    def say(self, *, computing: bool, epoch: int, resident_bytes: int) -> None:
        """Announce a change; without a connection it is said at the next one."""
        state = "computing" if computing else "waiting"
        self._node = msgspec.structs.replace(self._node, state=state, epoch=epoch, resident_bytes=resident_bytes)
        self._publish()

    def close(self) -> None:
        """Say good-bye."""
        self._node = msgspec.structs.replace(self._node, state="gone")
        self._publish()
        self._link.close()

    def _publish(self) -> None:
        with contextlib.suppress(MqttError):  # the greeting of the next connection says it
            self._link.publish(self._packet())

    def _packet(self) -> Packet:
        return Packet(self._topic, encode_control(self._node), 1, retain=True)


class Directory:
    """What the workers of a tenant announce, and the master's own plan.

    Args:
        broker: URL.
        tenant: Whose workers.
        master: Name under which the plan is published; null publishes none.

    Raises:
        MqttError: No broker answers there.
    """

    def __init__(self, broker: str, tenant: str, *, master: str | None = None) -> None:
        self._tenant, self._boot = check_segment("tenant", tenant), _boot()
        self._changed = threading.Condition()
        self._nodes: dict[str, LlmNode] = {}
        self._plan = None if master is None else Topics(tenant, master).up("llm-plan")
        will = None
        if self._plan is not None:
            gone = LlmPlan(boot=self._boot, model="", set_id="", epoch=0, members=(), gone=True)
            will = Packet(self._plan, encode_control(gone), 1, retain=True)
        options = LinkOptions(subscriptions=((f"{PREFIX}/{tenant}/+/up/llm", 1),), will=will)
        self._link = MqttLink(broker, options, self._received)
        self._link.start()
        try:
            self._link.wait_connected(CONNECT_S)
        except MqttError:
            self._link.close()
            raise

    def close(self) -> None:
        """Leave the broker."""
        self._link.close()

    @property
    def nodes(self) -> dict[str, LlmNode]:
        """What was announced last, by name."""
        with self._changed:
            return dict(self._nodes)

    def locate(self, name: str) -> str | None:
        """Where a node said that it listens, unless it is gone."""
        node = self.nodes.get(name)
        return None if node is None or node.state == "gone" else node.address

    def wait_for(self, names: Iterable[str], timeout_s: float) -> None:
        """Wait until all of these are there.

        Raises:
            PartitionError: Some are not within the time.
        """
        end = time.monotonic() + timeout_s
        wanted = list(names)
        while missing := [name for name in wanted if self.locate(name) is None]:
            with self._changed:
                left = end - time.monotonic()
                if left <= 0:
                    raise PartitionError(
                        f"Wanted {', '.join(missing)} to announce themselves within {timeout_s:g} s, found "
                        f"{', '.join(sorted(self._nodes)) or 'nobody'} in tenant {self._tenant}. Start them with "
                        "--broker and --name, or give their address in the nodes file."
                    )
                self._changed.wait(min(left, 0.2))

    def say_plan(self, model: str, set_id: str, epoch: int, members: Sequence[Member]) -> None:
        """Publish who computes what; while the broker is away nobody hears it, and serving goes on."""
        if self._plan is None:
            return
        shares = tuple(LlmMember(name=m.name, kv_heads=m.share.kv_heads, columns=m.share.columns) for m in members)
        plan = LlmPlan(boot=self._boot, model=model, set_id=set_id, epoch=epoch, members=shares)
        with contextlib.suppress(MqttError):
            self._link.publish(Packet(self._plan, encode_control(plan), 1, retain=True))

    def _received(self, topic: str, payload: bytes, _qos: int) -> None:
        with contextlib.suppress(MessageError):  # of another version, or a stranger's
            name = parse_topic(topic).topics.device
            node = decode_control(payload, LlmNode)
            with self._changed:
                known = self._nodes.get(name)
                if node.state == "gone" and known is not None and known.boot != node.boot:
                    return  # the will of a process that was started again meanwhile
                self._nodes[name] = node
                self._changed.notify_all()


def with_addresses(nodes: tuple[Node, ...], directory: Directory, *, timeout_s: float) -> tuple[Node, ...]:
    """Fill in where workers without an address announce that they are.

    Raises:
        PartitionError: One does not announce itself in time.
    """
    directory.wait_for([node.name for node in nodes[1:] if node.address is None], timeout_s)
    return tuple(
        msgspec.structs.replace(node, address=directory.locate(node.name)) if rank and node.address is None else node
        for rank, node in enumerate(nodes)
    )


def _boot() -> str:
    return os.urandom(8).hex()
