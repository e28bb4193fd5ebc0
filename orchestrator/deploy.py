"""Send an artefact to a device in blocks, and wait until it runs there.

The device owns the state: it says which blocks it has, and a lost message only costs asking again.
"""

import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue

import msgspec

from device_profiles import BoardError, load_board
from device_profiles.errors import EdgeError
from edge_runtime.artefact import Artefact, file_sha256, pack_artefact
from edge_runtime.backends.trt_boards import check_deploy
from edge_runtime.blocks import Block, encode_block
from edge_runtime.messages import (
    BLOCK_BYTES,
    Birth,
    Death,
    DeployStart,
    DeployStatus,
    Topics,
    decode_control,
    encode_control,
    parse_topic,
)
from edge_runtime.mqtt import LinkBusyError, LinkOptions, MqttLink, NotConnectedError, Packet
from edge_runtime.transfer import block_count, missing_blocks
from orchestrator.artefact_server import ArtefactServer

_OLD_TENSORRT = re.compile(r"tensorrt 8\.", re.IGNORECASE)
_ASK_AGAIN_S = 2.0
_SETTLE_S = 0.2  # retained messages come together; after so long, the birth is the last word
_KINDS: dict[str, type[Birth] | type[Death] | type[DeployStatus]] = {
    "birth": Birth,
    "death": Death,
    "deploy": DeployStatus,
}


class DeployError(EdgeError):
    """An artefact did not get to run on a device."""


class UnknownDeviceError(DeployError):
    """No device of that name has said that it is there."""


class EngineMismatchError(DeployError):
    """The device cannot have, or does not have, the artefact's engine."""


class RejectedError(DeployError):
    """The device received the artefact and refused it; `code` is the name of its error."""

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


class DeployOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to deploy. `window` is how many blocks may be on their way."""

    tenant: str = "default"
    window: int = 8
    hello_timeout_s: float = 5.0
    timeout_s: float = 120.0  # without any progress
    budget_ms: float | None = None  # a golden run on the device may not take longer
    probation_s: float | None = None  # how long the device may go back; its own choice when null


class DeviceBusyError(DeployError):
    """The device is in the middle of another deployment."""


class Window:
    """Which block to send next: those that the device lacks, at most `size` ahead of what it has confirmed.

    Pure: no clock, no connection.
    """

    def __init__(self, count: int, size: int) -> None:
        self._count, self._size = count, size
        self._missing = list(range(count))
        self._sent: set[int] = set()

    def confirm(self, have: bytes, *, again: bool) -> bool:
        """Take the device's bitmap; `again` forgets what was sent and not confirmed. True when it got further."""
        missing = missing_blocks(have, self._count)
        progress = len(missing) < len(self._missing)
        self._missing = missing
        self._sent = set() if again else self._sent & set(missing)
        return progress

    def take(self) -> list[int]:
        """The blocks to send now."""
        room = max(0, self._size - len(self._sent))
        chosen = [index for index in self._missing if index not in self._sent][:room]
        self._sent.update(chosen)
        return chosen

    @property
    def confirmed(self) -> int:
        """How many blocks the device has."""
        return self._count - len(self._missing)


def check_engine(artefact: Artefact, board: str, engines: tuple[str, ...]) -> None:
    """Refuse a device that cannot run the artefact.

    Args:
        artefact: What is to be sent.
        board: Id of the device's board.
        engines: What the device says that it has installed.

    Raises:
        EngineMismatchError: With the reason and what to do.
    """
    name = artefact.manifest.engine.name
    try:
        runtimes = load_board(board).runtimes or ()
    except BoardError:
        runtimes = ()  # a board of a newer headtail: its engines decide
    old = [runtime for runtime in runtimes if _OLD_TENSORRT.search(runtime)]
    if name == "tensorrt" and old:
        raise EngineMismatchError(
            f"Wanted TensorRT 10 or newer on {board}, found {old[0]}: JetPack 4 and 5 have no Python new enough for the "
            "agent. Build the engine there with the trtexec command line of `headtail export`, or use a JetPack 6 board."
        )
    if name not in engines and not (name == "litert" and "tflite-runtime" in engines):
        raise EngineMismatchError(
            f"Wanted the engine {name} on the device ({board}), found {', '.join(engines) or 'none'}. "
            f"Install it there, or export for another engine (this artefact is for {artefact.manifest.target})."
        )


def deploy(
    broker_url: str,
    device: str,
    artefact: Artefact,
    *,
    options: DeployOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
    server: ArtefactServer | None = None,
) -> DeployStatus:
    """Send, and wait until the device has verified and activated it.

    Args:
        broker_url: mqtt://host:port.
        device: Its name on the wire.
        artefact: A head or a whole model.
        options: See `DeployOptions`.
        progress: Called with bytes confirmed and bytes in all.
        server: Serves the blocks over HTTP; over MQTT without one, or when the device cannot reach it.

    Raises:
        UnknownDeviceError: The device has not said that it is there.
        EngineMismatchError: It cannot run this.
        DeployRefusedError: The artefact's own board is too old for the device package (JetPack 4 and 5).
        RejectedError: It refused the artefact, with its reason.
        DeviceBusyError: Another deployment went on for all of the timeout.
        DeployError: A tail, or no progress within the timeout.
    """
    options = options or DeployOptions()
    if artefact.manifest.role == "tail":
        raise DeployError(
            f"Wanted a head or a whole model for {device}, found the tail {artefact.folder}. Serve it here."
        )
    check_deploy(artefact.manifest)
    topics = Topics(options.tenant, device)
    inbox: SimpleQueue[Birth | Death | DeployStatus] = SimpleQueue()
    subscriptions = ((topics.up("birth"), 1), (topics.up("death"), 1), (topics.up("deploy"), 1))

    def receive(topic: str, payload: bytes, _qos: int) -> None:
        inbox.put(decode_control(payload, _KINDS[parse_topic(topic).rest[1]]))

    with MqttLink(broker_url, LinkOptions(subscriptions=subscriptions), receive) as link:
        link.wait_connected(10)
        birth = _wait_birth(inbox, device, options)
        check_engine(artefact, birth.board, birth.engines)
        with tempfile.TemporaryDirectory(prefix="headtail-deploy.") as folder:
            archive = pack_artefact(artefact, Path(folder) / "artefact.zip")
            sender = _Sender(link, topics, archive, _announce(artefact, archive, options, server), options)
            return sender.run(inbox, progress)


def _wait_birth(inbox: "SimpleQueue[Birth | Death | DeployStatus]", device: str, options: DeployOptions) -> Birth:
    """The birth of a device that has not died since. Both messages are retained and come in any order."""
    end = time.monotonic() + options.hello_timeout_s
    birth: Birth | None = None
    dead: set[str] = set()
    while (left := end - time.monotonic()) > 0:
        alive = birth is not None and birth.boot not in dead
        try:
            message = inbox.get(timeout=min(left, _SETTLE_S) if alive else left)
        except Empty:
            if alive and birth is not None:
                return birth
            continue
        if isinstance(message, Birth):
            birth = message
        elif isinstance(message, Death):
            dead.add(message.boot)
    state = "none that has said hello to this broker" if birth is None else "that it has left"
    raise UnknownDeviceError(
        f"Wanted the device {device!r} of tenant {options.tenant!r}, found {state}. "
        f"Start it there: edge-agent run --device {device} --broker URL."
    )


def _announce(artefact: Artefact, archive: Path, options: DeployOptions, server: ArtefactServer | None) -> DeployStart:
    """What the device is told. The transfer is named after the content: a second attempt goes on where one has ended."""
    digest = file_sha256(archive)
    offer = server.offer(archive) if server is not None else None
    return DeployStart(
        boot=os.urandom(8).hex(),
        transfer=digest[:16],
        artefact=artefact.id,
        zip_sha256=digest,
        size=archive.stat().st_size,
        url=offer.url if offer else None,
        blocks_sha256=offer.blocks_sha256 if offer else None,
        budget_ms=options.budget_ms,
        probation_s=options.probation_s,
    )


class _Sender:
    """One transfer under way."""

    def __init__(
        self, link: MqttLink, topics: Topics, archive: Path, start: DeployStart, options: DeployOptions
    ) -> None:
        self._link, self._topics, self._archive, self._options = link, topics, archive, options
        self._size = start.size
        self._start = start
        self._window = Window(block_count(self._size), options.window)

    def run(
        self, inbox: "SimpleQueue[Birth | Death | DeployStatus]", progress: Callable[[int, int], None] | None
    ) -> DeployStatus:
        """Until active, or a named error."""
        last_progress = time.monotonic()
        asked, busy = True, False
        self._ask()
        while time.monotonic() - last_progress < self._options.timeout_s:
            try:
                message = inbox.get(timeout=_ASK_AGAIN_S)
            except Empty:
                self._ask()
                asked = True
                continue
            if isinstance(message, Birth):  # it has started again
                self._ask()
                asked = True
                continue
            if isinstance(message, Death) or message.transfer != self._start.transfer:
                continue
            if message.state in ("active", "committed"):
                return message
            if message.state == "failed":
                raise RejectedError(
                    f"Wanted the device to run {self._start.artefact[:16]}.., found: {message.error}", code=message.code
                )
            busy = message.state == "busy"
            if busy:  # asked again soon: a transfer that was given up ends after 10 s
                continue
            if self._window.confirm(message.have, again=asked) or message.state == "verifying":
                last_progress = time.monotonic()
            asked = message.state == "fetching"  # should it ask for blocks later, none of them was sent before
            if progress is not None:
                progress(min(self._size, self._window.confirmed * BLOCK_BYTES), self._size)
            if message.state == "receiving":
                self._send(self._window.take())
        if busy:
            raise DeviceBusyError(
                f"Wanted to deploy {self._start.artefact[:16]}.., found the device busy with another deployment for "
                f"{self._options.timeout_s:g} s. Deploy again when that has ended."
            )
        raise DeployError(
            f"Wanted progress within {self._options.timeout_s:g} s, found {self._window.confirmed} of "
            f"{block_count(self._size)} blocks on the device. Deploy again: it goes on from there."
        )

    def _ask(self) -> None:
        """Announce the transfer; the device answers with its bitmap."""
        try:
            self._link.publish(Packet(self._topics.deploy, encode_control(self._start), 1))
        except (NotConnectedError, LinkBusyError):
            return  # asked again soon

    def _send(self, indices: list[int]) -> None:
        with self._archive.open("rb") as stream:
            for index in indices:
                stream.seek(index * BLOCK_BYTES)
                data = encode_block(Block(index, stream.read(BLOCK_BYTES)))
                try:
                    self._link.publish(Packet(self._topics.block(self._start.transfer), data, 1))
                except (NotConnectedError, LinkBusyError):
                    return  # the device will say that it lacks them
