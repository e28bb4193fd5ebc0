"""Carries frames that a microcontroller prints to the tail behind an MQTT broker, and prints the answers.

<program that prints frames> | python bridge.py mqtt://127.0.0.1:1883 [--device NAME] [--budget-ms 5000]

The microcontroller knows neither MQTT nor who answers: the frame names its cut, which names the topic, and the bridge
puts the request's envelope in front.
"""

import argparse
import os
import queue
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from device_profiles.errors import EdgeError
from edge_runtime.messages import Topics
from edge_runtime.mqtt import LinkOptions, MqttLink
from edge_runtime.wire import (
    FIXED_BYTES,
    REPLY_BYTES,
    Envelope,
    Limits,
    Status,
    decode_frame,
    decode_tensors,
    pack_envelope,
    unpack_reply,
)

MAX_LINE = 4 << 20  # characters: a frame of 2 MiB
FRAME = re.compile(r"frame (\d{1,9}) ((?:[0-9a-f]{2})+)\n?")
REPLY_LIMITS = Limits(payload_bytes=1 << 20, tensor_bytes=1 << 20)


class BridgeError(EdgeError):
    """A frame could not be carried, or its answer is an error."""


@dataclass(frozen=True)
class Answer:
    """What came back for one picture; `outputs` are as the tail gave them."""

    number: int
    frame_bytes: int
    outputs: list[np.ndarray]
    tail_ms: float


def read_frames(lines: Iterable[str]) -> Iterator[tuple[int, bytes]]:
    """(number, frame) of every line "frame NUMBER HEX"; other lines are the firmware's own talk.

    Raises:
        BridgeError: A line that begins like a frame and is none, or too long.
    """
    for line in lines:
        if not line.startswith("frame "):
            continue
        found = FRAME.fullmatch(line) if len(line) <= MAX_LINE else None
        if found is None or len(found[2]) < 2 * FIXED_BYTES:
            raise BridgeError(f"Wanted a line `frame NUMBER HEX`, found {line[:60]!r}.. of {len(line)} characters.")
        yield int(found[1]), bytes.fromhex(found[2])


class Bridge:
    """One device's way to the tail. Use as a context manager."""

    def __init__(self, broker_url: str, device: str = "mcu", *, budget_ms: int = 5000) -> None:
        self._boot = os.urandom(8).hex()
        self._topics = Topics("default", device)
        self._budget_ms = budget_ms
        self._replies: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        options = LinkOptions(subscriptions=((self._topics.reply(self._boot), 1),))
        self._link = MqttLink(broker_url, options, lambda _topic, payload, _qos: self._replies.put(payload))

    def __enter__(self) -> "Bridge":
        self._link.start().wait_connected(10.0)
        return self

    def __exit__(self, *_: object) -> None:
        self._link.close()

    def ask(self, number: int, frame: bytes) -> Answer:
        """Send a frame as a request and wait for its answer.

        Raises:
            BridgeError: No answer within the budget, or the tail says what is wrong.
            EdgeError: No connection, or a reply that is damaged.
        """
        request_id = os.urandom(16)
        key = frame[4:12].hex()  # the cut id in the frame's header is the route
        envelope = pack_envelope(Envelope(request_id, self._budget_ms))
        self._link.publish_pieces(self._topics.request(key, self._boot), (envelope, frame), 1)
        while True:
            try:
                payload = self._replies.get(timeout=self._budget_ms / 1000)
            except queue.Empty:
                raise BridgeError(
                    f"Wanted an answer for cut {key} within {self._budget_ms} ms, found none. Does the tail of this cut run?"
                ) from None
            reply = unpack_reply(payload)
            if reply.request_id != request_id:
                continue  # a late answer
            body = memoryview(payload)[REPLY_BYTES:]
            if reply.status is not Status.OK:
                text = bytes(body[:500]).decode("utf-8", "replace")
                raise BridgeError(f"Wanted an answer for cut {key}, found {reply.status.name.lower()}: {text}")
            outputs = decode_tensors(decode_frame(body, REPLY_LIMITS))
            return Answer(number, len(frame), outputs, reply.tail_us / 1000)

    def carry(self, lines: Iterable[str]) -> Iterator[Answer]:
        """Ask for every frame in the lines."""
        for number, frame in read_frames(lines):
            yield self.ask(number, frame)


def show(answer: Answer) -> str:
    """One line for people."""
    best = int(answer.outputs[0].argmax())
    return f"picture {answer.number}: class {best}, {answer.frame_bytes} B sent, tail {answer.tail_ms:.1f} ms"


def main() -> int:
    parser = argparse.ArgumentParser(description="Carry frames from standard input to the tail behind a broker.")
    parser.add_argument("broker", help="mqtt://host:port")
    parser.add_argument("--device", default="mcu")
    parser.add_argument("--budget-ms", type=int, default=5000)
    arguments = parser.parse_args()
    lines = iter(lambda: sys.stdin.readline(MAX_LINE + 1), "")
    try:
        with Bridge(arguments.broker, arguments.device, budget_ms=arguments.budget_ms) as bridge:
            for answer in bridge.carry(lines):
                print(show(answer), flush=True)
    except EdgeError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
