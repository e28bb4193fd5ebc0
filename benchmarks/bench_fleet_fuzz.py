"""1,000,000 damaged payloads over every decoder and topic of the wire and the fleet."""

import os
import time

import msgspec

from benchmarks import bench_fuzz
from benchmarks.agent_probe import peak_bytes
from benchmarks.bench_fuzz import Outcome, Target, fuzz
from edge_runtime import messages
from edge_runtime.messages import ArtefactRef, Desired, JobOrder, JobStatus, Models, Ranked, Reported, Slots, Topics
from edge_runtime.mqtt_stream import Message, PacketStream
from edge_runtime.sample_message import SampleHead, pack_sample, unpack_sample
from orchestrator.fleet import mqtt_packets as packets
from orchestrator.fleet.selectors import parse_selector

CASES = int(os.environ.get("HEADTAIL_BENCH_CASES", "1000000"))
HANG_MS = 50.0
GROWTH_BYTES = 64 << 20
_BOOT, _DIGEST = "0123456789abcdef", "b" * 64
_SAMPLE = SampleHead(boot=_BOOT, seq=1, frame="a.jpg", form="jpeg", top=(Ranked(index=1, score=0.3, label="x"),))
_KINDS = (Desired, Reported, JobOrder, JobStatus)


def rows() -> list[dict[str, object]]:
    """Crashes and unnamed errors, slow cases, growth of memory: over all targets together."""
    targets = (*bench_fuzz.targets(), *fleet_targets())
    whole, slow, before = Outcome(), 0, peak_bytes()
    for index, target in enumerate(targets):
        count = CASES // len(targets) + (index < CASES % len(targets))
        outcome, late = _fuzz_timed(target, count)
        print(f"{target.name}: {outcome.cases} cases, {outcome.failures} failures, {late} slow", flush=True)
        if outcome.first_failure is not None:
            print(f"  {outcome.first_failure}", flush=True)
        whole.cases += outcome.cases
        whole.accepted += outcome.accepted
        whole.failures += outcome.failures
        slow += late
    grown = (peak_bytes() - before) / 2**20
    what = f"of {whole.cases} damaged payloads over {len(targets)} decoders ({whole.accepted} were harmless)"
    return [
        {"id": "fuzz.crashes", "what": f"{what}: crashes and unnamed errors", "value": whole.failures, "unit": "cases", "direction": "==", "bar": 0},
        {"id": "fuzz.hangs", "what": f"{what}: more than {HANG_MS:.0f} ms of processor time", "value": slow, "unit": "cases", "direction": "==", "bar": 0},
        {"id": "fuzz.growth", "what": f"{what}: growth of the process", "value": round(grown, 1), "unit": "MiB", "direction": "<=", "bar": 64},
        {"id": "fuzz.cases", "what": "payloads in that run", "value": whole.cases, "unit": "cases", "direction": ">=", "bar": 1_000_000},
    ]  # fmt: skip


def fleet_targets() -> tuple[Target, ...]:
    """The decoders that the fleet adds: its messages, MQTT packets as a stream, selectors, every declared topic."""
    topics = Topics("default", "pi-1")
    names = (topics.desired, topics.job, topics.up("reported"), topics.up("job"), topics.up("hb"))
    publish = packets.encode_publish(names[0], b"payload" * 9, packet_id=7)
    stream = publish + packets.encode_publish("a/b", b"", packet_id=None) + packets.encode_puback(9)
    return (
        Target("fleet_messages", _messages(), _decode_messages),
        Target("packets", (publish, stream), _decode_stream),
        Target("link_packets", (publish, stream, stream + bytes([0xD0, 0])), _decode_link),
        Target("selectors", (b"site=lab,!old,gpu", b"a!=b"), lambda data: parse_selector(data.decode("latin-1"))({})),
        Target("samples", (pack_sample(_SAMPLE, b"\xff\xd8\xff" + bytes(40)),), unpack_sample),
        Target("fleet_topics", tuple(name.encode() for name in names), _decode_topic),
    )


def _fuzz_timed(target: Target, count: int) -> tuple[Outcome, int]:
    """Run the cases; how many took longer than they may. Processor time: other programs on the machine do not count."""
    late = 0

    def timed(data: bytes) -> object:
        nonlocal late
        begun = time.thread_time()
        try:
            return target.decode(data)
        finally:
            late += 1000 * (time.thread_time() - begun) > HANG_MS

    return fuzz(Target(target.name, target.seeds, timed, target.repair), count, seed=bench_fuzz.SEED), late


def _messages() -> tuple[bytes, ...]:
    ref = ArtefactRef(artefact=_DIGEST, zip_sha256=_DIGEST, size=1000, url="http://host/x.zip")
    models = Models(version="m@1", head=ref, whole=ref)
    slots = Slots(whole=_DIGEST)
    found: tuple[msgspec.Struct, ...] = (
        Desired(boot=_BOOT, rev=3, job="r:1", models=models, config={"fps": 5, "name": "x", "on": True}),
        Reported(boot=_BOOT, seq=1, rev=3, job="r:1", state="probation", slots=slots, done_bytes=5, error="no"),
        JobOrder(boot=_BOOT, job="j-1", attempt=1, kind="echo", arguments={"n": 1.5}, budget_ms=1000),
        JobStatus(boot=_BOOT, job="j-1", attempt=1, state="succeeded", result={"n": 1}),
    )
    return tuple(messages.encode_control(message) for message in found)


def _decode_messages(data: bytes) -> object:
    last: messages.MessageError | None = None
    for kind in _KINDS:
        try:
            return messages.decode_control(data, kind)
        except messages.MessageError as error:
            last = error
    assert last is not None
    raise last


def _decode_stream(data: bytes) -> object:
    """The bytes in two reads, as a socket may give them."""
    reader = packets.PacketReader()
    found = reader.feed(data[: len(data) // 2]) + reader.feed(data[len(data) // 2 :])
    return [packets.decode_publish(flags, body) for kind, flags, body in found if kind == packets.PUBLISH]


class _Halves:
    """A socket that brings the bytes in two reads."""

    def __init__(self, data: bytes) -> None:
        middle = len(data) // 2
        self.left = [part for part in (data[:middle], data[middle:]) if part]

    def recv_into(self, buffer: memoryview, /) -> int:
        """One of them, or as much as there is room for."""
        part = self.left.pop(0)
        count = min(len(part), len(buffer))
        buffer[:count] = part[:count]
        if part[count:]:
            self.left.insert(0, part[count:])
        return count


def _decode_link(data: bytes) -> object:
    """As every link reads them; what is no plain message goes to paho, here to nobody."""
    passed: list[bytes] = []
    stream, source = PacketStream(passed.append), _Halves(data)
    found: list[Message] = []
    while source.left:
        found += stream.receive(source)
    return found, passed


def _decode_topic(data: bytes) -> object:
    return messages.parse_topic(data.decode("latin-1"))
