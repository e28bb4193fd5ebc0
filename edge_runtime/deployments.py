"""The device's side of a deployment: collect or fetch blocks, verify the artefact, hand it over to be activated.

Order: signature by trusted keys, board, version; then hashes and sizes; then the engine's version and the golden vectors,
in a process of its own. Only what passed all of it enters the store.
"""

import logging
import shutil
import time
from collections.abc import Callable

from device_profiles.errors import EdgeError
from edge_runtime.artefact import Artefact, open_artefact
from edge_runtime.blocks import Block
from edge_runtime.fetch import Fetcher, FetchError, FetchOptions
from edge_runtime.gate import Gatekeeper, Passed
from edge_runtime.manifest import parse_manifest
from edge_runtime.messages import BLOCK_BYTES, ArtefactRef, DeployStart, DeployState, DeployStatus, RollBack, Slots
from edge_runtime.self_test import self_test
from edge_runtime.signature import SignatureError
from edge_runtime.slots import Probation, SlotError, SlotStore
from edge_runtime.transfer import IncomingFile, TransferError, missing_blocks

log = logging.getLogger(__name__)
_REPORT_EVERY = 4  # blocks
_REPORT_EVERY_S = 1.0  # while fetching
_IDLE_S = 10.0  # a transfer without a message for so long may be replaced


class Deployments:
    """One deployment at a time; a new one replaces another that is not complete and has been silent for 10 s.

    Args:
        store: Where artefacts live.
        gate: Says which may run here.
        boot: Of the agent.
        report: Sends a status to the host.
        activate: Makes stored, verified artefacts run on probation; raises `EdgeError` when it cannot, with nothing
            changed.
        fetch: How to fetch over HTTP.
        stopped: Whether the agent ends.
        clock: Seconds, never going back.
    """

    def __init__(
        self,
        store: SlotStore,
        gate: Gatekeeper,
        *,
        boot: str,
        report: Callable[[DeployStatus], None],
        activate: Callable[[Slots, Probation], None],
        fetch: FetchOptions | None = None,
        stopped: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._gate, self._boot, self._report, self._activate = store, gate, boot, report, activate
        self._fetch_options, self._stopped = fetch or FetchOptions(), stopped
        self._clock = clock
        self._touched = clock()
        self._incoming: IncomingFile | None = None
        self._since_report = 0
        self._http_failed = False  # for this transfer: blocks come over MQTT

    def begin(self, start: DeployStart) -> None:
        """Announced, or announced again: answer with what is there already."""
        if start.artefact in (self._store.active.head, self._store.active.whole):
            pending = self._store.probation
            self._send(start, "committed" if pending is None or pending.artefact != start.artefact else "active")
            return
        if self._incoming is None or _content(self._incoming.start) != _content(start):
            if self._incoming is not None and self._clock() - self._touched < _IDLE_S:
                self._send(start, "busy")
                return
            try:
                self._incoming = IncomingFile(self._store.incoming, start)
            except (TransferError, OSError) as error:
                self._fail(start, error)
                return
            self._http_failed = False
        self._touched = self._clock()
        self._incoming.start = start
        if start.url is not None and not self._http_failed and not self._incoming.complete:
            self._fetch(self._incoming)
            if self._stopped():
                return
        self._go_on(self._incoming)

    def obtain(self, ref: ArtefactRef, progress: Callable[[int], None]) -> dict[str, int]:
        """Have an artefact in the store, verified for this device; fetched over HTTP unless it is there already.

        Args:
            ref: What is wanted and where it is.
            progress: Called with the bytes that are here.

        Returns:
            What the floors become once it is committed.

        Raises:
            EdgeError: It cannot be had, or may not run here.
        """
        artefact = self._stored(ref)
        if artefact is not None:
            passed = self._store.passed(ref.artefact, self._gate)
            self._gate.check_target(artefact.manifest)
            self._gate.check_version(passed, self._store.floors)
            return _floors(passed)
        incoming = self.download(ref, progress)
        try:
            return _floors(self._verified(incoming)[1])
        finally:
            shutil.rmtree(self._store.incoming, ignore_errors=True)

    def download(self, ref: ArtefactRef, progress: Callable[[int], None]) -> IncomingFile:
        """Fetch a .zip over HTTP, complete and as it was announced; nothing in it is looked at.

        Raises:
            EdgeError: It cannot be had, or the agent ends.
        """
        if ref.url is None or ref.size is None or ref.zip_sha256 is None:
            raise FetchError(f"Wanted a URL for {ref.artefact[:16]}.., found none. Serve its .zip over HTTP.")
        start = DeployStart(
            boot=self._boot,
            transfer=ref.zip_sha256[:16],
            artefact=ref.artefact,
            zip_sha256=ref.zip_sha256,
            size=ref.size,
            url=ref.url,
        )
        self._incoming = None
        incoming = IncomingFile(self._store.incoming, start)

        def here() -> bool:
            progress(
                min(start.size, (incoming.count - len(missing_blocks(incoming.have, incoming.count))) * BLOCK_BYTES)
            )
            return self._stopped()

        Fetcher(start, incoming, self._fetch_options, here).run()
        if not incoming.complete:  # told to stop; what is here stays
            raise FetchError(f"Wanted {ref.artefact[:16]}.., found that the agent ends.")
        return incoming

    @property
    def stopping(self) -> bool:
        """Whether the agent ends: what fails now says nothing about an artefact."""
        return self._stopped()

    def _stored(self, ref: ArtefactRef) -> Artefact | None:
        """What the store holds of it; null when it must be fetched, or fetched again because it is damaged."""
        if not self._store.holds(ref.artefact):
            return None
        try:
            return self._store.open(ref.artefact)
        except SignatureError:
            raise
        except EdgeError as error:
            if ref.url is None:
                raise
            log.warning("%s It is fetched again.", error)
            return None

    def check_roll_back(self, message: RollBack) -> None:
        """Nothing when the device may leave this artefact for what was committed before.

        Raises:
            SlotError: Another one runs, or nothing ran before.
            SignatureError: What ran before may not come back.
        """
        store = self._store
        before = store.previous
        if message.artefact not in (store.active.head, store.active.whole):
            raise SlotError(f"Wanted to leave {message.artefact[:16]}.., found {store.active} running.")
        if before == store.active or not (before.head or before.whole):
            raise SlotError("Wanted something that ran before, found nothing. Deploy it instead.")
        for one in (before.head, before.whole):
            if one is not None:
                self._gate.check_version(store.passed(one, self._gate), store.floors)

    def _fetch(self, incoming: IncomingFile) -> None:
        """Over HTTP, until complete; when that does not work, the blocks are asked for over MQTT."""
        said = self._clock() - _REPORT_EVERY_S

        def progress() -> bool:
            nonlocal said
            self._touched = self._clock()
            if self._touched - said >= _REPORT_EVERY_S:
                said = self._touched
                self._send(incoming.start, "fetching", have=incoming.have)
            return self._stopped()

        progress()
        try:
            Fetcher(incoming.start, incoming, self._fetch_options, progress).run()
        except (FetchError, TransferError, OSError) as error:
            log.warning("%s The blocks are asked for over MQTT.", error)
            self._http_failed = True

    def add(self, transfer: str, block: Block) -> None:
        """A block came; blocks of other transfers are ignored."""
        incoming = self._incoming
        if incoming is None or incoming.start.transfer != transfer:
            return
        self._touched = self._clock()
        try:
            self._since_report += incoming.add(block)
        except (TransferError, OSError) as error:
            self._incoming = None
            self._fail(incoming.start, error)
            return
        if incoming.complete or self._since_report >= _REPORT_EVERY:
            self._go_on(incoming)

    def _go_on(self, incoming: IncomingFile) -> None:
        self._since_report = 0
        if not incoming.complete:
            self._send(incoming.start, "receiving", have=incoming.have)
            return
        self._incoming = None
        self._send(incoming.start, "verifying", have=incoming.have)
        try:
            artefact, passed = self._verified(incoming)
            slots = with_artefact(self._store.active, artefact)
            self._activate(slots, self._probation(incoming.start, artefact, passed))
        except (EdgeError, OSError) as error:
            self._fail(incoming.start, error)
            return
        except Exception as error:  # an engine's own: the host must hear of it, or it waits in vain
            log.exception("deployment of %s broke", incoming.start.artefact[:16])
            self._fail(incoming.start, error)
            return
        finally:
            shutil.rmtree(self._store.incoming, ignore_errors=True)
        self._send(incoming.start, "active")

    def _verified(self, incoming: IncomingFile) -> tuple[Artefact, Passed]:
        """Signature, board and version, then hashes and identity, then engine and golden vectors: then it is stored."""
        found: list[Passed] = []
        signed: list[bytes | None] = []
        start = incoming.start

        def gate(manifest: bytes, signature: bytes | None) -> None:
            passed = self._gate.ask(manifest, signature)
            self._gate.check_target(parse_manifest(manifest))
            self._gate.check_version(passed, self._store.floors)
            found.append(passed)
            signed.append(signature)

        artefact = open_artefact(incoming.finish(), gate)
        if artefact.id != start.artefact:
            raise TransferError(f"Wanted artefact {start.artefact[:16]}.., found {artefact.id[:16]}.. in the .zip.")
        self_test(artefact, budget_ms=start.budget_ms)
        self._gate.hold(found[-1].trust, signed[-1])  # a key set changes only with an update that is good
        return self._store.adopt(artefact), found[-1]

    def _probation(self, start: DeployStart, artefact: Artefact, passed: Passed) -> Probation:
        return Probation(artefact.id, start.transfer, 0, start.probation_s, start.probation_frames, _floors(passed))

    def _fail(self, start: DeployStart, error: Exception) -> None:
        log.error("deployment of %s failed: %s", start.artefact[:16], error)
        name = type(error).__name__
        self._send(start, "failed", code=name[:64], error=f"{name}: {error}"[:500])

    def _send(
        self,
        start: DeployStart,
        state: DeployState,
        *,
        have: bytes = b"",
        code: str | None = None,
        error: str | None = None,
    ) -> None:
        status = DeployStatus(
            boot=self._boot,
            transfer=start.transfer,
            artefact=start.artefact,
            state=state,
            have=have,
            code=code,
            error=error,
        )
        self._report(status)


def with_artefact(slots: Slots, artefact: Artefact) -> Slots:
    """The slots with this artefact in the slot of its role.

    Raises:
        SlotError: A tail.
    """
    role = artefact.manifest.role
    if role == "tail":
        raise SlotError("Wanted a head or a whole model for a device, found a tail. Serve it: `headtail tail serve`.")
    return Slots(head=artefact.id, whole=slots.whole) if role == "head" else Slots(head=slots.head, whole=artefact.id)


def _floors(passed: Passed) -> dict[str, int]:
    said = passed.statement
    return {} if said is None else {said.line: said.floor}


def _content(start: DeployStart) -> tuple[str, int]:
    return start.zip_sha256, start.size
