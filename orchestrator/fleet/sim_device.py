"""One simulated device: the messages of an agent without its models. It updates, fails, reboots and loses its link as told."""

import os
import random
import time
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from edge_runtime.messages import (
    INSTALLED,
    ArtefactRef,
    Birth,
    Death,
    Desired,
    Heartbeat,
    JobOrder,
    JobStatus,
    MessageError,
    Models,
    Reported,
    Slots,
    Topics,
    decode_control,
    encode_control,
)
from orchestrator.fleet import mqtt_packets as packets
from orchestrator.fleet.sim_memory import Ledger, Line
from orchestrator.fleet.sim_net import Connection, Net

BOARDS = ("rpi-5", "rpi-4b", "jetson-orin-nano-8gb", "rpi-zero-2w")
_RECONNECT_S = (0.3, 2.0)
State = Literal["idle", "downloading", "verifying", "probation", "active", "failed", "rolled_back"]


@dataclass(frozen=True)
class Behaviour:
    """How simulated devices behave; rates are for each device."""

    heartbeat_s: float = 5.0
    heartbeat_qos: int = 0
    keepalive_s: int = 30
    link_bytes_s: float = 2e6
    slow_share: float = 0.1  # of the devices: their link has a twentieth of that rate
    drops_per_hour: float = 0.0  # lost connections
    reboots_per_hour: float = 0.0
    verify_s: float = 0.2
    probation_share: float = 1.0  # of the probation that the host asks for
    bad: dict[str, float] = field(default_factory=dict)  # version -> share of devices on which it fails
    job_s: float = 0.05
    connect_over_s: float = 1.0  # the first connections are spread over so long


class SimDevice:
    """One device. Everything runs in the net's thread."""

    def __init__(
        self, net: Net, address: tuple[str, int], topics: Topics, behaviour: Behaviour, ledger: Ledger
    ) -> None:
        self._net, self._address, self._topics, self._behaviour, self._ledger = net, address, topics, behaviour, ledger
        self._name = f"{topics.tenant}/{topics.device}"
        self._memory = ledger.memory(self._name)
        self._chance = random.Random(self._name)
        self._board = self._chance.choice(BOARDS)
        slow = self._chance.random() < behaviour.slow_share
        self._link_bytes_s = behaviour.link_bytes_s / (20 if slow else 1)
        self._connection: Connection | None = None
        self._up = False  # connected and subscribed
        self._life = 0  # timers of an earlier life, or of an earlier order, do nothing
        self._order = 0
        self._packet_id = 0
        self._seen_rev = self._memory.rev
        self._power_on()
        net.call_later(self._chance.uniform(0, behaviour.connect_over_s), self._connect)

    def _power_on(self) -> None:
        self._life += 1
        self._order += 1
        self.boot = os.urandom(8).hex()
        self._beats = self._reports = 0
        self._state: State = "idle"
        self._job: str | None = None
        self._error: str | None = None
        self._reported_rev = self._memory.rev
        self._ledger.add(Line(device=self._name, boots=self._memory.boots + 1))
        self._later(self._chance.uniform(0, self._behaviour.heartbeat_s), self._beat)
        for per_hour, event in (
            (self._behaviour.drops_per_hour, self._drop),
            (self._behaviour.reboots_per_hour, self._reboot),
        ):
            if per_hour > 0:
                self._later(self._chance.expovariate(per_hour / 3600), event)

    def _later(self, delay_s: float, event: "object") -> None:
        life = self._life

        def call() -> None:
            if life == self._life:
                event()  # type: ignore[operator] # a function

        self._net.call_later(delay_s, call)

    def _connect(self) -> None:
        self._reader = packets.PacketReader()
        self._connection = Connection(self._net, self._address, self._opened, self._received, self._lost)

    def _opened(self) -> None:
        will = packets.Will(self._topics.up("death"), encode_control(Death(boot=self.boot)))
        client = f"{self._topics.tenant}-{self._topics.device}"
        self._send(packets.encode_connect(client, keepalive_s=self._behaviour.keepalive_s, will=will))

    def _lost(self) -> None:
        self._up, self._connection = False, None
        self._net.call_later(self._chance.uniform(*_RECONNECT_S), self._connect)

    def _drop(self) -> None:
        """The link goes, and comes back."""
        if self._connection is not None:
            self._connection.close()
            self._lost()
        self._later(self._chance.expovariate(self._behaviour.drops_per_hour / 3600), self._drop)

    def _reboot(self) -> None:
        self._power_on()
        if self._connection is not None:
            self._connection.close()
            self._lost()

    def _received(self, data: bytes) -> None:
        try:
            for kind, flags, body in self._reader.feed(data):
                self._handle(kind, flags, body)
        except packets.PacketError:
            if self._connection is not None:
                self._connection.close()
                self._lost()

    def _handle(self, kind: int, flags: int, body: bytes) -> None:
        if kind == packets.CONNACK:
            packets.check_connack(body)
            filters = ((self._topics.desired, 1), (self._topics.job, 1))
            self._send(packets.encode_subscribe(self._next_id(), filters))
        elif kind == packets.SUBACK:
            self._up = True
            self._publish("birth", self._birth(), retain=True)
            self._report()
            self._later(self._behaviour.keepalive_s / 2, self._ping)
        elif kind == packets.PUBLISH:
            message = packets.decode_publish(flags, body)
            if message.packet_id is not None:
                self._send(packets.encode_puback(message.packet_id))
            self._take(message)

    def _take(self, message: packets.Published) -> None:
        try:
            if message.topic == self._topics.desired:
                self._follow(decode_control(message.payload, Desired))
            elif message.topic == self._topics.job:
                self._work(decode_control(message.payload, JobOrder))
        except MessageError:
            return

    def _follow(self, desired: Desired) -> None:
        """Bring the models in line, in the steps and times of a real update."""
        if desired.rev < self._seen_rev or (desired.rev == self._seen_rev and self._state != "idle"):
            return
        self._seen_rev, self._job = desired.rev, desired.job
        self._order += 1
        models = desired.models
        settled = desired.rev == self._memory.rev  # decided before a restart
        agent = desired.agent
        if agent is not None and agent.artefact != self._memory.agent and not settled:
            self._change_agent(agent, self._order)
            return
        if models is None or models == self._memory.models or settled:
            failed = settled and models is not None and models != self._memory.models
            self._end(desired.rev, "failed" if failed else "active", "refused before a restart" if failed else None)
            return
        stored = {ref.artefact for ref in (self._memory.models.head, self._memory.models.whole) if ref}
        refs = [ref for ref in (models.head, models.whole) if ref is not None and ref.artefact not in stored]
        fetch_s = sum(ref.size or 0 for ref in refs) / self._link_bytes_s
        bad = self._chance.random() < self._behaviour.bad.get(models.version, 0.0)
        how: State = "failed" if self._chance.random() < 0.5 else "rolled_back"
        probation_s = desired.probation_s * self._behaviour.probation_share
        self._step("downloading", self._order)
        verify_at, begin_at = fetch_s, fetch_s + self._behaviour.verify_s
        order = self._order
        self._later(verify_at, lambda: self._step("verifying", order))
        if bad and how == "failed":
            self._later(begin_at, lambda: self._decide(desired, None, order, "failed"))
            return
        self._later(begin_at, lambda: self._step("probation", order))
        outcome: State = "rolled_back" if bad else "active"
        self._later(begin_at + probation_s, lambda: self._decide(desired, None if bad else models, order, outcome))

    def _change_agent(self, agent: ArtefactRef, order: int) -> None:
        """Fetch another agent, and start again as that one; its desired state is then followed to the end."""
        self._step("downloading", order)
        verify_at = (agent.size or 0) / self._link_bytes_s

        def start_again() -> None:
            if order == self._order:
                self._ledger.add(Line(device=self._name, agent=agent.artefact))
                self._reboot()

        self._later(verify_at, lambda: self._step("verifying", order))
        self._later(verify_at + self._behaviour.verify_s, start_again)

    def _step(self, state: State, order: int) -> None:
        if order == self._order:
            self._state, self._error = state, None
            self._report()

    def _decide(self, desired: Desired, models: Models | None, order: int, state: State) -> None:
        if order != self._order:
            return
        if models is not None:
            self._ledger.add(Line(device=self._name, models=models, rev=desired.rev))
        else:
            self._ledger.add(Line(device=self._name, rev=desired.rev))
        self._end(desired.rev, state, None if state == "active" else "golden outputs differ (simulated)")

    def _end(self, rev: int, state: State, error: str | None) -> None:
        self._reported_rev, self._state, self._error = rev, state, error
        if self._memory.rev < rev:
            self._ledger.add(Line(device=self._name, rev=rev))
        self._report()

    def _work(self, order: JobOrder) -> None:
        if order.job in self._memory.done:
            self._answer(order)
        elif order.cancel:
            self._send_status(JobStatus(boot=self.boot, job=order.job, attempt=order.attempt, state="cancelled"))
        else:
            self._later(self._behaviour.job_s, lambda: self._do(order))

    def _do(self, order: JobOrder) -> None:
        if order.job not in self._memory.done:
            self._ledger.add(Line(device=self._name, job=order.job, attempt=order.attempt))
        self._answer(order)
        if order.kind == "reboot":
            self._later(0.05, self._reboot)

    def _answer(self, order: JobOrder) -> None:
        result = {"simulated": True, **(order.arguments if order.kind == "echo" else {})}
        status = JobStatus(boot=self.boot, job=order.job, attempt=order.attempt, state="succeeded", result=result)
        self._send_status(status)

    def _send_status(self, status: JobStatus) -> None:
        self._publish("job", status)

    def _report(self) -> None:
        self._reports += 1
        reported = Reported(
            boot=self.boot,
            seq=self._reports,
            rev=self._seen_rev
            if self._state not in ("idle", "active", "failed", "rolled_back")
            else self._reported_rev,
            job=self._job,
            state=self._state,
            version=self._memory.models.version or None,
            slots=self._slots(),
            error=self._error,
        )
        self._publish("reported", reported, retain=True)

    def _slots(self) -> Slots:
        head, whole = self._memory.models.head, self._memory.models.whole
        return Slots(head=head.artefact if head else None, whole=whole.artefact if whole else None)

    def _birth(self) -> Birth:
        return Birth(
            boot=self.boot,
            agent="simulated",
            board=self._board,
            engines=("onnxruntime",),
            max_block_bytes=65536,
            slots=self._slots(),
            boot_count=self._memory.boots,
            desired_rev=self._seen_rev if self._state != "idle" else 0,
            labels={"simulated": ""},
            agent_artefact=msgspec.UNSET if self._memory.agent == INSTALLED else self._memory.agent,
        )

    def _beat(self) -> None:
        self._beats += 1
        beat = Heartbeat(
            boot=self.boot,
            seq=self._beats,
            uptime_s=time.monotonic(),  # of the machine: a listener on it can tell how old the message is
            frames=25 * self._beats,
            dropped=0,
            remote=24 * self._beats,
            local=self._beats,
            failed=0,
            late=0,
            rss_bytes=80_000_000 + self._chance.randrange(5_000_000),
            slots=self._slots(),
            desired_rev=self._seen_rev,
            temperature_c=round(self._chance.gauss(52, 2), 1),
            cpu_share=round(self._chance.uniform(0.2, 0.6), 3),
        )
        self._publish("hb", beat, qos=self._behaviour.heartbeat_qos)
        self._later(self._behaviour.heartbeat_s, self._beat)

    def _ping(self) -> None:
        if self._up:
            self._send(packets.PINGREQ)
            self._later(self._behaviour.keepalive_s / 2, self._ping)

    def _publish(
        self,
        kind: Literal["birth", "hb", "reported", "job"],
        message: msgspec.Struct,
        *,
        qos: int = 1,
        retain: bool = False,
    ) -> None:
        if self._up:
            packet_id = self._next_id() if qos else None
            payload = encode_control(message)
            self._send(packets.encode_publish(self._topics.up(kind), payload, packet_id=packet_id, retain=retain))

    def _send(self, data: bytes) -> None:
        if self._connection is not None:
            self._connection.send(data)

    def _next_id(self) -> int:
        self._packet_id = self._packet_id % 65_535 + 1
        return self._packet_id
