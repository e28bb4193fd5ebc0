"""A framed, encrypted connection to one peer, and the loop that moves several at once before a deadline."""

import contextlib
import select
import ssl
import time
from collections.abc import Sequence

import msgspec

from orchestrator.tensor_parallel.errors import PeerError
from orchestrator.tensor_parallel.protocol import (
    CONTROL_LIMIT,
    HEADER,
    Control,
    Header,
    Kind,
    Message,
    decode_control,
    unpack_header,
)

Bytes = bytes | bytearray | memoryview


class Link:
    """One peer. Not for use by two threads at once.

    Args:
        secured: A connected TLS socket.
        peer: The peer's name, for messages.
        own_rank: Stands in the headers that are sent.
        epoch: Stands in every header; a message of another epoch is an error. -1 takes that of the first message.
    """

    def __init__(self, secured: ssl.SSLSocket, peer: str, *, own_rank: int, epoch: int) -> None:
        secured.setblocking(False)
        self._socket = secured
        self.peer = peer
        self.own_rank = own_rank
        self.epoch = epoch
        self.sent_bytes = 0
        self.received_bytes = 0
        self._out = memoryview(b"")
        self._head = bytearray(HEADER.size)
        self._header: Header | None = None
        self._body: memoryview = memoryview(b"")
        self._filled = 0
        self._expect: tuple[Kind, int | None, int] = (Kind.CONTROL, None, CONTROL_LIMIT)
        self._or_probe = False

    def fileno(self) -> int:
        """For poll."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close at once; the peer sees the end of the connection."""
        with contextlib.suppress(OSError):
            self._socket.close()

    def begin_send(self, kind: Kind, payload: Bytes, *, sequence: int = 0) -> None:
        """Take a message to send; `flush` moves it."""
        if self._out:
            raise AssertionError(f"a message to {self.peer} was begun before the last one was sent")
        header = Header(kind, self.own_rank, self.epoch, sequence, len(payload)).pack()
        self._out = memoryview(b"".join((header, payload)))

    def flush(self) -> bool:
        """Send what the socket takes; true when all is sent.

        Raises:
            PeerError: The peer left.
        """
        try:
            while self._out:
                count = self._socket.send(self._out)
                self.sent_bytes += count
                self._out = self._out[count:]
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except OSError as error:
            raise PeerError(f"Wanted to send to {self.peer}, found {error}.") from error
        return True

    def begin_receive(self, kind: Kind, *, sequence: int | None, limit: int, or_probe: bool = False) -> None:
        """Say which message comes next: its kind, its number (null: any), the most bytes, and whether it may be a probe."""
        self._expect, self._or_probe = (kind, sequence, limit), or_probe
        self._header, self._filled = None, 0

    @property
    def is_probed(self) -> bool:
        """Whether what came is a probe, or asks for a trace, instead of the expected message."""
        return self.asked is not None

    @property
    def asked(self) -> Kind | None:
        """PROBE or TRACE when that came instead of the expected message."""
        kind = None if self._header is None else self._header.kind
        return kind if kind in (Kind.PROBE, Kind.TRACE) else None

    def fill(self) -> bool:
        """Receive what is there; true when the message is complete.

        Raises:
            PeerError: The peer left, or sent another message than expected.
        """
        try:
            if self._header is None:
                while self._filled < HEADER.size:
                    self._filled += self._receive(memoryview(self._head)[self._filled :])
                self._header = self._check(unpack_header(self._head, self.peer))
                self._body, self._filled = memoryview(bytearray(self._header.length)), 0
            while self._filled < len(self._body):
                self._filled += self._receive(self._body[self._filled :])
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except OSError as error:
            raise PeerError(f"Wanted a message from {self.peer}, found {error}.") from error
        return True

    @property
    def is_receiving(self) -> bool:
        """Whether a part of the expected message is here already."""
        return self._header is not None or self._filled > 0

    def taken(self) -> bytearray:
        """The body of the message that `fill` completed."""
        body = self._body.obj
        assert isinstance(body, bytearray)
        return body

    def _receive(self, into: memoryview) -> int:
        count = self._socket.recv_into(into)
        if count == 0:
            raise PeerError(f"Wanted a message from {self.peer}, found the connection closed.")
        self.received_bytes += count
        return count

    def _check(self, header: Header) -> Header:
        kind, sequence, limit = self._expect
        if self.epoch < 0:
            self.epoch = header.epoch
        if (
            self._or_probe
            and header.kind in (Kind.PROBE, Kind.TRACE)
            and header.epoch == self.epoch
            and header.length == 0
        ):
            return header
        if header.kind is Kind.CONTROL and kind is not Kind.CONTROL and header.length <= CONTROL_LIMIT:
            raise PeerError(f"Wanted {kind.name} from {self.peer}, found a control message: it gave up.")
        if header.kind is not kind or header.epoch != self.epoch or header.length > limit:
            raise PeerError(
                f"Wanted {kind.name} of epoch {self.epoch} with at most {limit} B from {self.peer}, "
                f"found {header.kind.name} of epoch {header.epoch} with {header.length} B."
            )
        if sequence is not None and header.sequence != sequence:
            raise PeerError(f"Wanted message {sequence} from {self.peer}, found {header.sequence}.")
        return header


def move(sending: Sequence[Link], receiving: Sequence[Link], *, timeout_s: float | None) -> None:
    """Move begun messages on all links at once until every one is complete.

    Args:
        sending: Links with a begun message to send.
        receiving: Links with a begun message to receive.
        timeout_s: Seconds until whoever is not done counts as lost; null waits.

    Raises:
        PeerError: A peer left, sent what was not expected, or stalled.
    """
    end = None if timeout_s is None else time.monotonic() + timeout_s
    to_send, to_receive = list(sending), list(receiving)
    while True:
        to_send = [link for link in to_send if not link.flush()]
        to_receive = [link for link in to_receive if not link.fill()]
        if not to_send and not to_receive:
            return
        left = None if end is None else end - time.monotonic()
        if left is not None and left <= 0:
            names = sorted({link.peer for link in (*to_send, *to_receive)})
            raise PeerError(f"Wanted {', '.join(names)} to answer within {timeout_s} s, found no answer.")
        poll = select.poll()
        for link in {*to_send, *to_receive}:
            wanted = (select.POLLIN if link in to_receive else 0) | (select.POLLOUT if link in to_send else 0)
            poll.register(link.fileno(), wanted)
        poll.poll(None if left is None else left * 1000)


def send(link: Link, kind: Kind, payload: Bytes, *, timeout_s: float, sequence: int = 0) -> None:
    """Send one message.

    Raises:
        PeerError: As `move`.
    """
    link.begin_send(kind, payload, sequence=sequence)
    move([link], [], timeout_s=timeout_s)


def send_control(link: Link, message: Control, *, timeout_s: float) -> None:
    """Send one control message.

    Raises:
        PeerError: As `move`.
    """
    send(link, Kind.CONTROL, msgspec.json.encode(message), timeout_s=timeout_s)


def receive(link: Link, kind: Kind, *, timeout_s: float | None, limit: int) -> bytearray:
    """Receive one message.

    Raises:
        PeerError: As `move`.
    """
    link.begin_receive(kind, sequence=None, limit=limit)
    move([], [link], timeout_s=timeout_s)
    return link.taken()


def receive_control(link: Link, *, timeout_s: float | None) -> Message:
    """Receive one control message.

    Raises:
        PeerError: As `move`, or not a control message.
    """
    return decode_control(receive(link, Kind.CONTROL, timeout_s=timeout_s, limit=CONTROL_LIMIT), link.peer)
