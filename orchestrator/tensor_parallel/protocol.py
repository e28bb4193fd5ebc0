"""Messages between ranks: a fixed header in front of every one, tensors raw, control as JSON. No pickle.

Header, little-endian, 20 bytes: magic `HTLM`, kind u8, reserved u8, rank u16, epoch u32, sequence u32, length u32.
Every message carries the epoch of the connection it belongs to; after a failure the connections are thrown away.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum

import msgspec

from device_profiles.errors import EdgeError
from orchestrator.tensor_parallel.errors import PeerError
from orchestrator.tensor_parallel.partition import Share
from orchestrator.tensor_parallel.payload import Payload
from orchestrator.tensor_parallel.shard_set import RankIndex, ShardSet

HEADER = struct.Struct("<4sBBHIII")
MAGIC = b"HTLM"
CONTROL_LIMIT = 8 << 20
CHUNK_BYTES = 1 << 20
MAX_BRANCHES = 8  # drafts of one sequence in a step
_SEGMENT = struct.Struct("<IIIIIII")
_COUNT = struct.Struct("<I")


class Kind(IntEnum):
    """What a message is."""

    CONTROL = 1  # one of the structs below, JSON
    WEIGHTS = 2  # bytes of a rank's file
    STEP = 3  # segments and embeddings: begin a step
    PARTIAL = 4  # a partial sum, or in a star its total
    PROBE = 5  # empty, between steps; a worker sends it back: both are there
    TRACE = 6  # empty, between steps; a worker answers with what it did in the last one


@dataclass(frozen=True)
class Header:
    """A checked header."""

    kind: Kind
    rank: int
    epoch: int
    sequence: int
    length: int

    def pack(self) -> bytes:
        """The 20 bytes."""
        return HEADER.pack(MAGIC, self.kind, 0, self.rank, self.epoch, self.sequence, self.length)


def unpack_header(data: bytes | bytearray, peer: str) -> Header:
    """Check magic and kind.

    Raises:
        PeerError: Not a header of this protocol.
    """
    magic, kind, reserved, rank, epoch, sequence, length = HEADER.unpack(data)
    if magic != MAGIC or reserved or kind not in Kind._value2member_map_:
        raise PeerError(f"Wanted a message of this protocol, found {bytes(data[:8]).hex()} from {peer}.")
    return Header(Kind(kind), rank, epoch, sequence, length)


@dataclass(frozen=True)
class Segment:
    """Tokens of one sequence in a step: they go to places start .. start + count of the slot's cache.

    The last `branches * depth` tokens may be drafts: alternatives to each other, each of `depth` tokens, all at the
    positions behind the tokens before them. The one that was accepted in the step before lies where it was computed;
    its `moved` keys and values from place `moved_from` on are first moved to where they belong, in front of `start`.
    """

    slot: int
    start: int
    count: int
    branches: int = 1
    depth: int = 0
    moved_from: int = 0
    moved: int = 0

    @property
    def fork(self) -> int:
        """Place behind the tokens that are certain."""
        return self.start + self.count - self.branches * self.depth

    def is_inside(self, *, slots: int, context: int) -> bool:
        """Whether everything it names lies in a cache of this size."""
        return (
            self.slot < slots
            and self.count > 0
            and self.start + self.count <= context
            and 0 < self.branches <= MAX_BRANCHES
            and self.branches * self.depth < self.count
            and self.moved <= self.start
            and self.moved_from + self.moved <= context
        )


def pack_segments(segments: tuple[Segment, ...]) -> bytes:
    """The front of a STEP message."""
    packed = [
        _SEGMENT.pack(one.slot, one.start, one.count, one.branches, one.depth, one.moved_from, one.moved)
        for one in segments
    ]
    return _COUNT.pack(len(segments)) + b"".join(packed)


def segments_limit(slots: int) -> int:
    """The most bytes that the segments of a step take."""
    return _COUNT.size + _SEGMENT.size * slots


def unpack_segments(data: bytes | bytearray, *, slots: int, context: int, peer: str) -> tuple[tuple[Segment, ...], int]:
    """Segments and the bytes they take.

    Raises:
        PeerError: Truncated, or a slot or position outside of the cache.
    """
    if len(data) < _COUNT.size:
        raise PeerError(f"Wanted segments, found {len(data)} B from {peer}.")
    (count,) = _COUNT.unpack_from(data)
    stop = _COUNT.size + count * _SEGMENT.size
    if not 0 < count <= slots or stop > len(data):
        raise PeerError(f"Wanted 1 to {slots} segments, found {count} in {len(data)} B from {peer}.")
    segments = tuple(Segment(*_SEGMENT.unpack_from(data, _COUNT.size + i * _SEGMENT.size)) for i in range(count))
    for one in segments:
        if not one.is_inside(slots=slots, context=context):
            raise PeerError(f"Wanted a place in {slots} x {context} cached tokens, found {one} from {peer}.")
    return segments, stop


class Control(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    """Root of control messages."""


class Hello(Control, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="hello"):
    """First on every connection: who dials. Rank 0 is a master that begins an epoch."""

    rank: int
    epoch: int


class Member(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rank of an epoch: where it listens (workers), what it computes."""

    rank: int
    name: str
    host: str
    port: int
    share: Share


class RunSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an epoch runs, the same on all ranks."""

    collective: str = "mesh"  # mesh | star | paper (a star whose master reads workers in turn) | gloo | auto (the master measures and chooses)
    paper: bool = False  # blocks loaded again for each token, nothing kept
    window: int = 2
    context: int = 2048
    slots: int = 1
    step_tokens: int = 256  # most tokens in one step
    deadline_s: float = 10.0
    payload: Payload = "float32"  # of partial sums
    gloo_port: int = 0
    kv_cache: str = "float32"  # or int8
    guessed: int = 0  # most guessed tokens of a sequence in one step


class Assign(Control, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="assign"):
    """A master tells a worker what it is in this epoch."""

    shard_set: ShardSet
    index: RankIndex
    rank: int
    members: tuple[Member, ...]
    settings: RunSettings
    memory_limit: int | None = None


class Need(Control, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="need"):
    """A worker lacks its file from `offset` on (0: all); offset == size: it has everything."""

    offset: int


class Measure(Control, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="measure"):
    """Before an assignment; a worker answers with an empty one: the master measures the link."""

    data: str = ""


class Connect(Control, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="connect"):
    """All workers are ready: connect to each other."""


class Ready(Control, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="ready"):
    """A worker did what the last message asked: it holds its weights, or is connected to its peers."""

    resident_bytes: int = 0
    streamed_bytes: int = 0
    peak_bytes: int = 0


class Refused(Control, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="refused"):
    """A worker cannot do what it was asked; `kind` is the error's class."""

    kind: str
    message: str


Message = Hello | Measure | Assign | Need | Connect | Ready | Refused


def decode_control(data: bytes | bytearray, peer: str) -> Message:
    """Read a control message.

    Raises:
        PeerError: Not one of them.
    """
    try:
        message: Message = msgspec.json.decode(data, type=Message)
    except (msgspec.DecodeError, UnicodeDecodeError, EdgeError) as error:  # EdgeError: a struct checks its own values
        raise PeerError(f"Wanted a control message, found {error} from {peer}.") from error
    return message
