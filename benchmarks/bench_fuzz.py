"""Damaged and hostile bytes: every decoder of the wire returns a value or raises a named error, soon and in little memory.

Most cases are valid bytes with a few mutations, many of them made to fit again (CRC of a frame, hash of a block, JSON of
a manifest), so that the checks behind are reached; others are spliced from two valid ones, or random. Everything follows
from one seed, so that a failing case can be made again.
"""

import hashlib
import random
import signal
import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

import msgspec
import numpy as np

from benchmarks.agent_probe import peak_bytes
from device_profiles.errors import EdgeError
from edge_runtime import blocks, messages, wire
from edge_runtime.manifest import (
    Cut,
    Engine,
    FileEntry,
    Golden,
    Manifest,
    ModelInfo,
    Preprocessing,
    Quantisation,
    TensorSpec,
    Tool,
    canonical_bytes,
    parse_manifest,
)

CASES = 10_000
SEED = 20_260
HANG_S = 2.0  # a decoder that needs longer for a few hundred bytes hangs, also on a loaded machine
GROWTH_BYTES = 64 << 20
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
_SNIPPETS = (
    b"null",
    b"-1",
    b"1e999",
    b"NaN",
    b'""',
    b"[]",
    b"{}",
    b"\0",
    b"\xff\xfe",
    b'"\\ud800"',
    b"9" * 400,
    b"[" * 9000,
)
_LIMITS = wire.Limits(payload_bytes=1 << 16, tensor_bytes=1 << 16)
_BOOT, _DIGEST = "0123456789abcdef", "b" * 64


class _HangError(BaseException):
    """Raised by the timer; no decoder catches it."""


@dataclass(frozen=True)
class Target:
    """A decoder, valid inputs for it, and how to make a damaged one look whole again."""

    name: str
    seeds: tuple[bytes, ...]
    decode: Callable[[bytes], object]
    repair: Callable[[bytes], bytes] | None = None


@dataclass
class Outcome:
    """What became of the cases."""

    cases: int = 0
    accepted: int = 0  # ended with a value
    failures: int = 0  # ended with neither a value nor a named error
    first_failure: str | None = None
    slowest_s: float = 0.0


def rows() -> list[dict[str, object]]:
    """For each kind of input the cases that ended badly, and the slowest."""
    found: list[dict[str, object]] = []
    for target in targets():
        before = peak_bytes()
        outcome = fuzz(target, CASES, seed=SEED)
        grown = peak_bytes() - before
        if outcome.first_failure is not None:
            print(f"{target.name}: {outcome.first_failure}", flush=True)
        what = (
            f"of {outcome.cases} damaged {target.name}: crashes, hangs, unnamed errors, growth above {GROWTH_BYTES >> 20} MiB "
            f"({outcome.accepted} were harmless)"
        )
        bad = outcome.failures + (grown > GROWTH_BYTES)
        slow_ms = outcome.slowest_s * 1e3
        slowest = f"slowest of the damaged {target.name}"
        found += [
            {"id": f"fuzz.{target.name}", "what": what, "value": bad, "unit": "cases", "direction": "==", "bar": 0},
            {"id": f"fuzz.{target.name}_slowest", "what": slowest, "value": slow_ms, "unit": "ms", "direction": "info"},
        ]
    return found


def fuzz(target: Target, count: int, *, seed: int) -> Outcome:
    """Run `count` cases; a hang is broken off by a timer of this process's main thread."""
    chance, outcome = random.Random(f"{seed} {target.name}"), Outcome()
    before = signal.signal(signal.SIGALRM, _break_off)
    try:
        for _ in range(count):
            data = make_case(target, chance)
            started = time.perf_counter()
            failure = _try(target, data, outcome)
            outcome.slowest_s = max(outcome.slowest_s, time.perf_counter() - started)
            outcome.cases += 1
            if failure is not None:
                outcome.failures += 1
                outcome.first_failure = outcome.first_failure or f"{failure} on {data.hex()[:400]}"
    finally:
        signal.signal(signal.SIGALRM, before)
    return outcome


def make_case(target: Target, chance: random.Random) -> bytes:
    """One hostile input."""
    kind = chance.random()
    if kind < 0.1:
        return chance.randbytes(chance.choice((0, 1, 7, 23, 24, 28, 32, 44, 60, 200, 3000)))
    data = bytearray(chance.choice(target.seeds))
    if kind < 0.25:
        other = chance.choice(target.seeds)
        data[chance.randrange(len(data) + 1) :] = other[chance.randrange(len(other) + 1) :]
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        _mutate(data, chance)
    mutated = bytes(data)
    return target.repair(mutated) if target.repair is not None and chance.random() < 0.6 else mutated


def targets() -> tuple[Target, ...]:
    """Every decoder of bytes from outside."""
    request = wire.pack_envelope(wire.Envelope(bytes(range(16)), 250))
    reply = wire.pack_reply(wire.Reply(bytes(range(16)), wire.Status.OK, 10, 20, 30))
    topics = messages.Topics("default", "pi-1")
    names = (topics.up("birth"), topics.deploy, topics.request(_BOOT, _BOOT), topics.reply(_BOOT), topics.block(_BOOT))
    whole = (blocks.encode_block(blocks.Block(0, b"content" * 9)), blocks.encode_block(blocks.Block(1, b"x")))
    return (
        Target("frames", _frames(), _decode_frame, _repair_frame),
        Target("envelopes", (request, request + b"frame"), wire.unpack_envelope),
        Target("replies", (reply, reply + b"frame"), wire.unpack_reply),
        Target("manifests", _manifests(), parse_manifest, _repair_json),
        Target("messages", _control_messages(), _decode_control),
        Target("blocks", whole, blocks.decode_block, _repair_block),
        Target(
            "topics", tuple(name.encode() for name in names), lambda data: messages.parse_topic(data.decode("latin-1"))
        ),
    )


def _try(target: Target, data: bytes, outcome: Outcome) -> str | None:
    signal.setitimer(signal.ITIMER_REAL, HANG_S)
    try:
        target.decode(data)
        outcome.accepted += 1
    except EdgeError as error:
        return "EdgeError without a subclass" if type(error) is EdgeError else None
    except _HangError:
        return f"no answer within {HANG_S} s"
    except Exception as error:  # what this benchmark looks for
        return f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return None


def _break_off(_signal: int, _frame: FrameType | None) -> None:
    raise _HangError


def _mutate(data: bytearray, chance: random.Random) -> None:
    """Change one thing in place."""
    at = chance.randrange(len(data) + 1)
    action = chance.randrange(8)
    if action == 0 and at < len(data):
        data[at] ^= 1 << chance.randrange(8)
    elif action in (1, 2) and at < len(data):
        data[at] = chance.randrange(256)
    elif action == 3:
        width = chance.choice((1, 2, 4))
        data[at : at + width] = (chance.choice(_NUMBERS) & (1 << 8 * width) - 1).to_bytes(width, "little")
    elif action == 4:
        del data[at:]
    elif action == 5:
        del data[at : at + chance.randrange(1, 9)]
    elif action == 6:
        data[at:at] = chance.choice(_SNIPPETS)
    else:
        data += chance.randbytes(chance.randrange(1, 40))


def _decode_frame(data: bytes) -> object:
    frame = wire.decode_frame(data, _LIMITS)
    if frame.codec == wire.CODEC_IMAGE:
        return frame
    return [array.tobytes() for array in wire.decode_tensors(frame)]  # touches every byte


def _repair_frame(data: bytes) -> bytes:
    """Make magic, version, the length of a single layer and the CRC32 right again."""
    if len(data) < wire.FIXED_BYTES:
        return data
    whole = bytearray(data)
    whole[:3] = wire.MAGIC + bytes((wire.VERSION,))
    start = wire.FIXED_BYTES + 4 * whole[16] + 8 * whole[17]
    if whole[16] == 1 and start <= len(whole):
        length = struct.pack("<I", len(whole) - start)
        whole[20:24] = length
        whole[wire.FIXED_BYTES : wire.FIXED_BYTES + 4] = length
    whole[24:28] = bytes(4)
    whole[24:28] = struct.pack("<I", zlib.crc32(whole))
    return bytes(whole)


def _repair_block(data: bytes) -> bytes:
    """Make length and hash of the content right again."""
    content = data[blocks.BLOCK_HEADER_BYTES :]
    return data[:8] + struct.pack("<I", len(content)) + hashlib.sha256(content).digest() + content


def _repair_json(data: bytes) -> bytes:
    """Canonical JSON again where the mutation left JSON at all."""
    try:
        return canonical_bytes(msgspec.json.decode(data))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return data


def _frames() -> tuple[bytes, ...]:
    arrays: list[np.ndarray] = [
        np.arange(60, dtype=np.uint8).reshape(1, 3, 4, 5),
        np.linspace(-1, 1, 12, dtype=np.float32).reshape(1, 12),
        np.array([[True, False]]),
        np.zeros((1,), np.int64),
    ]
    cut = bytes(range(8))
    whole = [wire.encode_tensors([array], cut_id=cut) for array in arrays] + [wire.encode_tensors(arrays, cut_id=cut)]
    return (*(b"".join(pieces) for pieces in whole), b"".join(wire.encode_image_file(b"\xff\xd8" * 40, cut_id=cut)))


def _manifests() -> tuple[bytes, ...]:
    """A whole model, a head and a tail."""
    step = Quantisation(scale=0.1, zero_point=3)
    image = TensorSpec(
        name="image", engine_name="x", dtype="float32", shape=(1, 3, 8, 8), layout="nchw", semantic="image"
    )
    latent = TensorSpec(name="latent", engine_name="q", dtype="uint8", shape=(1, 4, 4, 4), quantisation=step)
    whole = Manifest(
        schema=1,
        tool=Tool(name="headtail", version="0", packages={"onnx": "1"}),
        model=ModelInfo(name="m", source_sha256="0" * 64),
        role="whole",
        target="linux-x86-64",
        precision="int8",
        engine=Engine(name="onnxruntime", built="1.32.0"),
        entry="model.onnx",
        inputs=(image,),
        outputs=(latent,),
        files=tuple(FileEntry(path=path, sha256="a" * 64, size=7) for path in ("model.onnx", "golden/x", "golden/y")),
        preprocessing=Preprocessing(resize_short=9, crop=(8, 8), mean=(127.0,) * 3, std=(128.0,) * 3),
        golden=(Golden(inputs=("golden/x",), expected=("golden/y",), compare="exact", produced_on="here"),),
    )
    head = msgspec.structs.replace(whole, role="head", cut=Cut(cut_id=_BOOT, tensors=(latent,)))
    tail = msgspec.structs.replace(whole, role="tail", cut=Cut(accepts=(_BOOT,), tensors=(latent,)))
    return tuple(canonical_bytes(manifest) for manifest in (whole, head, tail))


def _control_messages() -> tuple[bytes, ...]:
    slots = messages.Slots(head=_DIGEST)
    ranked = messages.Ranked(index=1, score=0.5, label="cat")
    control = (
        messages.Birth(boot=_BOOT, agent="1", board="b", engines=("onnxruntime",), max_block_bytes=1, slots=slots),
        messages.Death(boot=_BOOT),
        messages.Heartbeat(
            boot=_BOOT,
            seq=1,
            uptime_s=1.0,
            frames=1,
            dropped=0,
            remote=1,
            local=0,
            failed=0,
            late=0,
            rss_bytes=1,
            slots=slots,
        ),
        messages.Result(boot=_BOOT, seq=1, frame="a", source="remote", top=(ranked,), ms={"head": 1.0}),
        messages.DeployStart(boot=_BOOT, transfer=_BOOT, artefact=_DIGEST, zip_sha256=_DIGEST, size=1),
        messages.DeployStatus(boot=_BOOT, transfer=_BOOT, state="receiving", have=b"\1\2"),
    )
    return tuple(messages.encode_control(message) for message in control)


_CONTROL: tuple[Callable[[bytes], object], ...] = (
    lambda data: messages.decode_control(data, messages.Birth),
    lambda data: messages.decode_control(data, messages.Death),
    lambda data: messages.decode_control(data, messages.Heartbeat),
    lambda data: messages.decode_control(data, messages.Result),
    lambda data: messages.decode_control(data, messages.DeployStart),
    lambda data: messages.decode_control(data, messages.DeployStatus),
)


def _decode_control(data: bytes) -> object:
    """The bytes as every kind of message; an error of one kind does not keep the others from being tried."""
    decoded: list[object] = []
    last: messages.MessageError | None = None
    for decode in _CONTROL:
        try:
            decoded.append(decode(data))
        except messages.MessageError as error:
            last = error
    if not decoded and last is not None:
        raise last
    return decoded
